//! Frames: fragments, control frames between them, pings, and what is against the protocol.

use super::{assert_closes, assert_serves};
use crate::harness::raw::{self, BINARY, CONTINUATION, FIN, PING, PONG, RawSocket, TEXT};
use crate::harness::server::Server;

/// Reserved bits of a frame's first byte.
const RSV: [u8; 3] = [0x40, 0x20, 0x10];

#[test]
fn a_message_may_come_in_any_fragments() {
    let server = Server::start(&[]);
    let mut socket = RawSocket::upgraded(&server);
    let message = r#"{"type":"ping","messageId":"äö🎲"}"#.as_bytes();
    for cut in 0..=message.len() {
        let (head, tail) = message.split_at(cut);
        socket.send_frame(TEXT, head);
        socket.send_frame(FIN | CONTINUATION, tail);
        assert_eq!(socket.event()["messageId"], "äö🎲", "cut at {cut}");
    }
    socket.send_frame(TEXT, b"");
    for byte in message {
        socket.send_frame(CONTINUATION, &[*byte]);
        socket.send_frame(CONTINUATION, b"");
    }
    socket.send_frame(FIN | CONTINUATION, b"");
    assert_eq!(socket.event()["type"], "pong");
}

#[test]
fn the_bytes_of_frames_may_come_in_any_pieces() {
    let server = Server::start(&[]);
    let mut socket = RawSocket::upgraded(&server);
    let mut stream = Vec::new();
    for length in [0, 1, 80, 100, 200, 70] {
        let padding = "x".repeat(length);
        stream.extend(raw::frame(FIN | TEXT, format!(r#"{{"type":"ping","x":"{padding}"}}"#).as_bytes()));
        stream.extend(raw::frame(FIN | PING, padding.get(..length.min(125)).unwrap_or("").as_bytes()));
    }
    for size in [1, 2, 3, 7, 64, stream.len()] {
        stream.chunks(size).for_each(|piece| socket.send(piece));
        for _ in 0..6 {
            let pair = [socket.frame(), socket.frame()].map(|frame| frame.expect("an answer").first);
            assert_eq!(pair, [FIN | TEXT, FIN | PONG], "pieces of {size}");
        }
    }
}

#[test]
fn control_frames_may_come_between_fragments() {
    let server = Server::start(&[]);
    let mut socket = RawSocket::upgraded(&server);
    socket.send_frame(TEXT, b"{\"type\":");
    socket.send_frame(FIN | PING, b"between");
    let pong = socket.frame().expect("a pong before the message is complete");
    assert_eq!((pong.first, pong.payload.as_slice()), (FIN | PONG, &b"between"[..]));
    socket.send_frame(FIN | PONG, b"unasked");
    socket.send_frame(FIN | CONTINUATION, b"\"ping\"}");
    assert_eq!(socket.event()["type"], "pong");
}

#[test]
fn a_ping_comes_back_as_a_pong_with_its_payload() {
    let server = Server::start(&[]);
    let mut socket = RawSocket::upgraded(&server);
    for payload in [vec![], vec![0, 255, 128], vec![b'x'; 125]] {
        socket.send_frame(FIN | PING, &payload);
        assert_eq!(socket.frame(), Some(raw::Frame { first: FIN | PONG, payload }));
    }
}

#[test]
fn an_unasked_pong_is_ignored() {
    let server = Server::start(&[]);
    let mut socket = RawSocket::upgraded(&server);
    socket.send_frame(FIN | PONG, b"x");
    socket.send_text(r#"{"type":"ping"}"#);
    assert_eq!(socket.event()["type"], "pong");
}

#[test]
fn an_unmasked_frame_closes_with_1002() {
    let server = Server::start(&[]);
    let message = br#"{"type":"ping"}"#;
    let unmasked = [&[FIN | TEXT, message.len() as u8], &message[..]].concat();
    assert_closes(&server, "unmasked text", &unmasked, 1002);
    assert_closes(&server, "unmasked ping", &[FIN | PING, 0], 1002);
}

#[test]
fn reserved_bits_close_with_1002() {
    let server = Server::start(&[]);
    for bit in RSV {
        assert_closes(&server, "text", &raw::frame(FIN | bit | TEXT, b"{}"), 1002);
        assert_closes(&server, "ping", &raw::frame(FIN | bit | PING, b""), 1002);
    }
}

#[test]
fn reserved_opcodes_close_with_1002() {
    let server = Server::start(&[]);
    for opcode in [0x3, 0x7, 0xB, 0xF] {
        assert_closes(&server, &format!("opcode {opcode:x}"), &raw::frame(FIN | opcode, b""), 1002);
    }
}

#[test]
fn fragments_out_of_order_close_with_1002() {
    let server = Server::start(&[]);
    assert_closes(&server, "a continuation of nothing", &raw::frame(FIN | CONTINUATION, b"x"), 1002);
    let twice = [raw::frame(TEXT, b"{"), raw::frame(FIN | TEXT, b"}")].concat();
    assert_closes(&server, "a message inside another", &twice, 1002);
}

#[test]
fn malformed_control_frames_close_with_1002() {
    let server = Server::start(&[]);
    assert_closes(&server, "a ping in fragments", &raw::frame(PING, b"x"), 1002);
    assert_closes(&server, "a ping of 126 bytes", &raw::frame(FIN | PING, &[b'x'; 126]), 1002);
}

#[test]
fn lengths_that_are_not_minimal_or_too_long_are_refused() {
    let server = Server::start(&[]);
    let high_bit = raw::header_declaring(FIN | TEXT, 1 << 63);
    let mut socket = RawSocket::upgraded(&server);
    socket.send(&high_bit);
    let code = socket.expect_close();
    assert!(code == 1002 || code == 1009, "closed with {code}");
    assert_serves(&server);
}

#[test]
fn a_binary_message_closes_with_1003() {
    let server = Server::start(&[]);
    assert_closes(&server, "binary", &raw::frame(FIN | BINARY, b"{\"type\":\"ping\"}"), 1003);
    let fragments = [raw::frame(BINARY, b"x"), raw::frame(FIN | CONTINUATION, b"y")].concat();
    assert_closes(&server, "binary in fragments", &fragments, 1003);
}

#[test]
fn endless_fragments_close_with_1008() {
    let server = Server::start(&[]);
    let mut bytes = raw::frame(TEXT, b"");
    for _ in 0..2000 {
        bytes.extend(raw::frame(CONTINUATION, b""));
    }
    assert_closes(&server, "2,001 fragments", &bytes, 1008);
}
