//! Redis dies, hangs and comes back: the instance goes on alone, says so, and returns by itself.

use serde_json::json;

use super::pair;
use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::token;

/// Four clients of two instances, all in the room `r`: two of `a`, then two of `b`.
#[track_caller]
fn table(a: &Server, b: &Server) -> [Client; 4] {
    let mut clients = [a, a, b, b].map(Client::connect);
    clients.iter_mut().for_each(|client| drop(client.join("r")));
    clients
}

#[track_caller]
fn expect_status(clients: &mut [Client], status: &str) {
    for client in clients {
        let event = client.expect("cluster_status");
        assert_eq!(event["status"], status, "{}", event.text);
    }
}

/// Has each client say `data` and all the others hear it.
#[track_caller]
fn all_hear_each_other(clients: &mut [Client], data: &str) {
    for speaker in 0..clients.len() {
        let data = format!("{data} of {speaker}");
        clients[speaker].say("r", data.as_str());
        for listener in (0..clients.len()).filter(|listener| *listener != speaker) {
            clients[listener].expect_said("r", data.as_str());
        }
    }
}

#[test]
fn members_of_one_instance_reach_each_other_without_redis_and_all_do_again_once_it_is_back() {
    let mut redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let mut clients = table(&a, &b);
    all_hear_each_other(&mut clients, "before");
    redis.kill();
    expect_status(&mut clients, "degraded");
    for server in [&a, &b] {
        assert_eq!(server.get_json("/health")["status"], "degraded");
    }
    let (of_a, of_b) = clients.split_at_mut(2);
    all_hear_each_other(of_a, "alone");
    all_hear_each_other(of_b, "alone");
    // A room that nobody was in when Redis went, and one that its last member leaves meanwhile.
    of_a[0].join("new");
    of_b[0].join("new");

    redis.restart();
    expect_status(&mut clients, "ok");
    all_hear_each_other(&mut clients, "together");
    clients[0].say("new", 1);
    clients[2].expect_said("new", 1);
    let listed = clients[3].request(json!({"type": "room_members", "roomId": "r"}));
    assert_eq!(listed["memberCount"], 4, "{}", listed.text);
    for server in [&a, &b] {
        assert_eq!(server.get_json("/health")["status"], "healthy");
    }
}

#[test]
fn users_are_reached_again_once_redis_is_back() {
    let mut redis = RedisServer::start();
    let [a, b] = pair(&redis, &token::REQUIRED);
    let mut ann = Client::connect_as(&a, &token::of("ann"));
    let mut bob = Client::connect_as(&b, &token::of("bob"));
    redis.kill();
    ann.expect("cluster_status");
    bob.expect("cluster_status");
    let mut ann_again = Client::connect_as(&a, &token::of("ann"));
    ann.send(&json!({"type": "user_message", "targetUserId": "ann", "data": "note"}));
    ann_again.expect("user_message");
    redis.restart();
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.expect("cluster_status")["status"], "ok");
    }
    bob.send(&json!({"type": "user_message", "targetUserId": "ann", "data": "hello again"}));
    for connection in [&mut ann, &mut ann_again] {
        connection
            .expect_that("bob's", |event| event["type"] == "user_message" && event["senderId"] == "bob");
    }
}

#[test]
fn a_redis_that_hangs_is_noticed_like_one_that_died() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let mut clients = table(&a, &b);
    redis.freeze();
    expect_status(&mut clients, "degraded");
    all_hear_each_other(&mut clients[..2], "alone");
    redis.resume();
    expect_status(&mut clients, "ok");
    all_hear_each_other(&mut clients, "together");
}

#[test]
fn a_link_that_is_cut_comes_back() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let mut clients = table(&a, &b);
    for round in 0..3 {
        let _killed: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        expect_status(&mut clients, "degraded");
        expect_status(&mut clients, "ok");
        all_hear_each_other(&mut clients, &format!("round {round}"));
    }
}

#[test]
fn who_may_have_missed_messages_is_told_to_resync() {
    let mut redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let mut clients = table(&a, &b);
    redis.kill();
    expect_status(&mut clients, "degraded");
    clients[0].say("r", "only for a");
    clients[1].expect_said("r", "only for a");
    redis.restart();
    expect_status(&mut clients, "ok");
    for missed in &mut clients[2..] {
        let event = missed.expect("room_resync");
        assert_eq!(event["roomId"], "r", "{}", event.text);
        assert!(event["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{}", event.text);
    }
}

#[test]
fn an_instance_that_starts_without_redis_joins_the_cluster_when_it_comes() {
    let mut redis = RedisServer::start();
    redis.kill();
    let (port, redis_port) = (crate::harness::free_port(), redis.port.to_string());
    let settings =
        [("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", redis_port.as_str()), ("HEARTBEAT_INTERVAL", "200")];
    let mut command = crate::harness::server::command("serve", port, &settings);
    let mut process = crate::harness::process::Process::start("tableforge", &mut command);
    redis.restart();
    let reachable = eventually("it runs with Redis, or has refused to start without", || {
        if let Some(status) = process.ended() {
            return Some(Err(status));
        }
        crate::harness::http::try_get(port, "/ready").filter(|response| response.status == 200).map(Ok)
    });
    // Both are sound: waiting for Redis, and refusing with one line that names it.
    if let Err(status) = reachable {
        assert!(!status.success());
        process.wait();
        assert!(process.output().contains(&redis_port), "the line names where Redis was looked for");
    }
}
