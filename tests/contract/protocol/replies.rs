//! Every `messageId` gets exactly one reply, which carries it.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::server::Server;

with_one_shard_and_four!(
    each_request_gets_exactly_one_reply_of_its_type,
    publishing_without_a_message_id_succeeds_silently,
    other_requests_are_answered_without_a_message_id_too,
    pong_carries_the_time,
);

/// A request and the `type` of its reply.
fn requests(room: &str, me: &str) -> Vec<(Value, &'static str)> {
    vec![
        (json!({"type": "ping"}), "pong"),
        (json!({"type": "join_room", "roomId": room}), "room_joined"),
        (json!({"type": "room_message", "roomId": room, "data": 1}), "message_ack"),
        (json!({"type": "room_members", "roomId": room}), "room_members"),
        (json!({"type": "user_message", "targetUserId": me, "data": 1}), "message_ack"),
        (json!({"type": "user_message", "targetUserId": "nobody-of-that-name", "data": 1}), "message_ack"),
        (json!({"type": "global_message", "data": 1}), "error"),
        (json!({"type": "leave_room", "roomId": room}), "room_left"),
        (json!({"type": "leave_room", "roomId": room}), "error"),
        (json!({"type": "room_message", "roomId": room, "data": 1}), "error"),
        (json!({"type": "no_such_type"}), "error"),
        (json!({"type": "join_room", "roomId": "not a room"}), "error"),
        (json!({"type": "join_room"}), "error"),
        (json!({"type": "room_history", "roomId": room}), "error"),
        (json!({"type": "authenticate", "token": "not a token"}), "error"),
    ]
}

fn each_request_gets_exactly_one_reply_of_its_type(shards: usize) {
    let server = Server::with_shards(shards);
    let mut client = Client::connect(&server);
    let me = client.user_id.clone();
    let mut expected = HashMap::new();
    // All but the last, which may cost the connection, without waiting for any reply.
    let mut requests = requests("table-1", &me);
    requests.pop();
    for (request, kind) in requests {
        let shown = request.to_string();
        expected.insert(client.ask(request), (shown, kind));
    }
    for (id, (request, kind)) in &expected {
        let reply = client.reply_to(id);
        assert_eq!(reply["type"], *kind, "to {request}: {}", reply.text);
    }
    for event in client.drain() {
        let second = event["type"] != "user_message"
            && expected.contains_key(event["messageId"].as_str().unwrap_or(""));
        assert!(!second, "a second reply: {}", event.text);
    }
}

#[test]
fn a_request_that_costs_the_connection_is_answered_first() {
    let server = Server::start(&crate::harness::token::REQUIRED);
    let mut client = Client::connect(&server);
    let reply = client.request(requests("table-1", "me").pop().expect("there are requests").0);
    assert_eq!(
        (&reply["type"], &reply["code"]),
        (&json!("error"), &json!("unauthenticated")),
        "{}",
        reply.text
    );
    assert_eq!(client.expect_close(), 4500);
}

fn publishing_without_a_message_id_succeeds_silently(shards: usize) {
    let server = Server::with_shards(shards);
    let mut sender = Client::connect(&server);
    let mut other = Client::connect(&server);
    sender.join("quiet");
    other.join("quiet");
    sender.send(&json!({"type": "user_message", "targetUserId": other.user_id, "data": "psst"}));
    sender.say("quiet", "hello");
    other.expect_said("quiet", "hello");
    other.expect("user_message");
    sender.drain().iter().for_each(|event| assert_ne!(event["type"], "message_ack", "{}", event.text));
}

fn other_requests_are_answered_without_a_message_id_too(shards: usize) {
    let server = Server::with_shards(shards);
    let mut client = Client::connect(&server);
    for (request, kind) in [
        (json!({"type": "join_room", "roomId": "r"}), "room_joined"),
        (json!({"type": "room_members", "roomId": "r"}), "room_members"),
        (json!({"type": "leave_room", "roomId": "r"}), "room_left"),
        (json!({"type": "ping"}), "pong"),
        (json!({"type": "room_message", "roomId": "r", "data": 1}), "error"),
    ] {
        client.send(&request);
        let reply = client.expect(kind);
        assert!(reply.get("messageId").is_none(), "{}", reply.text);
    }
}

fn pong_carries_the_time(shards: usize) {
    let server = Server::with_shards(shards);
    let pong = Client::connect(&server).request(json!({"type": "ping"}));
    let now = crate::harness::token::seconds_from_now(0) * 1000;
    let timestamp = pong["timestamp"].as_i64().expect("a timestamp in ms");
    assert!((now - timestamp).abs() < 60_000, "{timestamp} is not now, {now}");
}

#[test]
fn a_message_id_is_a_string_of_1_to_64_bytes() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server);
    for id in ["x".to_owned(), "é\"\\\u{7}🎲".to_owned(), "y".repeat(64)] {
        client.send(&json!({"type": "ping", "messageId": id}));
        assert_eq!(client.expect("pong")["messageId"], *id);
    }
    for id in [json!(""), json!("y".repeat(65)), json!("é".repeat(33)), json!(7), json!(null), json!(["x"])]
    {
        client.send(&json!({"type": "ping", "messageId": id}));
        let error = client.expect("error");
        assert_eq!(error["code"], "invalid_message", "to {id}: {}", error.text);
        assert!(error.get("messageId").is_none(), "an id that is refused is not sent back: {}", error.text);
    }
}
