//! Who a client is: tokens by header, by query and by message, and anonymous users.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::http;
use crate::harness::raw::{RawSocket, UPGRADE};
use crate::harness::server::Server;
use crate::harness::token::{self, REQUIRED, SECRET, seconds_from_now};

with_one_shard_and_four!(a_token_is_taken_by_header_by_query_and_by_message);

fn a_token_is_taken_by_header_by_query_and_by_message(shards: usize) {
    let shards = shards.to_string();
    let server = Server::start(&[&REQUIRED[..], &[("SHARDS", &shards)]].concat());
    let by_header = Client::connect_as(&server, &token::of("ann"));
    let query = format!("/ws?token={}", token::of("bob"));
    let by_query = Client::open(server.port, &query, &[]).expect("the server takes the token");
    assert_eq!((&*by_header.user_id, &*by_query.user_id), ("ann", "bob"));

    let mut by_message = Client::connect(&server);
    let exp = seconds_from_now(600);
    let token = token::with_claims(json!({"sub": "carol", "exp": exp}));
    let success = by_message.request(json!({"type": "authenticate", "token": token}));
    assert_eq!(success["type"], "authentication_success", "{}", success.text);
    assert_eq!(success["userId"], "carol", "{}", success.text);
    assert_eq!(success["expiresAt"], exp * 1000, "milliseconds, as every time: {}", success.text);
    by_message.join("r");
    let mut ann = by_header;
    let listed = ann.join_with(json!({"type": "join_room", "roomId": "r", "members": true}));
    assert!(listed.text.contains("\"carol\""), "{}", listed.text);
}

#[test]
fn a_token_is_taken_from_the_list_of_subprotocols_and_never_sent_back() {
    let server = Server::start(&[&REQUIRED[..], &[("LOG_LEVEL", "trace")]].concat());
    let token = token::of("ann");
    for (list, answer) in [
        (format!("tableforge, {token}"), Some("tableforge")),
        (format!("{token}, tableforge"), Some("tableforge")),
        (format!("tableforge, bearer.{token}"), Some("tableforge")),
        (format!("access_token, {token}"), Some("access_token")),
        (format!("bearer.{token}"), None),
    ] {
        let mut socket = RawSocket::connect(server.port);
        let line = format!("Host: localhost\r\nSec-WebSocket-Protocol: {list}\r\n");
        socket.send(UPGRADE.replace("Host: localhost\r\n", &line).as_bytes());
        let response = socket.response();
        assert_eq!((response.status, response.header("sec-websocket-protocol")), (101, answer), "{list}");
        assert_eq!(socket.event()["userId"], "ann", "{list}");
    }
    for bad in ["bearer.nonsense", "tableforge, eyJ0.eyJ1.c2ln"] {
        let refused = Client::open(server.port, "/ws", &[("sec-websocket-protocol", bad)]);
        assert_eq!(refused.err(), Some(401), "{bad}");
    }
    let twice = format!("{token}, bearer.{token}");
    assert_eq!(Client::open(server.port, "/ws", &[("sec-websocket-protocol", &twice)]).err(), Some(400));
    let shown = server.process.output() + &http::get(server.port, "/metrics").body;
    assert!(!shown.contains(&token), "the token is in a log or metric");
}

/// Tokens that no server may take, each with what is wrong with it.
fn bad_tokens() -> Vec<(&'static str, String)> {
    let claims = |exp: i64| json!({"sub": "mallory", "exp": seconds_from_now(exp)});
    let with = |claims: Value| token::sign(&claims, Algorithm::HS256, SECRET);
    let good = token::of("mallory");
    let (signed, _) = good.rsplit_once('.').expect("a token has three parts");
    let unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJtYWxsb3J5IiwiZXhwIjo0MTAyNDQ0ODAwfQ.";
    vec![
        ("nonsense", "nonsense".to_owned()),
        ("empty", String::new()),
        (
            "of another secret",
            token::sign(&claims(60), Algorithm::HS256, "another secret, also longer than 32 bytes"),
        ),
        ("expired", token::sign(&claims(-60), Algorithm::HS256, SECRET)),
        ("without a signature", format!("{signed}.")),
        ("with alg none", unsigned.to_owned()),
        ("without exp", with(json!({"sub": "mallory"}))),
        ("without sub", with(json!({"exp": seconds_from_now(60)}))),
        ("with an empty sub", with(json!({"sub": "", "exp": seconds_from_now(60)}))),
        ("with exp as text", with(json!({"sub": "mallory", "exp": "4102444800"}))),
        (
            "not yet valid",
            with(json!({"sub": "m", "exp": seconds_from_now(99), "nbf": seconds_from_now(60)})),
        ),
    ]
}

#[test]
fn a_bad_token_is_refused_with_401_before_the_upgrade() {
    let server = Server::start(&REQUIRED);
    for (what, token) in bad_tokens() {
        let bearer = format!("Bearer {token}");
        let by_header = Client::open(server.port, "/ws", &[("authorization", &bearer)]);
        assert_eq!(by_header.err(), Some(401), "a token {what}, by header");
        let by_query = Client::open(server.port, &format!("/ws?token={token}"), &[]);
        assert_eq!(by_query.err(), Some(401), "a token {what}, by query");
    }
    let basic = Client::open(server.port, "/ws", &[("authorization", "Basic YTpi")]);
    assert_eq!(basic.err(), Some(401), "another scheme than Bearer");
}

