//! What other programs publish: plain JSON is delivered, anything else is counted and dropped.

use serde_json::json;

use super::pair;
use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::token;

#[test]
fn plain_json_published_to_a_room_reaches_its_members() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("table-42");
    bob.join("table-42");
    let reached =
        redis.publish("tableforge:rooms:table-42", br#"{ "data" : {"roll": 17.0}, "senderId": "root" }"#);
    assert_eq!(reached, 2, "both instances listen");
    for client in [&mut ann, &mut bob] {
        let event = client.expect("room_message");
        assert_eq!(
            (&event["roomId"], &event["senderId"]),
            (&json!("table-42"), &json!("server")),
            "{}",
            event.text
        );
        assert_eq!(event.data(), r#"{"roll": 17.0}"#);
        assert!(event["timestamp"].as_u64().is_some_and(|at| at > 1_600_000_000_000), "{}", event.text);
    }
}

#[test]
fn plain_json_published_to_a_user_and_to_everyone_arrives() {
    let redis = RedisServer::start();
    let server = Server::in_cluster(&redis, "a", &token::REQUIRED);
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    let mut bob = Client::connect_as(&server, &token::of("bob"));
    redis.publish("tableforge:users:ann", br#"{"data":"for ann"}"#);
    let event = ann.expect("user_message");
    assert_eq!((&event["senderId"], &event["data"]), (&json!("server"), &json!("for ann")), "{}", event.text);
    redis.publish("tableforge:global", br#"{"data":"for all"}"#);
    for client in [&mut ann, &mut bob] {
        let event = client.expect("global_message");
        assert_eq!(
            (&event["senderId"], &event["data"]),
            (&json!("server"), &json!("for all")),
            "{}",
            event.text
        );
    }
    bob.assert_none("user_message");
}

#[test]
fn garbage_is_counted_and_dropped_and_the_channel_goes_on() {
    let redis = RedisServer::start();
    let server = Server::in_cluster(&redis, "a", &[]);
    let mut ann = Client::connect(&server);
    ann.join("r");
    let before = garbage(&server);
    let payloads: [&[u8]; 11] = [
        b"",
        b"hello",
        b"[]",
        b"{",
        b"{}",
        b"{\"data\":}",
        b"{\"data\":1} x",
        b"{\"data\":1,\"data\":2}",
        b"{\"data\":\"\xff\"}",
        b"\x00\x01\x02\x03",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    for payload in payloads {
        redis.publish("tableforge:rooms:r", payload);
    }
    redis.publish("tableforge:instances", b"not a heartbeat");
    redis.publish("tableforge:global", b"nothing");
    redis.publish("tableforge:rooms:r", br#"{"data":"after"}"#);
    assert_eq!(ann.expect("room_message")["data"], "after", "nothing before it was delivered");
    let expected = before + payloads.len() as f64 + 2.0;
    eventually("every payload is counted", || (garbage(&server) == expected).then_some(()));
}

#[test]
fn json_of_other_programs_has_the_bounds_of_clients_json() {
    let redis = RedisServer::start();
    let server = Server::in_cluster(&redis, "a", &[]);
    let mut ann = Client::connect(&server);
    ann.join("r");
    let before = garbage(&server);
    let nested =
        |levels: usize| format!("{{\"data\":{}1{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
    for payload in [
        &nested(33),
        &nested(5_000),
        r#"{"data":1e400}"#,
        r#"{"data":{"a":1,"a":2}}"#,
        r#"{"data":"\ud800"}"#,
    ] {
        redis.publish("tableforge:rooms:r", payload.as_bytes());
    }
    redis.publish("tableforge:rooms:r", nested(32).as_bytes());
    redis.publish("tableforge:rooms:r", br#"{"data":"after"}"#);
    assert!(ann.expect("room_message")["data"].is_array(), "32 levels are fine, and nothing came before");
    assert_eq!(ann.expect("room_message")["data"], "after");
    eventually("every payload is counted", || (garbage(&server) == before + 5.0).then_some(()));
}

/// The counter of what was dropped, whatever its full name is.
fn garbage(server: &Server) -> f64 {
    let text = crate::harness::http::get(server.port, "/metrics").body;
    let line = text.lines().find(|line| !line.starts_with('#') && line.contains("garbage"));
    let name = line.expect("a metric about garbage").split(['{', ' ']).next().expect("a name").to_owned();
    server.metric(&name).expect("the metric is there")
}
