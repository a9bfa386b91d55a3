//! Redis restarts empty, is full, slow, replaced, refuses, or forgets.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::redis::RedisServer;
use crate::harness::server::{Server, command};
use crate::harness::{eventually, free_port, http, token};
use crate::{
    assert_not_recovered, expect_status, hear, history, insist, instance, instance_behind, join_since,
    kill_connection, message, messages_of, network_to, pair, publish,
};

#[test]
fn a_restart_without_data_is_unavailable_meanwhile_and_a_new_epoch_after() {
    let mut redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    let old = ann.join("h")["epoch"].clone();
    bob.join("h");
    (1..=3).for_each(|number| assert_eq!(publish(&mut ann, "h", number), number));
    hear(&mut bob, 3);
    redis.kill();
    expect_status(&mut [&mut ann, &mut bob], "degraded");
    ann.expect_refused(message("h", "refused"), "unavailable");
    redis.restart();
    expect_status(&mut [&mut ann, &mut bob], "ok");
    for client in [&mut ann, &mut bob] {
        let told = client.expect("room_resync");
        assert_eq!((&told["reason"], &told["offset"]), (&json!("new_epoch"), &json!(0)), "{}", told.text);
        assert_ne!(told["epoch"], old);
    }
    assert_eq!(publish(&mut ann, "h", "new"), 1);
    assert_eq!(hear(&mut bob, 1), [(1, json!("new"))], "and nothing that was refused");
    let mut eve = Client::connect(&b);
    assert_not_recovered(&join_since(&mut eve, "h", &old, 3), "epoch");
}

#[test]
fn a_killed_subscription_is_noticed_within_a_second_and_made_good() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("h");
    bob.join("h");
    let mut fastest = Duration::MAX;
    let mut number = 0;
    // The fastest of several, because a busy machine may hold up any of them.
    for _ in 0..5 {
        number += 1;
        assert_eq!(publish(&mut ann, "h", number), number);
        assert_eq!(hear(&mut bob, 1), [(number, json!(number))]);
        let killed = Instant::now();
        kill_connection(&redis, "b", "ingress");
        number += 1;
        assert_eq!(publish(&mut ann, "h", number), number);
        assert_eq!(hear(&mut bob, 1), [(number, json!(number))]);
        fastest = fastest.min(killed.elapsed());
        expect_status(&mut [&mut bob], "ok");
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    let unasked = bob.drain();
    assert!(unasked.iter().all(|event| event["type"] != "room_resync"), "all was made good: {unasked:#?}");
}

#[test]
fn an_instance_that_redis_drops_for_its_output_limit_gets_what_it_missed() {
    let redis = RedisServer::start();
    let network = network_to(&redis);
    // Only the drop itself may end the link.
    let (a, b) = (
        instance(&redis, "a", &[("INACTIVE_THRESHOLD", "600000")]),
        instance_behind(
            &network,
            &redis,
            "b",
            &[("REDIS_TIMEOUT", "20000"), ("INACTIVE_THRESHOLD", "600000")],
        ),
    );
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("h");
    bob.join("h");
    bob.join("b-alone");
    assert_eq!(publish(&mut ann, "h", "before"), 1);
    assert_eq!(hear(&mut bob, 1), [(1, json!("before"))]);
    network.set_silent(true);
    let set =
        |limit: &str| -> String { redis.command(&["CONFIG", "SET", "client-output-buffer-limit", limit]) };
    set("pubsub 1048576 0 0");
    assert_eq!(publish(&mut ann, "h", "meanwhile"), 2);
    // What no instance takes for a message, on a channel that `b` alone has subscribed to.
    eventually("Redis drops the instance that does not read", || {
        redis.publish("tableforge:rooms:b-alone", &vec![b'x'; 512 * 1024]);
        let clients: String = redis.command(&["CLIENT", "LIST"]);
        (!clients.contains("name=tableforge-b-ingress ")).then_some(())
    });
    set("pubsub 33554432 8388608 60");
    assert_eq!(publish(&mut ann, "h", "dropped"), 3);
    network.set_silent(false);
    assert_eq!(hear(&mut bob, 2), [(2, json!("meanwhile")), (3, json!("dropped"))]);
    expect_status(&mut [&mut bob], "ok");
    let unasked = bob.drain();
    let resynced =
        |room: &str| unasked.iter().any(|event| event["type"] == "room_resync" && event["roomId"] == room);
    assert!(!resynced("h") && resynced("b-alone"), "only what is not kept: {unasked:#?}");
}