#[test]
fn a_bad_token_in_a_message_closes_with_4500() {
    let server = Server::start(&REQUIRED);
    for (what, token) in bad_tokens().into_iter().filter(|(_, token)| !token.is_empty()) {
        let mut client = Client::connect(&server);
        client.send(&json!({"type": "authenticate", "token": token}));
        assert_eq!(client.expect_close(), 4500, "a token {what}");
    }
}

#[test]
fn issuer_and_audience_are_checked_when_set() {
    let more = [("JWT_ISSUER", "https://issuer.example"), ("JWT_AUDIENCE", "tables")];
    let server = Server::start(&[&REQUIRED[..], &more].concat());
    let status = |claims: Value| {
        let bearer = format!("Bearer {}", token::with_claims(claims));
        Client::open(server.port, "/ws", &[("authorization", &bearer)]).err()
    };
    let (iss, aud) = ("https://issuer.example", "tables");
    assert_eq!(status(json!({"sub": "ann", "iss": iss, "aud": aud})), None);
    assert_eq!(status(json!({"sub": "ann", "iss": iss, "aud": ["other", aud]})), None);
    assert_eq!(status(json!({"sub": "ann", "iss": "https://evil.example", "aud": aud})), Some(401));
    assert_eq!(status(json!({"sub": "ann", "iss": iss, "aud": "chairs"})), Some(401));
    assert_eq!(status(json!({"sub": "ann", "aud": aud})), Some(401), "no iss");
    assert_eq!(status(json!({"sub": "ann", "iss": iss})), Some(401), "no aud");
}

#[test]
fn who_does_not_authenticate_in_time_is_closed_with_4501() {
    let server = Server::start(&[&REQUIRED[..], &[("AUTHENTICATION_TIMEOUT", "300")]].concat());
    let mut silent = Client::connect(&server);
    assert_eq!(silent.expect_close(), 4501);
    let mut talker = Client::connect(&server);
    talker.expect_refused(json!({"type": "join_room", "roomId": "r"}), "unauthenticated");
    assert_eq!(talker.expect_close(), 4501, "talking is not authenticating");
}

#[test]
fn a_renewed_token_keeps_the_connection_and_its_rooms() {
    let server = Server::start(&REQUIRED);
    let first = token::with_claims(json!({"sub": "ann", "exp": seconds_from_now(60)}));
    let mut ann = Client::connect_as(&server, &first);
    let mut bob = Client::connect_as(&server, &token::of("bob"));
    ann.join("r");
    bob.join("r");
    let success = ann.request(json!({"type": "authenticate", "token": token::of("ann")}));
    assert_eq!((&success["type"], &success["userId"]), (&json!("authentication_success"), &json!("ann")));
    bob.say("r", "still here?");
    ann.expect_said("r", "still here?");
}

#[test]
fn a_token_that_runs_out_closes_with_4001() {
    let server = Server::start(&[&REQUIRED[..], &[("TOKEN_LEEWAY", "0")]].concat());
    let short = token::with_claims(json!({"sub": "ann", "exp": seconds_from_now(2)}));
    let mut ann = Client::connect_as(&server, &short);
    let mut renews = Client::connect_as(&server, &short);
    let success = renews.request(json!({"type": "authenticate", "token": token::of("ann")}));
    assert_eq!(success["type"], "authentication_success", "{}", success.text);
    assert_eq!(ann.expect_close(), 4001);
    let pong = renews.request(json!({"type": "ping"}));
    assert_eq!(pong["type"], "pong", "who renewed in time stays");
}

#[test]
fn the_rooms_claim_says_what_is_allowed_where() {
    let server = Server::start(&REQUIRED);
    let rooms = json!({"table-*": ["join", "publish"], "table-9": ["members"], "lobby": ["join"]});
    let mut ann = Client::connect_as(&server, &token::with_claims(json!({"sub": "ann", "rooms": rooms})));
    let mut bob = Client::connect_as(&server, &token::of("bob"));
    for room in ["table-1", "table-9", "lobby"] {
        bob.join(room);
        ann.join(room);
    }
    for room in ["lobby-2", "tables", "Lobby"] {
        ann.expect_refused(json!({"type": "join_room", "roomId": room}), "forbidden");
    }
    ann.say("table-1", "allowed");
    bob.expect_said("table-1", "allowed");
    ann.expect_refused(json!({"type": "room_message", "roomId": "lobby", "data": 1}), "forbidden");
    ann.expect_refused(json!({"type": "room_members", "roomId": "table-1"}), "forbidden");
    ann.expect_refused(json!({"type": "join_room", "roomId": "lobby", "members": true}), "forbidden");
    let listed = ann.request(json!({"type": "room_members", "roomId": "table-9"}));
    assert_eq!(listed["type"], "room_members", "what several patterns grant adds up: {}", listed.text);
    bob.assert_none("room_message");
}

#[test]
fn a_token_of_another_user_does_not_renew() {
    let server = Server::start(&REQUIRED);
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    let reply = ann.request(json!({"type": "authenticate", "token": token::of("bob")}));
    assert_eq!(reply["type"], "error", "{}", reply.text);
}

#[test]
fn where_anonymous_users_are_allowed_tokens_still_name_users() {
    let server = Server::start(&[("AUTH_REQUIRED", "false"), ("JWT_SECRET", SECRET)]);
    let anonymous = Client::connect(&server);
    let ann = Client::connect_as(&server, &token::of("ann"));
    assert!(!anonymous.user_id.is_empty());
    assert_eq!(ann.user_id, "ann");
    let refused = Client::open(server.port, "/ws", &[("authorization", "Bearer nonsense")]);
    assert_eq!(refused.err(), Some(401), "a bad token is never taken for none");
}
