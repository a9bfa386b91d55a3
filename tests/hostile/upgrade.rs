//! Hostile requests before the upgrade: each gets its HTTP status.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::arena::{Arena, allow_descriptors, connect};
use crate::harness::client::Client;
use crate::harness::http;
use crate::harness::raw::{FIN, RawSocket, TEXT, UPGRADE, frame};

const HOST: &str = "Host: localhost\r\n";
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

/// The upgrade request with `from` replaced, which must be in it.
#[track_caller]
fn with(from: &str, to: &str) -> Vec<u8> {
    assert!(UPGRADE.contains(from), "{from}");
    UPGRADE.replace(from, to).into_bytes()
}

/// The upgrade request with more header lines.
fn and(lines: &str) -> Vec<u8> {
    with(HOST, &format!("{HOST}{lines}"))
}

/// What is sent, in words and bytes, and the status that must come back.
type Row = (&'static str, Vec<u8>, u16);

/// A request was answered. What became a WebSocket has not ended by that.
fn note_status(arena: &mut Arena, status: u16) {
    if ![101, 200].contains(&status) {
        arena.note_end(status);
    }
}

#[track_caller]
fn assert_statuses(arena: &mut Arena, rows: &[Row]) {
    for (what, request, status) in rows {
        let mut socket = RawSocket::connect(arena.port());
        // The server may answer and close before it has taken all of it.
        let _ = socket.try_send(request);
        assert_eq!(socket.response().status, *status, "{what}");
        note_status(arena, *status);
        drop(socket);
        arena.assert_healthy(what);
    }
}

#[test]
fn malformed_requests() {
    let mut arena = Arena::start(&[]);
    assert_statuses(
        &mut arena,
        &[
            ("no HTTP", b"HELLO\r\n\r\n".to_vec(), 400),
            ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
            ("zeros", vec![0; 100], 400),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 400),
            ("HTTP/1.0", with("HTTP/1.1", "HTTP/1.0"), 505),
            ("NUL in the path", with("/ws", "/ws\0"), 400),
            ("no colon", with(HOST, "Host localhost\r\n"), 400),
            ("NUL in a header", and("X: a\0b\r\n"), 400),
            ("a space before a colon", and("X : a\r\n"), 400),
            ("a folded header", and("X: a\r\n b\r\n"), 400),
            ("no Host", with(HOST, ""), 400),
            ("an empty Host", with(HOST, "Host: \r\n"), 400),
            ("Host twice", and(HOST), 400),
            ("no key", with(KEY, ""), 400),
            ("the key twice", and(KEY), 400),
            ("a key of 3 bytes", with("dGhlIHNhbXBsZSBub25jZQ==", "YWJj"), 400),
            ("a key that is no base64", with("dGhl", "????"), 400),
            ("Authorization twice", and("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400),
        ],
    );
    arena.assert_restored();
}

#[test]
fn requests_for_something_else() {
    let mut arena = Arena::start(&[]);
    assert_statuses(
        &mut arena,
        &[
            ("POST", with("GET", "POST"), 405),
            ("a method nobody knows", with("GET", "BREW"), 405),
            ("another path", with("/ws", "/ws/../etc/passwd"), 404),
            ("an encoded path", with("/ws", "/%77%73"), 404),
            ("version 12", with(VERSION, "Sec-WebSocket-Version: 12\r\n"), 426),
            ("version 13 twice", and(VERSION), 426),
            ("no version", with(VERSION, ""), 426),
            ("no upgrade", with("Upgrade: websocket\r\n", ""), 426),
            ("an upgrade to h2c", with("Upgrade: websocket", "Upgrade: h2c"), 426),
            ("credentials that are no token", and("Authorization: Basic dXNlcjpwYXNz\r\n"), 401),
        ],
    );
    arena.assert_restored();
}

#[test]
fn large_heads() {
    let mut arena = Arena::start(&[]);
    let many = "X: y\r\n".repeat(125);
    assert_statuses(
        &mut arena,
        &[
            ("125 headers", and(&many), 431),
            ("a header of 70 KB", and(&format!("X: {}\r\n", "y".repeat(70_000))), 431),
            ("a path of 70 KB", with("/ws", &format!("/ws?{}", "y".repeat(70_000))), 431),
            ("70 KB without a line's end", vec![b'G'; 70_000], 431),
            ("60 headers", and(&"X: y\r\n".repeat(55)), 101),
        ],
    );
    arena.assert_restored();
}

#[test]
fn foreign_origins() {
    let mut arena = Arena::start(&[("ALLOWED_ORIGINS", "https://good.example")]);
    let origin = |origin: &str| and(&format!("Origin: {origin}\r\n"));
    assert_statuses(
        &mut arena,
        &[
            ("another site", origin("https://evil.example"), 403),
            ("a sandbox", origin("null"), 403),
            ("a longer name", origin("https://good.example.evil"), 403),
            ("a name before it", origin("https://evil.good.example"), 403),
            ("another scheme", origin("http://good.example"), 403),
            ("another port", origin("https://good.example:8443"), 403),
            ("nothing", origin(""), 403),
            ("a list", origin("https://good.example, https://evil.example"), 403),
            ("two", and("Origin: https://good.example\r\nOrigin: https://evil.example\r\n"), 403),
            ("the right one", origin("https://good.example"), 101),
        ],
    );
    arena.assert_restored();
}

#[test]
fn a_head_that_drips_gets_408_when_its_time_in_all_is_up() {
    let mut arena = Arena::start(&[]);
    let since = Instant::now();
    let mut socket = RawSocket::connect(arena.port());
    // 4,000 bytes at 20 ms are 80 s, and the test's own patience ends before that.
    let head = and(&format!("X: {}\r\n", "y".repeat(4_000)));
    let answered = head.iter().any(|byte| {
        let gone = socket.try_send(&[*byte]).is_err();
        gone || socket.has_answer_within(Duration::from_millis(20))
    });
    assert!(answered, "the server waited for all of it");
    assert_eq!(socket.response().status, 408);
    arena.note_end(408);
    assert!(since.elapsed() >= Duration::from_secs(5), "{:?}", since.elapsed());
    drop(socket);
    arena.assert_healthy("dripping");
    arena.assert_restored();
}

/// The default of `MAX_HANDSHAKES`.
const HALF_OPEN: usize = 4096;

#[test]
fn half_open_handshakes_are_bounded_and_newcomers_still_get_in() {
    const COUNT: usize = 5000;
    allow_descriptors(COUNT as u64 + 100);
    let mut arena = Arena::start(&[("HANDSHAKE_TIMEOUT", "2000")]);
    let mut sockets: Vec<_> = (0..COUNT)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", arena.port())).expect("the server accepts");
            stream.write_all(&UPGRADE.as_bytes()[..60]).expect("the connection is open");
            stream
        })
        .collect();
    arena.assert_healthy("with half-open handshakes");
    Client::connect(&arena.server).join("newcomers");
    let late = sockets.split_off(COUNT - HALF_OPEN);
    for stream in sockets {
        let response = RawSocket::over(stream).response();
        assert_eq!(response.status, 503, "the oldest make room");
        arena.note_end(503);
        assert!(response.header("retry-after").is_some(), "{response:?}");
    }
    for stream in late {
        // The newcomer has taken the place of one.
        let status = RawSocket::over(stream).response().status;
        assert!([408, 503].contains(&status), "{status}");
        arena.note_end(status);
    }
    arena.assert_restored();
}