#[test]
fn a_full_redis_refuses_messages_and_nobody_receives_them() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("h");
    bob.join("h");
    assert_eq!(publish(&mut ann, "h", "before"), 1);
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..20 {
        ann.expect_refused(message("h", "refused"), "unavailable");
    }
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(insist(&mut ann, "h", "after"), 2);
    assert_eq!(hear(&mut bob, 2), [(1, json!("before")), (2, json!("after"))]);
    assert_eq!(history(&mut bob, "h").len(), 2);
}

#[test]
fn a_deleted_stream_is_a_new_epoch() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    let old = ann.join("h")["epoch"].clone();
    bob.join("h");
    (1..=3).for_each(|number| assert_eq!(publish(&mut ann, "h", number), number));
    hear(&mut bob, 3);
    let deleted: i64 = redis.command(&["DEL", "tableforge:history:h"]);
    assert_eq!(deleted, 1);
    assert_eq!(publish(&mut ann, "h", 4), 4);
    let told = bob.expect("room_resync");
    assert_eq!((&told["reason"], &told["offset"]), (&json!("new_epoch"), &json!(3)), "{}", told.text);
    assert_ne!(told["epoch"], old);
    assert_eq!(hear(&mut bob, 1), [(4, json!(4))]);
    let mut eve = Client::connect(&b);
    assert_not_recovered(&join_since(&mut eve, "h", &old, 3), "epoch");
}

#[test]
fn forgotten_scripts_are_invisible() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("h");
    bob.join("h");
    for number in 1..=40 {
        let _: String = redis.command(&["SCRIPT", "FLUSH"]);
        assert_eq!(publish(&mut ann, "h", number), number);
        assert_eq!(hear(&mut bob, 1), [(number, json!(number))]);
        bob.leave("h");
        let _: String = redis.command(&["SCRIPT", "FLUSH"]);
        assert_eq!(bob.join("h")["memberCount"], 2);
    }
    for client in [&mut ann, &mut bob] {
        let unasked = client.drain();
        let of_type = |kind: &str| unasked.iter().any(|event| event["type"] == kind);
        assert!(!of_type("room_resync") && !of_type("cluster_status"), "{unasked:#?}");
    }
}

/// Gives Redis the user `tf` with that password instead of others, and with those rights besides all.
#[track_caller]
fn set_user(redis: &RedisServer, password: &str, rights: &[&str]) {
    let secret = format!(">{password}");
    let rule = ["ACL", "SETUSER", "tf", "on", "resetpass", &secret, "~*", "&*", "+@all"];
    let _: String = redis.command(&[&rule[..], rights].concat());
}

#[test]
fn a_wrong_password_or_a_missing_right_at_the_start_is_named() {
    let redis = RedisServer::start();
    let redis_port = redis.port.to_string();
    let start = |password: &str| {
        let settings = [
            ("REDIS_HOST", "127.0.0.1"),
            ("REDIS_PORT", redis_port.as_str()),
            ("REDIS_USERNAME", "tf"),
            ("REDIS_PASSWORD", password),
        ];
        let mut process = Process::start("tableforge", &mut command("serve", free_port(), &settings));
        let status = process.wait();
        assert_eq!(status.code(), Some(1), "{}", process.output());
        process.output()
    };
    set_user(&redis, "right", &[]);
    let said = start("a-wrong-one");
    assert!(said.contains("WRONGPASS") && said.contains("REDIS_PASSWORD"), "{said}");
    assert!(!said.contains("a-wrong-one"), "{said}");
    set_user(&redis, "right", &["-publish"]);
    let said = start("right");
    assert!(said.to_lowercase().contains("publish"), "{said}");
}

