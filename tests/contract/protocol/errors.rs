//! Every error code that a client can cause: the right one, with words that help, and nothing done.

use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::server::Server;
use crate::harness::token;

/// Sends `text` on a connection of its own and checks the error's code.
#[track_caller]
fn refused(server: &Server, text: &str, code: &str) -> Value {
    let mut client = Client::connect(server);
    client.send_text(text);
    let error = client.expect("error");
    let shown: String = text.chars().take(120).collect();
    assert_eq!(error["code"], code, "to {shown}: {}", error.text);
    let words = error["message"].as_str().unwrap_or_default();
    assert!(words.contains(' '), "`message` says it in words: {}", error.text);
    let pong = client.request(json!({"type": "ping"}));
    assert_eq!(pong["type"], "pong", "the connection goes on after {shown}");
    Value::clone(&error)
}

/// An object that is `levels` deep, the outermost included.
fn nested(levels: usize) -> String {
    let inner = levels - 1;
    format!(r#"{{"type":"ping","x":{}{}}}"#, "[".repeat(inner), "]".repeat(inner))
}

#[test]
fn invalid_json() {
    let server = Server::start(&[]);
    let bom = "\u{feff}{\"type\":\"ping\"}";
    let deep = nested(33);
    for text in [
        "",
        " ",
        "{",
        "nonsense",
        r#"{"type":"ping"} {"type":"ping"}"#,
        r#"{"type":"ping"},"#,
        r#"{"type":"ping",}"#,
        r#"{'type':'ping'}"#,
        r#"{"type":"ping","x":01}"#,
        r#"{"type":"ping","x":+1}"#,
        r#"{"type":"ping","x":.5}"#,
        r#"{"type":"ping","x":NaN}"#,
        r#"{"type":"ping","x":1e400}"#,
        r#"{"type":"ping","x":-1e400}"#,
        r#"{"type":"ping","x":"\ud800"}"#,
        r#"{"type":"ping","x":"\x"}"#,
        "{\"type\":\"ping\",\"x\":\"\n\"}",
        r#"{"type":"ping","type":"ping"}"#,
        r#"{"type":"ping","x":{"a":1,"b":2,"a":3}}"#,
        r#"{"type":"ping","x":{"a":1,"\u0061":3}}"#,
        bom,
        &deep,
    ] {
        refused(&server, text, "invalid_json");
    }
}

#[test]
fn nesting_of_32_levels_is_allowed() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server);
    client.send_text(&nested(32));
    client.expect("pong");
}

