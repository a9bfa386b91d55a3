//! Tokens that must not work, at the upgrade and in `authenticate`; and what comes of the ones that do.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use jsonwebtoken::{Algorithm, EncodingKey};
use rustix::process::Signal;
use serde_json::{Map, Value, json};

use crate::arena::{Arena, connect};
use crate::harness::client::Client;
use crate::harness::http;
use crate::harness::process::Process;
use crate::harness::raw::{RawSocket, UPGRADE};
use crate::harness::redis::RedisServer;
use crate::harness::server::{Server, command};
use crate::harness::token::{self, REQUIRED, SECRET, seconds_from_now};
use crate::harness::{eventually, free_port};

/// A server that wants tokens, with a healthy pair that has them.
#[track_caller]
fn arena(settings: &[(&str, &str)]) -> Arena {
    let server = Server::start(&[&REQUIRED[..], settings].concat());
    let pair = ["ann", "bob"].map(|user| Client::connect_as(&server, &token::of(user)));
    Arena::around(server, pair)
}

/// The upgrade request with `token` in the query.
fn upgrade_with(token: &str) -> String {
    UPGRADE.replace("/ws", &format!("/ws?token={token}"))
}

/// Good claims, changed as given; `null` takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({"sub": "mallory", "exp": seconds_from_now(600)});
    for (name, value) in changes.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    let kept: Map<_, _> = claims
        .as_object()
        .expect("an object")
        .clone()
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .collect();
    kept.into()
}

/// Base64 for URLs, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().chain(&[0; 2]).take(3).fold(0, |word, byte| word << 8 | usize::from(*byte));
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[word >> (18 - 6 * digit) & 63]));
        }
    }
    text
}

/// A token with good claims whose header is `header`, rightly signed with HS256.
fn with_header(header: Value) -> String {
    let signed = format!(
        "{}.{}",
        base64url(header.to_string().as_bytes()),
        base64url(claims(json!({})).to_string().as_bytes())
    );
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature =
        jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    format!("{signed}.{signature}")
}

