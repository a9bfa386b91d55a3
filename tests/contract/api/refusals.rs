//! Who is not let in, and what is no request.

use std::io::{BufReader, Write};
use std::net::TcpStream;

use serde_json::json;

use super::{KEY, WITH_KEY, call, call_as, json_of};
use crate::harness::http;
use crate::harness::server::Server;
use crate::harness::token;

const SECRET: (&str, &str) = ("JWT_SECRET", token::SECRET);

#[test]
fn a_key_or_an_admin_token_opens_it_and_nothing_else_does() {
    let server = Server::start(&[WITH_KEY[0], SECRET]);
    let admin = token::with_claims(json!({"sub": "root", "permissions": ["admin"]}));
    let expired = token::with_claims(json!({"sub": "root", "permissions": ["admin"], "exp": 1_000_000}));
    for (headers, status) in [
        (format!("Authorization: Bearer {KEY}\r\n"), 200),
        (format!("X-API-Key: {KEY}\r\n"), 200),
        (format!("Authorization: bearer {admin}\r\n"), 200),
        (String::new(), 401),
        (format!("Authorization: Bearer {KEY}x\r\n"), 401),
        (format!("Authorization: Basic {KEY}\r\n"), 401),
        ("X-API-Key: \r\n".to_owned(), 401),
        (format!("Authorization: Bearer {expired}\r\n"), 401),
        (format!("Authorization: Bearer {}\r\n", token::of("ann")), 403),
    ] {
        let answer = call_as(server.port, &headers, "GET", "/api/v1/instances", "");
        let json = json_of(&answer, status);
        assert_eq!(json["error"]["message"].is_string(), status != 200, "{headers}: {json}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{headers}");
    }
    assert_eq!(http::get(server.port, "/api/v1/nothing").status, 401, "routes are not told to strangers");
}

#[test]
fn a_key_may_be_given_as_its_hash_and_several_hold() {
    let hashed = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let server = Server::start(&[("API_KEY", &format!("other,{hashed}"))]);
    for (key, status) in [("hello", 200), ("other", 200), (hashed, 401)] {
        let answer = call_as(server.port, &format!("X-API-Key: {key}\r\n"), "GET", "/api/v1/bans", "");
        assert_eq!(answer.status, status, "{key}");
    }
}

#[test]
fn without_any_key_nobody_is_let_in() {
    let server = Server::start(&[]);
    assert_eq!(call(server.port, "GET", "/api/v1/instances", "").status, 401);
}

#[test]
fn what_is_no_request_is_refused_with_the_reason() {
    let server = Server::start(&WITH_KEY);
    let messages = "/api/v1/rooms/r/messages";
    let large = format!(r#"{{"data":"{}"}}"#, "x".repeat(70_000));
    for (method, path, body, status, code) in [
        ("GET", "/api/v1/nothing", "", 404, "not_found"),
        ("GET", messages, "", 405, "method_not_allowed"),
        ("DELETE", "/api/v1/instances", "", 405, "method_not_allowed"),
        ("POST", messages, "", 400, "invalid_request"),
        ("POST", messages, "{", 400, "invalid_json"),
        ("POST", messages, "[1]", 400, "invalid_message"),
        ("POST", messages, r#"{"data":1,"data":2}"#, 400, "invalid_json"),
        ("POST", messages, r#"{"messageId":"m"}"#, 400, "invalid_message"),
        ("POST", messages, &large, 413, "too_large"),
        ("POST", "/api/v1/rooms/a%20b/messages", r#"{"data":1}"#, 400, "invalid_room"),
        ("POST", "/api/v1/users/ann/ban", "{}", 400, "invalid_request"),
        ("POST", "/api/v1/users/ann/ban", r#"{"durationMs":-1}"#, 400, "invalid_request"),
        ("POST", "/api/v1/instances/nobody/drain", "", 404, "not_found"),
    ] {
        let answer = call(server.port, method, path, body);
        assert_eq!(json_of(&answer, status)["error"]["code"], code, "{method} {path}: {}", answer.body);
        assert_eq!(answer.header("allow").is_some(), status == 405);
    }
    let headers = format!("X-API-Key: {KEY}\r\nContent-Type: text/plain\r\n");
    let request =
        format!("POST {messages} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 10\r\n\r\n{{\"data\":1}}");
    assert_eq!(http::exchange(server.port, request.as_bytes()).expect("an answer").status, 415);
}

#[test]
fn a_body_may_come_in_pieces_and_has_a_deadline() {
    let server = Server::start(&[WITH_KEY[0], ("HANDSHAKE_TIMEOUT", "100")]);
    let head = format!(
        "POST /api/v1/broadcast HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 10\r\n\
         Expect: 100-continue\r\n\r\n"
    );
    let open = || {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
        stream.write_all(head.as_bytes()).expect("the head is sent");
        let mut stream = BufReader::new(stream);
        assert_eq!(http::read_response(&mut stream).expect("an interim answer").status, 100);
        stream
    };
    let mut pieces = open();
    for piece in [&b"{\"dat"[..], b"a\":", b"1}"] {
        pieces.get_mut().write_all(piece).expect("a piece is sent");
    }
    assert_eq!(http::read_response(&mut pieces).expect("an answer").status, 200);
    let mut slow = open();
    slow.get_mut().write_all(b"{").expect("a piece is sent");
    assert_eq!(http::read_response(&mut slow).expect("an answer").status, 408);
}