#[test]
fn a_password_that_changes_later_makes_an_instance_not_ready_and_its_sockets_stay() {
    let redis = RedisServer::start();
    set_user(&redis, "one", &[]);
    let server = instance(&redis, "a", &[("REDIS_USERNAME", "tf"), ("REDIS_PASSWORD", "one")]);
    let (mut ann, mut amy) = (Client::connect(&server), Client::connect(&server));
    ann.join("plain");
    amy.join("plain");
    set_user(&redis, "two", &[]);
    let _: i64 = redis.command(&["CLIENT", "KILL", "USER", "tf"]);
    expect_status(&mut [&mut ann, &mut amy], "degraded");
    eventually("it is not ready", || (http::get(server.port, "/ready").status == 503).then_some(()));
    assert_eq!(http::get(server.port, "/health").status, 200, "a restart would not help");
    ann.say("plain", "still here");
    amy.expect_said("plain", "still here");
    set_user(&redis, "one", &[]);
    expect_status(&mut [&mut ann, &mut amy], "ok");
    eventually("it is ready again", || (http::get(server.port, "/ready").status == 200).then_some(()));
}

#[test]
fn two_seconds_of_latency_are_a_timeout_and_the_repetition_no_second_message() {
    let redis = RedisServer::start();
    let network = network_to(&redis);
    let (a, b) = (instance_behind(&network, &redis, "a", &[]), instance(&redis, "b", &[]));
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("h");
    bob.join("h");
    let mut number = 0;
    // On a busy machine the link may be given up before the message is sent, which is refused then.
    let timed_out = (0..5).any(|_| {
        expect_up(&a);
        number += 1;
        let data = format!("m{number}");
        let mut wanted = message("h", data.as_str());
        wanted["messageId"] = format!("id-{data}").into();
        network.set_delay(Duration::from_secs(2));
        ann.send(&wanted);
        let reply = ann.reply_to(&format!("id-{data}"));
        assert_eq!(reply["type"], "error", "{}", reply.text);
        network.set_delay(Duration::ZERO);
        assert_eq!(insist(&mut ann, "h", &data), number);
        assert_eq!(insist(&mut ann, "h", &data), number, "again and again");
        reply["code"] == "timeout"
    });
    assert!(timed_out);
    assert_eq!(insist(&mut ann, "h", "last"), number + 1);
    let heard = hear(&mut bob, number as usize + 1);
    let offsets: Vec<_> = heard.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (1..=number + 1).collect::<Vec<_>>(), "each once: {heard:?}");
    assert_eq!(history(&mut bob, "h"), heard.into_iter().collect());
}

/// Waits until the link of `server` is up.
#[track_caller]
fn expect_up(server: &Server) {
    eventually("the link is up", || (server.get_json("/health")["status"] == "healthy").then_some(()));
}

