//! Messages cross from instance to instance: once, in order, byte for byte.

use serde_json::json;

use super::pair;
use crate::harness::client::Client;
use crate::harness::redis::RedisServer;
use crate::harness::token;

#[test]
fn room_messages_cross_both_ways() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("r");
    bob.join("r");
    for round in 0..50 {
        let data = format!(r#"{{ "n" : {round}, "big": 123456789012345678901234567890 }}"#);
        ann.send_text(&format!(
            r#"{{"type":"room_message","roomId":"r","messageId":"m{round}","data":{data}}}"#
        ));
        let event = bob.expect("room_message");
        assert_eq!(event.data(), data, "byte for byte");
        assert_eq!(
            (&event["senderId"], &event["senderSocketId"]),
            (&json!(ann.user_id), &json!(ann.socket_id))
        );
        assert_eq!(event["messageId"], format!("m{round}"));
        bob.say("r", round);
        ann.expect_said("r", round);
    }
}

#[test]
fn everyone_gets_each_message_once_wherever_it_came_from() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[("SHARDS", "2")]);
    let mut crowd: Vec<_> =
        (0..12).map(|number| Client::connect(if number % 2 == 0 { &a } else { &b })).collect();
    crowd.iter_mut().for_each(|client| drop(client.join("r")));
    for number in 0..50 {
        crowd.iter_mut().for_each(|client| client.say("r", number));
    }
    for client in &mut crowd {
        let mut next = std::collections::HashMap::<String, i64>::new();
        for _ in 0..50 * 11 {
            let event = client.expect("room_message");
            let expected = next.entry(event["senderId"].to_string()).or_default();
            assert_eq!(event["data"], *expected, "each sender's messages in order: {}", event.text);
            *expected += 1;
        }
        assert_eq!(next.len(), 11, "of all others");
        client.drain().iter().for_each(|event| assert_ne!(event["type"], "room_message", "{}", event.text));
    }
}

#[test]
fn user_messages_reach_the_user_on_every_instance() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &token::REQUIRED);
    let mut bob = Client::connect_as(&a, &token::of("bob"));
    for round in 0..20 {
        let ann = format!("ann-{round}");
        let mut here = Client::connect_as(&a, &token::of(&ann));
        let mut there = Client::connect_as(&b, &token::of(&ann));
        bob.request(json!({"type": "user_message", "targetUserId": ann, "data": round}));
        bob.request(json!({"type": "user_message", "targetUserId": ann, "data": "end"}));
        for connection in [&mut here, &mut there] {
            assert_eq!(connection.expect("user_message")["data"], round);
            assert_eq!(connection.expect("user_message")["data"], "end", "each message comes once");
        }
    }
}

#[test]
fn a_user_that_authenticates_by_message_is_reached_from_the_other_instance() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &token::REQUIRED);
    let mut bob = Client::connect_as(&a, &token::of("bob"));
    let mut ann = Client::connect(&b);
    let success = ann.request(json!({"type": "authenticate", "token": token::of("ann")}));
    assert_eq!(success["type"], "authentication_success", "{}", success.text);
    bob.send(&json!({"type": "user_message", "targetUserId": "ann", "data": 1}));
    assert_eq!(ann.expect("user_message")["senderId"], "bob");
}

#[test]
fn global_messages_reach_every_instance() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &token::REQUIRED);
    let mut crier =
        Client::connect_as(&a, &token::with_claims(json!({"sub": "crier", "permissions": ["broadcast"]})));
    let mut here = Client::connect_as(&a, &token::of("here"));
    let mut there = Client::connect_as(&b, &token::of("there"));
    for data in ["one", "two"] {
        crier.send(&json!({"type": "global_message", "data": data}));
        for listener in [&mut here, &mut there] {
            let event = listener.expect("global_message");
            assert_eq!(
                (&event["senderId"], &event["data"]),
                (&json!("crier"), &json!(data)),
                "{}",
                event.text
            );
        }
    }
}

#[test]
fn a_message_from_the_other_instance_right_after_room_joined_arrives() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[("MAX_ROOMS_PER_CONNECTION", "1000")]);
    let (mut speaker, mut listener) = (Client::connect(&a), Client::connect(&b));
    for number in 0..100 {
        let room = format!("r{number}");
        speaker.join(&room);
        listener.join(&room);
        speaker.say(&room, number);
        listener.expect_said(&room, number);
    }
}

#[test]
fn large_messages_and_bursts_cross() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut speaker, mut listener) = (Client::connect(&a), Client::connect(&b));
    speaker.join("r");
    listener.join("r");
    // Ten of the largest are well below what may wait for one client.
    for size in [0, 1_000, 60_000] {
        for number in 0..10 {
            speaker.say("r", format!("{number} {}", "x".repeat(size)));
        }
        for number in 0..10 {
            let event = listener.expect("room_message");
            let text = event["data"].as_str().expect("a string");
            assert!(
                text.starts_with(&format!("{number} ")) && text.len() >= size,
                "message {number} of {size} bytes"
            );
        }
    }
}

#[test]
fn instances_with_another_prefix_are_another_cluster() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let other = crate::harness::server::Server::in_cluster(&redis, "c", &[("REDIS_PREFIX", "elsewhere:")]);
    let (mut ann, mut bob, mut eve) = (Client::connect(&a), Client::connect(&b), Client::connect(&other));
    ann.join("r");
    bob.join("r");
    assert_eq!(eve.join("r")["memberCount"], 1);
    ann.say("r", "ours");
    bob.expect_said("r", "ours");
    redis.publish("elsewhere:rooms:r", br#"{"data":"theirs"}"#);
    assert_eq!(eve.expect("room_message")["data"], "theirs", "the first that it hears");
}