#[test]
fn large_and_small_numbers_within_a_double_are_allowed() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server);
    for number in ["1e308", "-1e308", "1e-400", "0e999", "123456789012345678901234567890"] {
        client.send_text(&format!(r#"{{"type":"ping","x":{number}}}"#));
        client.expect("pong");
    }
}

#[test]
fn invalid_message() {
    let server = Server::start(&[]);
    for text in [
        "[]",
        "7",
        "null",
        "\"ping\"",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":null}"#,
        r#"{"type":"join_room"}"#,
        r#"{"type":"leave_room"}"#,
        r#"{"type":"room_members"}"#,
        r#"{"type":"join_room","roomId":7}"#,
        r#"{"type":"join_room","roomId":"r","echo":"yes"}"#,
        r#"{"type":"join_room","roomId":"r","members":1}"#,
        r#"{"type":"room_message","roomId":"r"}"#,
        r#"{"type":"room_message","data":1}"#,
        r#"{"type":"user_message","data":1}"#,
        r#"{"type":"user_message","targetUserId":"u"}"#,
        r#"{"type":"user_message","targetUserId":1,"data":1}"#,
        r#"{"type":"user_message","targetUserId":"","data":1}"#,
        r#"{"type":"global_message"}"#,
        r#"{"type":"authenticate"}"#,
        r#"{"type":"authenticate","token":1}"#,
    ] {
        refused(&server, text, "invalid_message");
    }
}

#[test]
fn unknown_type() {
    let server = Server::start(&[]);
    for kind in ["x", "", "PING", "room_joined", "connection_established", "error"] {
        refused(&server, &json!({"type": kind}).to_string(), "unknown_type");
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server);
    client.send(&json!({"type": "join_room", "roomId": "r", "color": "red", "x": {"y": [1, 2, {}]}}));
    client.expect("room_joined");
}

#[test]
fn invalid_room() {
    let server = Server::start(&[]);
    let long = "x".repeat(129);
    for room in
        ["", " ", "a b", "a/b", "*", "{}", "a\0", "a\r\nb", "tisch-ä", "\u{202e}a", "r?", long.as_str()]
    {
        for kind in ["join_room", "leave_room", "room_message", "room_members"] {
            refused(&server, &json!({"type": kind, "roomId": room, "data": 1}).to_string(), "invalid_room");
        }
    }
}

#[test]
fn not_in_room() {
    let server = Server::start(&[]);
    let mut member = Client::connect(&server);
    member.join("r");
    for kind in ["leave_room", "room_message", "room_members"] {
        let of_a_room =
            refused(&server, &json!({"type": kind, "roomId": "r", "data": 1}).to_string(), "not_in_room");
        let of_none =
            refused(&server, &json!({"type": kind, "roomId": "q", "data": 1}).to_string(), "not_in_room");
        let (a, b) = (of_a_room.to_string(), of_none.to_string());
        assert_eq!(a.replace("\"r\"", "").replace("\"q\"", ""), b.replace("\"r\"", "").replace("\"q\"", ""));
    }
    member.drain().iter().for_each(|event| assert_ne!(event["type"], "room_message", "{}", event.text));
}

#[test]
fn unauthenticated() {
    let server = Server::start(&token::REQUIRED);
    let mut client = Client::connect(&server);
    for request in [
        json!({"type": "join_room", "roomId": "r"}),
        json!({"type": "leave_room", "roomId": "r"}),
        json!({"type": "room_message", "roomId": "r", "data": 1}),
        json!({"type": "room_members", "roomId": "r"}),
        json!({"type": "user_message", "targetUserId": "u", "data": 1}),
        json!({"type": "global_message", "data": 1}),
    ] {
        client.expect_refused(request, "unauthenticated");
    }
    let success = client.request(json!({"type": "authenticate", "token": token::of("ann")}));
    assert_eq!(success["type"], "authentication_success", "{}", success.text);
}

#[test]
fn forbidden() {
    let server = Server::start(&[]);
    refused(&server, r#"{"type":"global_message","data":1}"#, "forbidden");
}

#[test]
fn too_many_rooms() {
    let server = Server::start(&[("MAX_ROOMS_PER_CONNECTION", "3")]);
    let mut client = Client::connect(&server);
    for room in ["a", "b", "c"] {
        client.join(room);
    }
    client.expect_refused(json!({"type": "join_room", "roomId": "d"}), "too_many_rooms");
    client.join("a");
    client.leave("b");
    client.join("d");
}

#[test]
fn too_many_rooms_counts_joins_that_are_still_under_way() {
    let server = Server::start(&[("MAX_ROOMS_PER_CONNECTION", "3"), ("SHARDS", "4")]);
    let mut client = Client::connect(&server);
    let ids = ["a", "b", "c", "d", "e"].map(|room| client.ask(json!({"type": "join_room", "roomId": room})));
    let replies = ids.map(|id| client.reply_to(&id)["type"].clone());
    assert_eq!(
        replies,
        ["room_joined", "room_joined", "room_joined", "error", "error"].map(|kind| json!(kind))
    );
}

#[test]
fn rate_limited() {
    let server = Server::start(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "5")]);
    let mut client = Client::connect(&server);
    let ids: Vec<_> = (0..20).map(|_| client.ask(json!({"type": "ping"}))).collect();
    let replies: Vec<_> = ids.iter().map(|id| client.reply_to(id)).collect();
    assert!(replies[..5].iter().all(|reply| reply["type"] == "pong"), "the burst is granted: {replies:#?}");
    let refused: Vec<_> = replies.iter().filter(|reply| reply["code"] == "rate_limited").collect();
    assert!(refused.len() >= 10, "what is over the rate is refused: {replies:#?}");
    for reply in refused {
        let wait = reply["retryAfterMs"].as_u64().unwrap_or_default();
        assert!((1..=20_000).contains(&wait), "{}", reply.text);
    }
}

#[test]
fn without_history_there_is_none_to_read_and_nothing_to_recover() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server);
    let since = json!({"epoch": "x", "offset": 7});
    let joined = client.join_with(json!({"type": "join_room", "roomId": "r", "since": since}));
    assert_eq!(joined["recovered"], false, "never a silent gap: {}", joined.text);
    client.expect_refused(json!({"type": "room_history", "roomId": "r"}), "unavailable");
}