#[test]
fn a_failover_that_loses_acknowledged_messages_is_a_new_epoch() {
    let (mut primary, replica) = (RedisServer::start(), RedisServer::start());
    let _: String = replica.command(&["CONFIG", "SET", "repl-diskless-load", "swapdb"]);
    let _: String = primary.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    let _: String = replica.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    let network = network_to(&primary);
    let [a, b] = ["a", "b"].map(|id| instance_behind(&network, &primary, id, &[]));
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    let old = ann.join("h")["epoch"].clone();
    bob.join("h");
    (1..=2).for_each(|number| assert_eq!(publish(&mut ann, "h", number), number));
    eventually("the replica has both", || {
        let length: i64 = replica.command(&["XLEN", "tableforge:history:h"]);
        (length == 2).then_some(())
    });
    let _: String = replica.command(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(publish(&mut ann, "h", "lost"), 3);
    assert_eq!(hear(&mut bob, 3).last(), Some(&(3, json!("lost"))));
    network.lead_to(replica.port);
    primary.kill();
    expect_status(&mut [&mut ann, &mut bob], "ok");
    for client in [&mut ann, &mut bob] {
        let told = client.expect("room_resync");
        assert_eq!((&told["reason"], &told["offset"]), (&json!("new_epoch"), &json!(2)), "{}", told.text);
        assert_ne!(told["epoch"], old);
    }
    assert_eq!(publish(&mut ann, "h", "another"), 3);
    assert_eq!(hear(&mut bob, 1), [(3, json!("another"))]);
    let mut eve = Client::connect(&b);
    let joined = join_since(&mut eve, "h", &old, 3);
    assert_not_recovered(&joined, "epoch");
    let again = join_since(&mut Client::connect(&a), "h", &joined["epoch"], 1);
    assert_eq!(messages_of(&again), [(2, json!(2)), (3, json!("another"))]);
}

#[test]
fn a_second_instance_with_the_name_of_a_live_one_refuses() {
    let redis = RedisServer::start();
    let first = instance(&redis, "a", &[]);
    let mut ann = Client::connect(&first);
    ann.join("h");
    let redis_port = redis.port.to_string();
    let settings = [("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", redis_port.as_str()), ("INSTANCE_ID", "a")];
    let mut second = Process::start("the second", &mut command("serve", free_port(), &settings));
    let status = second.wait();
    assert_eq!(status.code(), Some(1), "{}", second.output());
    assert!(second.output().contains("INSTANCE_ID"), "{}", second.output());
    assert_eq!(publish(&mut ann, "h", "undisturbed"), 1);
    ann.assert_none("cluster_status");
}

/// libfaketime, where Debian has it.
fn libfaketime() -> String {
    let places = std::fs::read_dir("/usr/lib").expect("a Linux has this").map_while(Result::ok);
    let found = places.map(|place| place.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    let found = found.expect("libfaketime is installed (Debian: apt-get install faketime)");
    found.to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn clocks_five_minutes_apart_change_no_order() {
    let redis = RedisServer::start();
    let library = libfaketime();
    let a = instance(&redis, "a", &token::REQUIRED);
    let ahead =
        [("LD_PRELOAD", library.as_str()), ("FAKETIME", "+5m"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let b = instance(&redis, "b", &[&token::REQUIRED[..], &ahead].concat());
    let connect = |server, user: &str| Client::connect_as(server, &token::of(user));
    let (mut ann, mut bob) = (connect(&a, "ann"), connect(&b, "bob"));
    let (mut amy, mut ben) = (connect(&a, "amy"), connect(&b, "ben"));
    let mut times = [0, 0];
    for client in [&mut ann, &mut bob, &mut amy, &mut ben] {
        client.join("h");
    }
    for number in (1..=60).step_by(2) {
        assert_eq!(publish(&mut ann, "h", number), number);
        assert_eq!(publish(&mut bob, "h", number + 1), number + 1);
    }
    for client in [&mut amy, &mut ben] {
        for number in 1..=60 {
            let event = client.expect("room_message");
            assert_eq!(
                (&event["offset"], &event["data"]),
                (&json!(number), &json!(number)),
                "{}",
                event.text
            );
            times[number % 2] = event["timestamp"].as_i64().expect("a timestamp");
        }
    }
    let apart = times[0] - times[1];
    assert!((240_000..360_000).contains(&apart), "the clocks are {apart} ms apart");
    // A repetition is known on the other instance, and what was missed comes back there.
    let again = json!({"type": "room_message", "roomId": "h", "data": "twice", "messageId": "twice"});
    ann.send(&again);
    assert_eq!(ann.reply_to("twice")["offset"], 61);
    let mut ann_at_b = connect(&b, "ann");
    let epoch = amy.request(json!({"type": "room_history", "roomId": "h", "limit": 1}))["epoch"].clone();
    assert_eq!(messages_of(&join_since(&mut ann_at_b, "h", &epoch, 59)).len(), 2);
    ann_at_b.send(&again);
    assert_eq!(ann_at_b.reply_to("twice")["offset"], 61);
    assert_eq!(a.get_json("/stats")["totalInstances"], 2, "nobody counts as dead");
}
