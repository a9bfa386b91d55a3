//! The limit of a message's size holds before anything of that size is taken in.

use super::{assert_closes, assert_serves};
use crate::harness::raw::{self, CONTINUATION, FIN, RawSocket, TEXT};
use crate::harness::server::Server;

/// A `ping` of exactly `length` bytes.
fn ping_of(length: usize) -> String {
    let empty = r#"{"type":"ping","x":""}"#.len();
    format!(r#"{{"type":"ping","x":"{}"}}"#, "x".repeat(length - empty))
}

#[test]
fn a_message_of_the_limit_is_taken_and_one_byte_more_closes_with_1009() {
    for limit in [1024_usize, 65_536, 200_000] {
        let server = Server::start(&[("MAX_MESSAGE_BYTES", &limit.to_string())]);
        let mut socket = RawSocket::upgraded(&server);
        socket.send_text(&ping_of(limit));
        assert_eq!(socket.event()["type"], "pong");
        assert_closes(&server, "one more", &raw::frame(FIN | TEXT, ping_of(limit + 1).as_bytes()), 1009);
    }
}

#[test]
fn the_limit_holds_for_all_fragments_together() {
    let server = Server::start(&[("MAX_MESSAGE_BYTES", "1024")]);
    let mut socket = RawSocket::upgraded(&server);
    let message = ping_of(1024);
    let (head, tail) = message.as_bytes().split_at(600);
    socket.send_frame(TEXT, head);
    socket.send_frame(FIN | CONTINUATION, tail);
    assert_eq!(socket.event()["type"], "pong");
    let over = [raw::frame(TEXT, &[b' '; 600]), raw::frame(CONTINUATION, &[b' '; 425])].concat();
    assert_closes(&server, "two fragments of 1025 bytes", &over, 1009);
}

#[test]
fn a_header_that_declares_too_much_is_refused_at_once() {
    let server = Server::start(&[]);
    for length in [65_537, 16 << 20, u64::from(u32::MAX) + 1, (1 << 63) - 1] {
        let mut socket = RawSocket::upgraded(&server);
        socket.send(&raw::header_declaring(FIN | TEXT, length));
        assert_eq!(socket.expect_close(), 1009, "{length} bytes declared, none sent");
    }
    assert_serves(&server);
}
