//! Peers and instances that the network forsakes.

use std::time::Duration;

use serde_json::json;
use soak::proxy::Proxy;

use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::raw::{FIN, RawSocket, TEXT, UPGRADE};
use crate::harness::redis::RedisServer;
use crate::harness::token;
use crate::{
    expect_status, hear, history_unless_unavailable, insist, instance, instance_behind, message, network_to,
    pair, publish, wait_for_instances,
};

#[test]
fn a_peer_that_vanishes_without_a_word_is_closed_with_4002_and_has_left() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[("PING_INTERVAL", "1000"), ("PONG_TIMEOUT", "3000")]);
    let network = Proxy::start(a.port).expect("a port is free");
    let mut lost = Client::open(network.port, "/ws", &[]).expect("the server upgrades");
    let mut stays = Client::connect(&b);
    // Answers pings while it waits for something.
    stays.join("h");
    lost.join("h");
    assert_eq!(stays.expect("user_joined_room")["userId"], *lost.user_id);
    network.set_silent(true);
    let left = stays.expect("user_left_room");
    assert_eq!((&left["userId"], &left["memberCount"]), (&json!(lost.user_id), &json!(1)), "{}", left.text);
    // What the server said last is still on its way.
    network.set_silent(false);
    assert_eq!(lost.expect_close(), 4002);
}

#[test]
fn an_instance_that_was_cut_off_for_longer_than_the_threshold_is_current_again() {
    let redis = RedisServer::start();
    let network = network_to(&redis);
    let servers = [instance(&redis, "a", &[]), instance_behind(&network, &redis, "b", &[])];
    wait_for_instances(&servers, 2);
    let (mut ann, mut bob) = (Client::connect(&servers[0]), Client::connect(&servers[1]));
    ann.join("h");
    bob.join("h");
    ann.expect("user_joined_room");
    assert_eq!(publish(&mut ann, "h", 1), 1);
    assert_eq!(hear(&mut bob, 1), [(1, json!(1))]);
    network.set_silent(true);
    expect_status(&mut [&mut bob], "degraded");
    bob.expect_refused(message("h", "refused"), "unavailable");
    let left = ann.expect("user_left_room");
    assert_eq!((&left["userId"], &left["memberCount"]), (&json!(bob.user_id), &json!(1)), "{}", left.text);
    (2..=6).for_each(|number| assert_eq!(publish(&mut ann, "h", number), number));
    network.set_silent(false);
    expect_status(&mut [&mut bob], "ok");
    let expected: Vec<_> = (2..=6).map(|number| (number, json!(number))).collect();
    assert_eq!(hear(&mut bob, 5), expected);
    let joined = ann.expect("user_joined_room");
    assert_eq!(
        (&joined["userId"], &joined["memberCount"]),
        (&json!(bob.user_id), &json!(2)),
        "{}",
        joined.text
    );
    assert_eq!(insist(&mut bob, "h", "back"), 7);
    assert_eq!(hear(&mut ann, 1), [(7, json!("back"))], "and nothing that was refused");
    // Who was taken out of the room and came back is told, once, that others may have come or gone; nobody else is.
    for (client, told) in [(&mut ann, 0), (&mut bob, 1)] {
        let mut unasked = client.drain();
        let before = unasked.len();
        unasked.retain(|event| !(event["type"] == "room_resync" && event["reason"] == "presence"));
        assert!(before - unasked.len() <= told, "{before} events, {unasked:#?}");
        let strange = ["user_joined_room", "user_left_room", "room_resync", "room_message"];
        assert!(
            !unasked.iter().any(|event| strange.contains(&event["type"].as_str().unwrap())),
            "{unasked:#?}"
        );
        let listed = client.request(json!({"type": "room_members", "roomId": "h"}));
        assert_eq!(listed["memberCount"], 2, "{}", listed.text);
    }
}

#[test]
fn with_a_fifth_of_all_segments_lost_every_message_comes_once_and_in_order() {
    const EACH: usize = 15;
    let redis = RedisServer::start();
    let networks = [network_to(&redis), network_to(&redis)];
    let servers = [("a", &networks[0]), ("b", &networks[1])]
        .map(|(id, network)| instance_behind(network, &redis, id, &[]));
    wait_for_instances(&servers, 2);
    let mut clients = servers.each_ref().map(Client::connect);
    for client in &mut clients {
        client.join_with(json!({"type": "join_room", "roomId": "h", "echo": true}));
    }
    networks.iter().for_each(|network| network.set_loss(20));
    let mut acked = Vec::new();
    for number in 0..EACH {
        for (name, client) in ["ann", "bob"].into_iter().zip(&mut clients) {
            let data = format!("{name}-{number}");
            acked.push((insist(client, "h", &data), json!(data)));
        }
    }
    networks.iter().for_each(|network| network.set_loss(0));
    let expected: Vec<_> = (1..).zip(acked.iter().map(|(_, data)| data.clone())).take(2 * EACH).collect();
    assert_eq!(acked, expected, "each was answered before the next was sent");
    for client in &mut clients {
        assert_eq!(hear(client, 2 * EACH), expected);
        assert!(client.drain().iter().all(|event| event["type"] != "room_resync"));
        // The last lost segment may have taken a link along, which comes back on its own.
        let kept = eventually("the history can be read", || history_unless_unavailable(client, "h"));
        assert_eq!(kept, expected.iter().cloned().collect());
    }
    eventually("both are well", || {
        servers.iter().all(|server| server.get_json("/health")["status"] == "healthy").then_some(())
    });
}

