//! Messages that other programs send over HTTP, and what they may ask about rooms.

use serde_json::json;

use super::{WITH_KEY, call, get, json_of, post};
use crate::harness::client::Client;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::token;

with_one_shard_and_four!(
    a_message_to_a_room_reaches_its_members,
    messages_to_a_user_and_to_everyone_arrive,
    a_room_is_described_and_its_members_listed,
);

fn server(shards: usize) -> Server {
    Server::start(&[&WITH_KEY[..], &token::REQUIRED[..], &[("SHARDS", &shards.to_string())]].concat())
}

fn a_message_to_a_room_reaches_its_members(shards: usize) {
    let server = server(shards);
    let mut members: Vec<_> =
        (0..6).map(|number| Client::connect_as(&server, &token::of(&format!("user-{number}")))).collect();
    for member in &mut members {
        member.join("table-1");
    }
    let body = r#"{"data": {"roll": 17.0}, "messageId":"m-1"}"#;
    assert_eq!(post(server.port, "/api/v1/rooms/table-1/messages", body), json!({}));
    for member in &mut members {
        let event = member.expect("room_message");
        assert_eq!((&event["roomId"], &event["senderId"]), (&json!("table-1"), &json!("server")));
        assert_eq!(event["messageId"], "m-1", "{}", event.text);
        assert_eq!(event.data(), r#"{"roll": 17.0}"#, "byte for byte");
    }
    post(server.port, "/api/v1/rooms/nobody-there/messages", r#"{"data":1}"#);
}

fn messages_to_a_user_and_to_everyone_arrive(shards: usize) {
    let server = server(shards);
    let mut ann = Client::connect_as(&server, &token::of("ann b/c"));
    let mut bob = Client::connect_as(&server, &token::of("bob"));
    assert_eq!(post(server.port, "/api/v1/users/ann%20b%2Fc/messages", r#"{"data":"hi"}"#), json!({}));
    assert_eq!(ann.expect("user_message")["data"], "hi");
    assert_eq!(post(server.port, "/api/v1/broadcast", r#"{"data":"all"}"#), json!({}));
    for client in [&mut ann, &mut bob] {
        let event = client.expect("global_message");
        assert_eq!((&event["senderId"], &event["data"]), (&json!("server"), &json!("all")));
    }
    bob.assert_none("user_message");
}

fn a_room_is_described_and_its_members_listed(shards: usize) {
    let server = server(shards);
    let claims = json!({"sub": "ann", "name": "Ann \"A\""});
    let mut ann = Client::connect_as(&server, &token::with_claims(claims));
    let mut bob = Client::connect_as(&server, &token::of("bob"));
    ann.join("r");
    bob.join("r");
    let room = get(server.port, "/api/v1/rooms/r");
    assert_eq!((&room["roomId"], &room["memberCount"]), (&json!("r"), &json!(2)), "{room}");
    assert_eq!(get(server.port, "/api/v1/rooms/empty")["memberCount"], 0);
    let listed = get(server.port, "/api/v1/rooms/r/members");
    let mut members = listed["members"].as_array().expect("a list").clone();
    members.sort_by_key(|member| member["userId"].to_string());
    let expected = json!([
        {"userId": "ann", "name": "Ann \"A\"", "socketId": ann.socket_id},
        {"userId": "bob", "socketId": bob.socket_id},
    ]);
    assert_eq!(json!(members), expected, "{listed}");
    ann.say("r", 1);
    bob.expect_said("r", 1);
    let rooms = get(server.port, "/api/v1/rooms");
    assert_eq!(rooms["rooms"], json!([{"roomId": "r", "connections": 2, "deliveries": 1}]), "{rooms}");
}

#[test]
fn a_message_over_http_reaches_other_instances() {
    let redis = RedisServer::start();
    let [a, b] = ["a", "b"].map(|id| Server::in_cluster(&redis, id, &WITH_KEY));
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("r");
    bob.join("r");
    post(a.port, "/api/v1/rooms/r/messages", r#"{"data":"from a"}"#);
    for client in [&mut ann, &mut bob] {
        client.expect_said("r", "from a");
    }
    post(b.port, "/api/v1/broadcast", r#"{"data":"from b"}"#);
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.expect("global_message")["data"], "from b");
    }
    let path = format!("/api/v1/users/{}/messages", bob.user_id);
    post(a.port, &path, r#"{"data":"to bob"}"#);
    assert_eq!(bob.expect("user_message")["data"], "to bob");
    assert_eq!(get(a.port, "/api/v1/rooms/r")["memberCount"], 2, "in the whole cluster");
}

#[test]
fn a_room_without_history_says_so() {
    let server = Server::start(&WITH_KEY);
    let answer = json_of(&call(server.port, "GET", "/api/v1/rooms/r/history", ""), 404);
    assert_eq!(answer["error"]["code"], "no_history", "{answer}");
}

#[test]
fn a_room_with_history_numbers_and_keeps_what_comes_over_http() {
    let server = Server::start(&[WITH_KEY[0], ("HISTORY_ROOMS", "kept-*"), ("SHARDS", "2")]);
    let mut ann = Client::connect(&server);
    ann.join("kept-1");
    let path = "/api/v1/rooms/kept-1/messages";
    assert_eq!(post(server.port, path, r#"{"data":1,"messageId":"m"}"#), json!({"offset": 1}));
    assert_eq!(post(server.port, path, r#"{"data":1,"messageId":"m"}"#), json!({"offset": 1}), "kept once");
    assert_eq!(post(server.port, path, r#"{"data":{"a": 2.0}}"#), json!({"offset": 2}));
    for offset in 1..=2 {
        assert_eq!(ann.expect("room_message")["offset"], offset);
    }
    let page = get(server.port, "/api/v1/rooms/kept-1/history");
    assert_eq!((&page["roomId"], &page["offset"]), (&json!("kept-1"), &json!(2)), "{page}");
    assert_eq!(page["messages"][1]["data"], json!({"a": 2.0}), "{page}");
    let epoch = page["epoch"].as_str().expect("an epoch");
    let newer = get(server.port, &format!("/api/v1/rooms/kept-1/history?epoch={epoch}&offset=1&limit=5"));
    assert_eq!(newer["messages"], json!([page["messages"][1]]), "{newer}");
}
