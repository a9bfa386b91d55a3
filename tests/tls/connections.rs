//! Clients over TLS: everything that holds without it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use rustix::process::Signal;
use rustls::version;
use serde_json::json;

use crate::authority::Authority;
use crate::harness::{DEADLINE, eventually};
use crate::secured::{Client, Secured};

#[test]
fn clients_of_both_versions_talk_and_http_is_answered() {
    let server = Secured::start(&[("SHARDS", "2")]);
    let mut clients = Vec::new();
    for versions in [[&version::TLS12], [&version::TLS13]] {
        let stream = server.try_connect(&versions, &[b"h2", b"http/1.1"]).expect("TLS succeeds");
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let mut client = Client::over(stream);
        client.send(&json!({"type": "join_room", "roomId": "r", "echo": true}));
        client.expect("room_joined");
        clients.push(client);
    }
    // Larger than a record, and smaller ones in one flush.
    for (sender, bytes) in [(0, 60_000), (1, 10), (0, 1_000), (1, 17_000)] {
        let data = "x".repeat(bytes);
        clients[sender].send(&json!({"type": "room_message", "roomId": "r", "data": data}));
        for client in &mut clients {
            assert_eq!(client.expect("room_message")["data"], data);
        }
    }
    assert!(server.get("/health").contains("\"status\":\"healthy\""));
    assert!(server.get("/nowhere").starts_with("HTTP/1.1 404 "));
    assert!(server.metric("tableforge_tls_handshakes_total") >= 3);
    let only_h2 = server.try_connect(&[&version::TLS13], &[b"h2"]);
    assert!(only_h2.is_err(), "HTTP/2 is not spoken");
}

#[test]
fn a_close_is_answered_and_tls_ends_in_order() {
    use tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
    let server = Secured::start(&[]);
    let mut client = server.client();
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    client.socket.close(Some(frame)).expect("the connection is open");
    assert_eq!(client.expect_close(), 1000);
    eventually("nobody is connected", || {
        (server.metric("tableforge_websocket_connections_total") == 0).then_some(())
    });
}

#[test]
fn a_client_that_ends_tls_without_a_close_frame_is_gone() {
    let server = Secured::start(&[]);
    let mut stays = server.client();
    stays.send(&json!({"type": "join_room", "roomId": "r"}));
    stays.expect("room_joined");
    let mut leaves = server.client();
    leaves.send(&json!({"type": "join_room", "roomId": "r"}));
    leaves.expect("room_joined");
    let stream = leaves.socket.get_mut();
    stream.conn.send_close_notify();
    stream.flush().expect("the connection is open");
    stays.expect("user_left_room");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the server answers with close_notify");
}

#[test]
fn a_drain_tells_clients_and_ends_tls_in_order() {
    let mut server = Secured::start(&[]);
    let mut client = server.client();
    server.process.signal(Signal::TERM);
    client.expect("server_draining");
    assert_eq!(client.expect_close(), 1012);
    drop(client);
    assert!(server.process.wait().success());
}

#[test]
fn what_is_no_tls_gets_an_alert_and_harms_nobody() {
    let server = Secured::start(&[("LOG_LEVEL", "debug")]);
    let mut healthy = server.client();
    for hostile in
        [&b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1], &[7; 300]]
    {
        let mut socket =
            TcpStream::connect(("127.0.0.1", server.port)).expect("the server takes connections");
        socket.set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
        socket.write_all(hostile).expect("the server reads");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("the server ends the connection");
        assert_eq!(answer.first(), Some(&0x15), "an alert and nothing in plain text: {answer:?}");
    }
    assert_eq!(server.metric("tableforge_tls_failures_total"), 3);
    eventually("the log names each connection", || {
        let output = server.process.output();
        let lines = output.lines().filter(|line| line.contains("a client's TLS failed"));
        let named =
            lines.filter(|line| line.contains("\"connection\":\"") && line.contains("\"request\":\""));
        (named.count() == 3).then_some(())
    });
    healthy.send(&json!({"type": "ping"}));
    healthy.expect("pong");
}

#[test]
fn a_handshake_that_is_never_finished_is_ended_in_time() {
    let server = Secured::start(&[("HANDSHAKE_TIMEOUT", "200")]);
    let mut silent = TcpStream::connect(("127.0.0.1", server.port)).expect("the server takes connections");
    silent.set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
    silent.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).expect("the server reads");
    let mut answer = Vec::new();
    // A reset or an end; plain text would be wrong in either case.
    let _ = silent.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    // With TLS established the answer is the same as without.
    let mut slow = server.connect();
    slow.write_all(b"GET /ws HTTP/1.1\r\n").expect("the connection is open");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).expect("it ends with close_notify");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn a_reader_that_stops_is_closed_and_the_others_go_on() {
    let server = Secured::start(&[("OUTBOX_BYTES", "262144"), ("COMPRESSION", "false")]);
    let (mut speaker, mut slow, mut reader) = (server.client(), server.client(), server.client());
    for client in [&mut speaker, &mut slow, &mut reader] {
        client.send(&json!({"type": "join_room", "roomId": "r"}));
        client.expect("room_joined");
    }
    let data = "x".repeat(60_000);
    // The kernel's buffers of one connection take some megabytes before the outbox fills.
    let closed = (0..2_000).any(|_| {
        speaker.send(&json!({"type": "room_message", "roomId": "r", "data": data}));
        assert_eq!(reader.expect("room_message")["data"], data);
        speaker.send(&json!({"type": "room_members", "roomId": "r"}));
        speaker.expect("room_members")["memberCount"] == 2
    });
    assert!(closed, "the slow reader leaves the room");
    assert_eq!(server.metric("tableforge_websocket_slow_closes_total"), 1);
    assert_eq!(slow.expect_close(), 4003);
}

#[test]
fn the_command_line_reaches_a_server_whose_certificate_it_trusts() {
    let server = Secured::start(&[("API_KEY", "the key"), ("INSTANCE_ID", "me")]);
    let admin = |host: &str, authorities: &str| {
        Command::new(env!("CARGO_BIN_EXE_tableforge"))
            .args(["admin", "instances", "--url", &format!("https://{host}:{}", server.port)])
            .env_clear()
            .env("TABLEFORGE_API_KEY", "the key")
            .env("TABLEFORGE_CA_FILE", authorities)
            .output()
            .expect("the program starts")
    };
    let (own, stranger) = (server.authority.path("ca.pem"), Authority::new());
    let output = admin("localhost", &own);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"instanceId\": \"me\""), "{output:?}");
    for (host, authorities) in [("localhost", stranger.path("ca.pem")), ("127.0.0.1", own)] {
        let output = admin(host, &authorities);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && text.contains("peer certificate"), "{text}");
    }
}