/// Gives `network` such a delay that the link of the instance behind it is lost with what `act` had sent still on its
/// way, and lets the link come back without that delay.
#[track_caller]
fn with_much_under_way(network: &Proxy, client: &mut Client, act: impl FnOnce(&mut Client)) {
    // Long enough for the new link to be there before.
    network.set_delay(Duration::from_secs(6));
    act(client);
    expect_status(&mut [client], "degraded");
    network.set_delay(Duration::ZERO);
    expect_status(&mut [client], "ok");
}

#[test]
fn what_a_given_up_connection_still_brings_does_not_come_out_of_order() {
    let redis = RedisServer::start();
    let network = network_to(&redis);
    let servers = [instance_behind(&network, &redis, "a", &[]), instance(&redis, "b", &[])];
    wait_for_instances(&servers, 2);
    let (mut ann, mut bob) = (Client::connect(&servers[0]), Client::connect(&servers[1]));
    ann.join("plain");
    bob.join("plain");
    ann.say("plain", "before");
    bob.expect_said("plain", "before");
    with_much_under_way(&network, &mut ann, |ann| ann.say("plain", "late"));
    ann.say("plain", "after");
    bob.expect_said("plain", "after");
    assert_eq!(bob.expect("room_resync")["reason"], "peer_link_lost", "told what it does not get");
    eventually("it came, and was dropped", || {
        servers[1].metric("tableforge_redis_late_batches_total").filter(|late| *late > 0.0)
    });
    bob.drain().iter().for_each(|event| assert_ne!(event["data"], "late", "{}", event.text));
}

#[test]
fn a_join_over_a_given_up_connection_brings_nobody_back_who_has_left() {
    let redis = RedisServer::start();
    let network = network_to(&redis);
    let servers = [instance_behind(&network, &redis, "a", &[]), instance(&redis, "b", &[])];
    wait_for_instances(&servers, 2);
    let (mut ann, mut bob) = (Client::connect(&servers[0]), Client::connect(&servers[1]));
    bob.join("h");
    with_much_under_way(&network, &mut ann, |ann| {
        ann.ask(json!({"type": "join_room", "roomId": "h"}));
    });
    ann.expect("room_joined");
    assert_eq!(bob.expect("user_joined_room")["userId"], *ann.user_id);
    ann.leave("h");
    assert_eq!(bob.expect("user_left_room")["memberCount"], 1);
    eventually("the call came, and was refused", || {
        let errors: String = redis.command(&["INFO", "errorstats"]);
        errors.contains("errorstat_OUTDATED").then_some(())
    });
    let listed = bob.request(json!({"type": "room_members", "roomId": "h"}));
    assert_eq!(listed["memberCount"], 1, "{}", listed.text);
    bob.drain().iter().for_each(|event| assert_ne!(event["type"], "user_joined_room", "{}", event.text));
}

#[test]
fn a_connection_that_a_given_up_link_still_reports_does_not_count_when_it_has_gone() {
    let redis = RedisServer::start();
    let network = network_to(&redis);
    let limit = [("MAX_CONNECTIONS_PER_USER", "1"), ("JWT_SECRET", token::SECRET)];
    let servers = [instance_behind(&network, &redis, "a", &limit), instance(&redis, "b", &limit)];
    wait_for_instances(&servers, 2);
    let request = UPGRADE.replace("/ws", &format!("/ws?token={}", token::of("ann")));
    let (mut witness, mut ann) = (Client::connect(&servers[0]), RawSocket::connect(servers[0].port));
    // As above; she goes while the link is down, so that only what is under way still speaks of her.
    network.set_delay(Duration::from_secs(6));
    ann.send(request.as_bytes());
    expect_status(&mut [&mut witness], "degraded");
    ann.response();
    assert_eq!(ann.event()["type"], "connection_established", "nobody waits for a call that was given up");
    drop(ann);
    eventually("she has gone", || {
        (servers[0].metric("tableforge_websocket_connections_total") == Some(1.0)).then_some(())
    });
    network.set_delay(Duration::ZERO);
    expect_status(&mut [&mut witness], "ok");
    eventually("all has come that was under way", || {
        let list: String = redis.command(&["CLIENT", "LIST"]);
        (list.matches("name=tableforge-a-ingress ").count() == 1).then_some(())
    });
    eventually("her place is free", || {
        let mut ann = RawSocket::connect(servers[1].port);
        ann.send(request.as_bytes());
        ann.response();
        ann.frame().filter(|frame| frame.first == FIN | TEXT)
    });
}
