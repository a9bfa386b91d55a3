//! The PROXY protocol stands in front of TLS, in plain text.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::harness::DEADLINE;
use crate::secured::{Client, Secured, Stream};

/// A header of the PROXY protocol, version 2, for a client of 192.0.2.0/24.
fn preface(host: u8) -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".as_slice(), &[192, 0, 2, host, 10, 0, 0, 1, 0, 1, 0, 2]].concat()
}

/// The status of the answer to an upgrade, and the connection.
#[track_caller]
fn upgraded(mut stream: Stream) -> (String, Stream) {
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    write!(
        stream,
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .expect("the server reads");
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("an answer");
    (String::from_utf8_lossy(&status[9..]).into_owned(), stream)
}

#[test]
fn a_proxy_in_front_of_tls_names_the_client() {
    let settings =
        [("MAX_CONNECTIONS_PER_ADDRESS", "1"), ("TRUSTED_PROXIES", "127.0.0.1"), ("PROXY_PROTOCOL", "true")];
    let server = Secured::start_behind(&preface(9), &settings);
    let mut client = Client::over(server.behind(&preface(1)).expect("TLS succeeds"));
    client.send(&json!({"type": "ping"}));
    client.expect("pong");
    let (status, _) = upgraded(server.behind(&preface(1)).expect("TLS succeeds"));
    assert_eq!(status, "429", "the address that the proxy names has one connection already");
    let (status, _other) = upgraded(server.behind(&preface(2)).expect("TLS succeeds"));
    assert_eq!(status, "101");

    for hostile in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut socket = TcpStream::connect(("127.0.0.1", server.port)).expect("the server accepts");
        socket.set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
        socket.write_all(hostile).expect("the server reads");
        let mut answer = Vec::new();
        // An end or a reset; nothing in plain text.
        let _ = socket.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{}", answer.escape_ascii());
    }
    client.send(&json!({"type": "ping"}));
    client.expect("pong");
}
