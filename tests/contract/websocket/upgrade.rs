//! The upgrade: what is taken, and the HTTP answer to what is not.

use crate::harness::client::Client;
use crate::harness::http;
use crate::harness::raw::{self, FIN, RawSocket, TEXT, UPGRADE};
use crate::harness::server::Server;

/// The status of the answer to `request`.
#[track_caller]
fn status(server: &Server, request: &str) -> u16 {
    http::exchange(server.port, request.as_bytes()).unwrap_or_else(|why| panic!("{why}: {request}")).status
}

#[test]
fn the_handshake_answers_the_key_of_the_rfc() {
    let server = Server::start(&[]);
    let mut socket = RawSocket::connect(server.port);
    socket.send(UPGRADE.as_bytes());
    let response = socket.response();
    assert_eq!(response.status, 101);
    // RFC 6455 section 1.3 has this key and this answer.
    assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(response.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")));
    assert!(response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
    assert_eq!(response.header("sec-websocket-extensions"), None, "none was offered");
    assert_eq!(response.header("sec-websocket-protocol"), None, "none was offered");
    assert_eq!(socket.event()["type"], "connection_established");
}

#[test]
fn header_names_and_tokens_are_case_insensitive_and_lists_are_searched() {
    let server = Server::start(&[]);
    let request = UPGRADE
        .replace("Upgrade: websocket", "UPGRADE: WebSocket")
        .replace("Connection: Upgrade", "connection:keep-alive, uPgRaDe");
    assert_eq!(status(&server, &request), 101);
}

#[test]
fn an_extension_that_is_not_supported_is_not_answered() {
    let server = Server::start(&[]);
    let request = UPGRADE.replace("Host:", "Sec-WebSocket-Extensions: x-webkit-deflate-frame\r\nHost:");
    let response = http::exchange(server.port, request.as_bytes()).expect("an answer");
    assert_eq!((response.status, response.header("sec-websocket-extensions")), (101, None));
}

#[test]
fn a_request_may_come_in_pieces_and_with_the_first_message_behind_it() {
    let server = Server::start(&[]);
    for size in [1, 10, 10_000] {
        let mut socket = RawSocket::connect(server.port);
        let message = raw::frame(FIN | TEXT, br#"{"type":"ping"}"#);
        let bytes = [UPGRADE.as_bytes(), &message].concat();
        bytes.chunks(size).for_each(|piece| socket.send(piece));
        assert_eq!(socket.response().status, 101);
        assert_eq!(socket.event()["type"], "connection_established");
        assert_eq!(socket.event()["type"], "pong");
    }
}

#[test]
fn malformed_requests_get_400() {
    let server = Server::start(&[]);
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (what, request) in [
        ("no HTTP", "HELLO\r\n\r\n".to_owned()),
        ("a bad header", UPGRADE.replace("Host: localhost", "Host localhost")),
        ("no Host", UPGRADE.replace("Host: localhost\r\n", "")),
        ("Host twice", UPGRADE.replace("Host: localhost\r\n", "Host: localhost\r\nHost: localhost\r\n")),
        ("no key", UPGRADE.replace(key, "")),
        ("the key twice", UPGRADE.replace(key, &format!("{key}{key}"))),
        ("a key of 3 bytes", UPGRADE.replace("dGhlIHNhbXBsZSBub25jZQ==", "YWJj")),
        ("no base64", UPGRADE.replace("dGhlIHNhbXBsZSBub25jZQ==", "???lIHNhbXBsZSBub25jZQ==")),
        ("a space in the path", UPGRADE.replace("/ws", "/w s")),
    ] {
        assert_eq!(status(&server, &request), 400, "{what}");
    }
}

#[test]
fn a_path_that_is_not_there_gets_404_and_another_method_405() {
    let server = Server::start(&[]);
    for path in ["/no-such-path", "/ws/", "/wsx", "/%77s", "/apis/v1"] {
        assert_eq!(http::get(server.port, path).status, 404, "{path}");
        assert_eq!(status(&server, &UPGRADE.replace("/ws", path)), 404, "upgrade at {path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = UPGRADE.replace("GET", method);
        let response = http::exchange(server.port, request.as_bytes()).expect("an answer");
        assert_eq!(response.status, 405, "{method}");
        assert!(response.header("allow").is_some_and(|allowed| allowed.contains("GET")), "{response:?}");
    }
    let health = http::send_json(server.port, "POST", "/health", "{}").expect("an answer");
    assert_eq!(health.status, 405);
}

#[test]
fn another_version_and_no_upgrade_get_426() {
    let server = Server::start(&[]);
    for version in ["Sec-WebSocket-Version: 12\r\n", "Sec-WebSocket-Version: x\r\n", ""] {
        let request = UPGRADE.replace("Sec-WebSocket-Version: 13\r\n", version);
        let response = http::exchange(server.port, request.as_bytes()).expect("an answer");
        assert_eq!(response.status, 426, "{version}");
        assert_eq!(response.header("sec-websocket-version"), Some("13"), "RFC 6455 section 4.4");
    }
    let response = http::get(server.port, "/ws");
    assert_eq!(response.status, 426, "a plain GET");
    assert!(
        response.header("upgrade").is_some_and(|to| to.eq_ignore_ascii_case("websocket")),
        "{response:?}"
    );
}

#[test]
fn too_many_or_too_long_headers_get_431() {
    let server = Server::start(&[]);
    let with = |headers: &str| UPGRADE.replace("Host:", &format!("{headers}Host:"));
    let many: String = (0..125).map(|number| format!("X-{number}: y\r\n")).collect();
    assert_eq!(status(&server, &with(&many)), 431, "125 headers");
    let mut socket = RawSocket::connect(server.port);
    // The server answers before it has read all of it.
    let _ = socket.try_send(with(&format!("X: {}\r\n", "y".repeat(70_000))).as_bytes());
    assert_eq!(socket.response().status, 431, "a header of 70,000 bytes");
    let fifty: String = (0..50).map(|number| format!("X-{number}: y\r\n")).collect();
    assert_eq!(status(&server, &with(&fifty)), 101, "56 headers");
}

#[test]
fn a_request_that_is_not_complete_in_time_gets_408() {
    let server = Server::start(&[("HANDSHAKE_TIMEOUT", "300")]);
    let mut silent = RawSocket::connect(server.port);
    let mut dripping = RawSocket::connect(server.port);
    dripping.send(&UPGRADE.as_bytes()[..40]);
    assert_eq!(dripping.response().status, 408);
    // One that has sent nothing may be closed without an answer; it must not stay.
    silent.assert_ends();
    Client::connect(&server).join("r");
}

#[test]
fn dripping_bytes_does_not_extend_the_time() {
    let server = Server::start(&[("HANDSHAKE_TIMEOUT", "500")]);
    let mut socket = RawSocket::connect(server.port);
    let mut header = b"GET /ws HTTP/1.1\r\nX: ".to_vec();
    header.extend(std::iter::repeat_n(b'y', 400));
    // 400 bytes at 50 ms are 20 s: only an answer on the way ends this in time.
    let answered = header.iter().any(|byte| {
        let gone = socket.try_send(&[*byte]).is_err();
        gone || socket.has_answer_within(std::time::Duration::from_millis(50))
    });
    assert!(answered, "the server waited for all of it");
}

#[test]
fn foreign_origins_get_403_when_origins_are_listed() {
    let server = Server::start(&[("ALLOWED_ORIGINS", "https://good.example,https://also.example")]);
    let from =
        |origin: &str| status(&server, &UPGRADE.replace("Host:", &format!("Origin: {origin}\r\nHost:")));
    assert_eq!(from("https://good.example"), 101);
    assert_eq!(from("https://also.example"), 101);
    for origin in
        ["https://bad.example", "null", "https://good.example.evil", "http://good.example", "good.example"]
    {
        assert_eq!(from(origin), 403, "{origin}");
    }
    assert_eq!(status(&server, UPGRADE), 101, "no browser, no Origin");
}

#[test]
fn a_full_server_answers_503_with_retry_after() {
    let server = Server::start(&[("WS_MAX_CONNECTIONS", "2")]);
    let first = Client::connect(&server);
    let _second = Client::connect(&server);
    let response = http::exchange(server.port, UPGRADE.as_bytes()).expect("an answer");
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()), "{response:?}");
    assert_eq!(http::get(server.port, "/ready").status, 503, "a full server is not ready");
    assert_eq!(http::get(server.port, "/health").status, 200, "but healthy");
    first.close();
    crate::harness::eventually("there is room again", || Client::open(server.port, "/ws", &[]).ok());
}