/// Every token that must not work, and what is wrong with it.
fn bad_tokens() -> Vec<(&'static str, String)> {
    let signed = |changes: Value| token::sign(&claims(changes), Algorithm::HS256, SECRET);
    let good = signed(json!({}));
    let (unsigned, _) = good.rsplit_once('.').expect("three parts");
    let good_claims = base64url(claims(json!({})).to_string().as_bytes());
    let none =
        |alg: &str| format!("{}.{good_claims}.", base64url(json!({"alg": alg}).to_string().as_bytes()));
    vec![
        ("nothing", String::new()),
        ("no token", "a.b.c".to_owned()),
        ("one part", base64url(b"{}")),
        ("9,000 bytes", "x".repeat(9_000)),
        ("alg none", none("none")),
        ("alg None", none("None")),
        ("alg nOnE", none("nOnE")),
        ("no signature", format!("{unsigned}.")),
        ("two parts", unsigned.to_owned()),
        (
            "a foreign key",
            token::sign(&claims(json!({})), Algorithm::HS256, "another secret, also longer than 32 bytes"),
        ),
        ("HS512", token::sign(&claims(json!({})), Algorithm::HS512, SECRET)),
        ("HS384", token::sign(&claims(json!({})), Algorithm::HS384, SECRET)),
        ("RS256 over HMAC", with_header(json!({"alg": "RS256"}))),
        ("crit", with_header(json!({"alg": "HS256", "crit": ["x"], "x": 1}))),
        ("jwk", with_header(json!({"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}}))),
        ("jku", with_header(json!({"alg": "HS256", "jku": "http://127.0.0.1:9/keys"}))),
        ("kid with a path", with_header(json!({"alg": "HS256", "kid": "../../dev/null"}))),
        ("no alg", with_header(json!({"typ": "JWT"}))),
        ("expired for 6 s", signed(json!({"exp": seconds_from_now(-6)}))),
        ("no exp", signed(json!({"exp": null}))),
        ("exp in text", signed(json!({"exp": seconds_from_now(600).to_string()}))),
        ("exp below zero", signed(json!({"exp": -1}))),
        ("not valid yet", signed(json!({"nbf": seconds_from_now(60)}))),
        ("nbf in text", signed(json!({"nbf": "0"}))),
        ("no sub", signed(json!({"sub": null}))),
        ("an empty sub", signed(json!({"sub": ""}))),
        ("a sub of 257 bytes", signed(json!({"sub": "x".repeat(257)}))),
        ("a sub that is a number", signed(json!({"sub": 7}))),
        ("rooms that are a list", signed(json!({"rooms": ["a"]}))),
        ("permissions that are text", signed(json!({"permissions": "admin"}))),
    ]
}

#[test]
fn the_headers_of_these_tests_are_signed_rightly() {
    let mut arena = arena(&[]);
    let token = with_header(json!({"alg": "HS256", "typ": "JWT"}));
    assert!(Client::open(arena.port(), &format!("/ws?token={token}"), &[]).is_ok());
    arena.assert_healthy("a good token");
    arena.assert_restored();
}

#[test]
fn bad_tokens_are_refused_at_the_upgrade_and_in_authenticate_and_never_shown() {
    let mut arena = arena(&[("LOG_LEVEL", "trace")]);
    let tokens = bad_tokens();
    for (what, token) in &tokens {
        let response = http::exchange(arena.port(), upgrade_with(token).as_bytes()).expect("an answer");
        assert_eq!(response.status, 401, "{what}");
        arena.note_end(401);
        let shows = |text: &str| !token.is_empty() && text.contains(token);
        assert!(!shows(&response.body), "{what}: the answer repeats the token");
        let mut socket = unauthenticated(&arena);
        socket.send_text(&json!({"type": "authenticate", "token": token, "messageId": "1"}).to_string());
        let error = socket.event();
        assert_eq!((&error["code"], &error["messageId"]), (&json!("unauthenticated"), &json!("1")), "{what}");
        assert!(!shows(&error.to_string()), "{what}: the error repeats the token");
        assert_eq!(socket.expect_close(), 4500, "{what}");
        arena.note_end(4500);
        arena.assert_healthy(what);
    }
    let metrics = http::get(arena.port(), "/metrics").body;
    let output = arena.server.process.output();
    for (what, token) in tokens.iter().filter(|(_, token)| token.len() > 10) {
        let secret = token.split('.').nth(1).unwrap_or(token);
        assert!(
            !output.contains(secret) && !metrics.contains(secret),
            "{what}: the token is in a log or metric"
        );
    }
    arena.assert_restored();
}

/// An open connection without a user.
#[track_caller]
fn unauthenticated(arena: &Arena) -> RawSocket {
    let (mut socket, _) = connect(arena.port());
    crate::arena::upgrade(&mut socket);
    socket
}

#[test]
fn a_token_without_the_audience_is_refused() {
    let server = Server::start(&[&REQUIRED[..], &[("JWT_AUDIENCE", "tables")]].concat());
    let with = |audience: Value| token::with_claims(json!({"sub": "ann", "aud": audience}));
    let pair = [(); 2].map(|()| Client::connect_as(&server, &with(json!("tables"))));
    let mut arena = Arena::around(server, pair);
    for audience in [json!("chairs"), json!(["chairs"]), json!(""), json!(7), Value::Null] {
        let request = upgrade_with(&with(audience.clone()));
        let response = http::exchange(arena.port(), request.as_bytes()).expect("an answer");
        assert_eq!(response.status, 401, "{audience}");
        arena.note_end(401);
        arena.assert_healthy("a wrong audience");
    }
    arena.assert_restored();
}

#[test]
fn a_secret_that_is_too_short_is_no_start() {
    let port = free_port();
    let settings = [("AUTH_REQUIRED", "true"), ("JWT_SECRET", "31 bytes are one byte too short")];
    let mut process = Process::start("tableforge", &mut command("serve", port, &settings));
    assert!(!process.wait().success());
    let output = process.output();
    assert!(output.contains("JWT_SECRET") && output.contains("32"), "{output}");
    assert!(!output.contains(settings[1].1), "the secret is shown: {output}");
}

#[test]
fn who_only_talks_and_never_authenticates_is_closed_with_4501() {
    let mut arena = arena(&[("AUTHENTICATION_TIMEOUT", "500")]);
    let mut socket = unauthenticated(&arena);
    for request in ["join_room", "leave_room", "room_members"] {
        socket.send_text(&json!({"type": request, "roomId": "healthy", "messageId": "1"}).to_string());
        assert_eq!(socket.event()["code"], "unauthenticated", "{request}");
    }
    assert_eq!(socket.expect_close(), 4501);
    arena.note_end(4501);
    arena.assert_healthy("idleness");
    arena.assert_restored();
}

#[test]
fn nothing_is_delivered_after_a_token_has_expired() {
    let mut arena = arena(&[]);
    let token = token::with_claims(json!({"sub": "mallory", "exp": seconds_from_now(2)}));
    let (mut socket, _) = connect(arena.port());
    socket.send(upgrade_with(&token).as_bytes());
    assert_eq!(socket.response().status, 101);
    socket.send_text(r#"{"type":"join_room","roomId":"r"}"#);
    socket.expect("room_joined");
    let mut witness = Client::connect_as(&arena.server, &token::of("witness"));
    witness.join("r");
    assert_eq!(socket.expect_close(), 4001);
    arena.note_end(4001);
    witness.expect("user_left_room");
    drop((socket, witness));
    arena.assert_healthy("an expired token");
    arena.assert_restored();
}

#[test]
fn names_with_control_characters_arrive_escaped() {
    let mut arena = arena(&[]);
    let (user, name) = ("a\n\"\\\u{0}\u{202e}\u{1b}[31m<", "n\r\n\u{7}\"}\u{7f}");
    let token = token::with_claims(json!({"sub": user, "name": name}));
    let mut witness = Client::connect_as(&arena.server, &token::of("witness"));
    witness.join("r");
    let mut strange = Client::connect_as(&arena.server, &token);
    assert_eq!(strange.user_id, user);
    strange.join("r");
    strange.say("r", 1);
    let message = witness.expect_said("r", 1);
    assert_eq!(message["senderId"], user);
    let members = witness.request(json!({"type": "room_members", "roomId": "r"}));
    let shown =
        &members["members"].as_array().expect("a list").iter().find(|member| member["userId"] == user);
    assert_eq!(shown.expect("the strange member")["name"], name, "{}", members.text);
    for event in [message, members, witness.expect("user_joined_room")] {
        assert!(!event.text.contains(|c: char| c < ' '), "a raw control character: {:?}", event.text);
    }
    drop((strange, witness));
    arena.assert_healthy("a strange name");
    arena.assert_restored();
}

#[test]
fn a_forbidden_room_looks_like_one_that_does_not_exist() {
    let mut arena = arena(&[]);
    let token = token::with_claims(json!({"sub": "mallory", "rooms": {"own.*": ["join", "publish"]}}));
    let mut mallory = Client::connect_as(&arena.server, &token);
    for (kind, existing, invented) in [
        ("join_room", "healthy", "nowhere"),
        ("leave_room", "healthy", "nowhere"),
        ("room_message", "healthy", "nowhere"),
        ("room_members", "healthy", "nowhere"),
        ("room_history", "healthy", "nowhere"),
    ] {
        let answer = |client: &mut Client, room: &str| {
            client.send(&json!({"type": kind, "roomId": room, "data": 1, "messageId": "same"}));
            client.reply_to("same").text
        };
        assert_eq!(answer(&mut mallory, existing), answer(&mut mallory, invented), "{kind}");
    }
    drop(mallory);
    arena.assert_healthy("probing");
    arena.assert_restored();
}

#[test]
fn no_message_comes_before_the_greeting() {
    let server = Server::start(&[("JWT_SECRET", SECRET), ("SHARDS", "4")]);
    let pair = [(); 2].map(|()| Client::connect(&server));
    let mut arena = Arena::around(server, pair);
    let token = token::of("victim");
    // Others of the victim's connections, so that every shard has messages for it.
    let mut open: Vec<_> = (0..12).map(|_| Client::connect_as(&arena.server, &token)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sender = Client::connect(&arena.server);
            while !over.load(Relaxed) {
                let request = json!({"type": "user_message", "targetUserId": "victim", "data": 1});
                let _ = sender.request(request);
            }
        });
        for number in 0..300 {
            // Checks that the greeting is the first message.
            let newcomer = Client::connect_as(&arena.server, &token);
            let place = number % open.len();
            open[place] = newcomer;
        }
        over.store(true, Relaxed);
        sender.join().expect("the sender is answered");
    });
    drop(open);
    arena.assert_healthy("a busy user");
    arena.assert_restored();
}

#[test]
fn a_drain_while_tokens_are_refused_ends_well() {
    let arena = arena(&[]);
    let mut sockets: Vec<_> = (0..50).map(|_| unauthenticated(&arena)).collect();
    for socket in &mut sockets {
        socket.send_text(&json!({"type": "authenticate", "token": "a.b.c"}).to_string());
    }
    let (mut server, _pair) = arena.into_parts();
    server.process.signal(Signal::TERM);
    assert!(server.process.wait().success());
}

#[test]
fn a_user_is_disconnected_by_an_order_to_another_instance() {
    let redis = RedisServer::start();
    let settings = [&REQUIRED[..], &[("API_KEY", "the key of these tests")]].concat();
    let other = Server::in_cluster(&redis, "a", &settings);
    let server = Server::in_cluster(&redis, "b", &settings);
    let pair = ["ann", "bob"].map(|user| Client::connect_as(&server, &token::of(user)));
    let mut arena = Arena::around(server, pair);
    eventually("the instances know each other", || {
        (other.get_json("/stats")["totalInstances"] == 2).then_some(())
    });
    let mut mallory = Client::connect_as(&arena.server, &token::of("mallory"));
    let order = "POST /api/v1/users/mallory/disconnect HTTP/1.1\r\nHost: x\r\n\
                 X-API-Key: the key of these tests\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let answer = http::exchange(other.port, order.as_bytes()).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(mallory.expect_close(), 4503);
    arena.note_end(4503);
    drop(mallory);
    arena.assert_healthy("a disconnection");
    arena.assert_restored();
}