#[test]
fn a_full_server_refuses_with_503_and_a_time_to_come_back() {
    let mut arena = Arena::start(&[("WS_MAX_CONNECTIONS", "3")]);
    let third = Client::connect(&arena.server);
    let response = http::exchange(arena.port(), UPGRADE.as_bytes()).expect("an answer");
    assert_eq!(response.status, 503);
    arena.note_end(503);
    assert!(response.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()), "{response:?}");
    arena.assert_healthy("when full");
    third.vanish();
    crate::harness::eventually("there is room again", || {
        Client::open(arena.port(), "/ws", &[]).map_err(|status| arena.note_end(status)).ok()
    });
    arena.assert_restored();
}

#[test]
fn frames_in_the_packet_of_the_head_are_answered_after_the_greeting() {
    let mut arena = Arena::start(&[]);
    let (mut socket, _) = connect(arena.port());
    let join = frame(FIN | TEXT, br#"{"type":"join_room","roomId":"r","messageId":"1"}"#);
    let leave = frame(FIN | TEXT, br#"{"type":"leave_room","roomId":"r","messageId":"2"}"#);
    socket.send(&[UPGRADE.as_bytes(), &join, &leave].concat());
    assert_eq!(socket.response().status, 101);
    for kind in ["connection_established", "room_joined", "room_left"] {
        assert_eq!(socket.event()["type"], kind);
    }
    drop(socket);
    arena.assert_healthy("pipelining");
    arena.assert_restored();
}

#[test]
fn a_client_that_closes_its_own_end_first_gets_its_answer() {
    let mut arena = Arena::start(&[]);
    for (what, request, status) in [
        ("health", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 200),
        ("a refusal", with(VERSION, ""), 426),
        ("an upgrade", UPGRADE.as_bytes().to_vec(), 101),
    ] {
        let (mut socket, stream) = connect(arena.port());
        socket.send(&request);
        stream.shutdown(Shutdown::Write).expect("the connection is open");
        assert_eq!(socket.response().status, status, "{what}");
        note_status(&mut arena, status);
        socket.assert_ends();
        arena.assert_healthy(what);
    }
    arena.assert_restored();
}
