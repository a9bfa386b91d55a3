//! Frames against RFC 6455 or the limits: each ends its connection with the documented code.

use std::net::Shutdown;

use flate2::{Compress, Compression, FlushCompress};
use serde_json::json;

use crate::arena::{Arena, connect, upgraded};
use crate::harness::client::Client;
use crate::harness::raw::{
    BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, UPGRADE, frame, header_declaring,
};

/// What is sent, in words and bytes, and the close code that must come back.
type Row = (&'static str, Vec<u8>, u16);

#[track_caller]
fn assert_codes(rows: &[Row]) {
    let mut arena = Arena::start(&[]);
    for (what, bytes, code) in rows {
        let (mut socket, _) = upgraded(arena.port());
        // The server may close before it has taken all of it.
        let _ = socket.try_send(bytes);
        assert_eq!(socket.expect_close(), *code, "{what}");
        arena.note_end(*code);
        arena.assert_healthy(what);
        if bytes.len() <= 200 {
            // The same in single bytes, from a peer that closes its own end at once.
            let (mut socket, stream) = upgraded(arena.port());
            let _ = bytes.iter().try_for_each(|byte| socket.try_send(&[*byte]));
            // Fails if the server has closed already.
            let _ = stream.shutdown(Shutdown::Write);
            assert_eq!(socket.expect_close(), *code, "{what}, byte by byte");
            arena.note_end(*code);
            arena.assert_healthy(what);
        }
    }
    arena.assert_restored();
}

/// A close frame with that code and reason.
fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

#[test]
fn headers_against_the_protocol() {
    const RESERVED: [u8; 3] = [0x40, 0x20, 0x10];
    let mut rows: Vec<Row> = vec![
        ("an unmasked text", b"\x81\x05hello".to_vec(), 1002),
        ("an unmasked ping", b"\x89\x00".to_vec(), 1002),
        ("an unmasked close", b"\x88\x02\x03\xe8".to_vec(), 1002),
        ("a continuation of nothing", frame(FIN | CONTINUATION, b"x"), 1002),
        ("a text inside a text", [frame(TEXT, b"a"), frame(FIN | TEXT, b"b")].concat(), 1002),
        ("a binary inside a text", [frame(TEXT, b"a"), frame(FIN | BINARY, b"b")].concat(), 1002),
        ("a ping in fragments", frame(PING, b"a"), 1002),
        ("a pong in fragments", frame(PONG, b"a"), 1002),
        ("a close in fragments", frame(CLOSE, b"\x03\xe8"), 1002),
        ("a ping of 126 bytes", frame(FIN | PING, &[b'x'; 126]), 1002),
        ("a ping of 2^63 bytes", header_declaring(FIN | PING, 1 << 63), 1002),
        ("5 bytes in a length of 16 bits", b"\x81\xfe\x00\x05\0\0\0\0hello".to_vec(), 1002),
        ("5 bytes in a length of 64 bits", header_declaring(FIN | TEXT, 5), 1002),
    ];
    rows.extend(RESERVED.map(|bit| ("a reserved bit", frame(FIN | bit | TEXT, b"{}"), 1002)));
    rows.extend(RESERVED.map(|bit| ("a reserved bit of a ping", frame(FIN | bit | PING, b""), 1002)));
    let opcodes = (0x3..=0x7).chain(0xB..=0xF);
    rows.extend(opcodes.map(|opcode| ("a reserved opcode", frame(FIN | opcode, b"x"), 1002)));
    assert_codes(&rows);
}

#[test]
fn close_frames_against_the_protocol() {
    let codes = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535];
    let mut rows: Vec<Row> = codes.map(|code| ("a close code", close(code, b""), 1002)).to_vec();
    rows.push(("a close frame of one byte", frame(FIN | CLOSE, b"\x03"), 1002));
    rows.push(("a close reason that is not UTF-8", close(1000, b"\xff"), 1007));
    rows.push(("half a character in a close reason", close(1000, b"\xc3"), 1007));
    assert_codes(&rows);
}

#[test]
fn text_that_is_not_utf8() {
    let start = frame(TEXT, b"\xf0\x9f");
    assert_codes(&[
        ("a wrong byte", frame(FIN | TEXT, b"{\"type\":\"\xff\"}"), 1007),
        ("half a character", frame(FIN | TEXT, b"\xf0\x9f\x8e"), 1007),
        ("an overlong slash", frame(FIN | TEXT, b"\xc0\xaf"), 1007),
        ("a surrogate", frame(FIN | TEXT, b"\xed\xa0\x80"), 1007),
        ("beyond the last character", frame(FIN | TEXT, b"\xf4\x90\x80\x80"), 1007),
        ("wrong in the next frame", [start.clone(), frame(FIN | CONTINUATION, b"xx")].concat(), 1007),
        ("never finished", [start, frame(FIN | CONTINUATION, b"")].concat(), 1007),
    ]);
}

#[test]
fn what_is_too_big_or_in_too_many_pieces() {
    let empty = frame(CONTINUATION, b"");
    assert_codes(&[
        ("a header that declares 16 MiB", header_declaring(FIN | TEXT, 16 << 20), 1009),
        ("a header that declares 2^63 - 1", header_declaring(FIN | TEXT, (1 << 63) - 1), 1009),
        ("a header that declares 2^63", header_declaring(FIN | TEXT, 1 << 63), 1009),
        ("a header that declares 2^64 - 1", header_declaring(FIN | TEXT, u64::MAX), 1009),
        ("a fragment that declares 16 MiB", header_declaring(TEXT, 16 << 20), 1009),
        ("a message of 64 KiB and one byte", frame(FIN | TEXT, &[b' '; 65_537]), 1009),
        (
            "the byte too many in the last fragment",
            [frame(TEXT, &[b' '; 65_536]), frame(FIN | CONTINUATION, b" ")].concat(),
            1009,
        ),
        ("1,025 fragments", [frame(TEXT, b""), empty.repeat(1024)].concat(), 1008),
        ("a million empty fragments", [frame(TEXT, b""), empty.repeat(1_000_000)].concat(), 1008),
    ]);
}

/// A compressed text frame of 60 MB of spaces: within the bound as it comes, and a thousand times as much expanded.
fn bomb() -> Vec<u8> {
    let mut payload = Vec::with_capacity(65_536);
    let mut stream = Compress::new(Compression::best(), false);
    stream
        .compress_vec(&vec![b' '; 60_000_000], &mut payload, FlushCompress::Sync)
        .expect("it is compressed");
    assert!(payload.len() < 60_000, "{} bytes", payload.len());
    frame(FIN | 0x40 | TEXT, &payload)
}

#[test]
fn a_compressed_frame_that_inflates_a_thousandfold() {
    let mut arena = Arena::start(&[]);
    let bomb = bomb();
    let before = arena.resident_bytes();
    let offering = UPGRADE.replace("Host:", "Sec-WebSocket-Extensions: permessage-deflate\r\nHost:");
    for _ in 0..50 {
        let (mut socket, _) = connect(arena.port());
        socket.send(offering.as_bytes());
        assert!(socket.response().header("sec-websocket-extensions").is_some());
        assert_eq!(socket.event()["type"], "connection_established");
        // The server may close before it has taken all of it.
        let _ = socket.try_send(&bomb);
        assert_eq!(socket.expect_close(), 1009);
        arena.note_end(1009);
        arena.assert_healthy("a bomb");
    }
    let grown = arena.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for 3 GB of spaces");
    arena.assert_restored();
}

#[test]
fn binary_where_text_is_needed() {
    assert_codes(&[
        ("a binary message", frame(FIN | BINARY, b"{\"type\":\"ping\"}"), 1003),
        ("an empty one", frame(FIN | BINARY, b""), 1003),
        ("one in fragments", [frame(BINARY, b"a"), frame(FIN | CONTINUATION, b"b")].concat(), 1003),
    ]);
}

#[test]
fn the_largest_message_and_the_most_fragments_are_taken() {
    let mut arena = Arena::start(&[]);
    let mut receiver = Client::connect(&arena.server);
    receiver.join("r");
    let (mut socket, _) = upgraded(arena.port());
    socket.send_text(r#"{"type":"join_room","roomId":"r"}"#);
    socket.expect("room_joined");
    let (start, end) = (r#"{"type":"room_message","roomId":"r","data":""#, r#""}"#);
    let data = "x".repeat(65_536 - start.len() - end.len());
    socket.send_text(&format!("{start}{data}{end}"));
    receiver.expect_said("r", data);
    let text = json!({"type": "room_message", "roomId": "r", "data": "y".repeat(1_500)}).to_string();
    let (first, rest) = text.as_bytes().split_at(text.len() - 1_023);
    let mut frames = frame(TEXT, first);
    for (number, byte) in rest.iter().enumerate() {
        let last = if number + 1 == rest.len() { FIN } else { 0 };
        frames.extend(frame(last | CONTINUATION, &[*byte]));
        frames.extend(frame(FIN | PING, b"between"));
    }
    socket.send(&frames);
    receiver.expect_said("r", "y".repeat(1_500));
    drop((socket, receiver));
    arena.assert_healthy("large messages");
    arena.assert_restored();
}

#[test]
fn headers_that_promise_much_cost_nothing() {
    let mut arena = Arena::start(&[]);
    let before = arena.resident_bytes();
    // 64 KiB each, the most that may be promised: 62 MiB if the server believed it.
    let sockets: Vec<_> = (0..1_000)
        .map(|_| {
            let (mut socket, _) = upgraded(arena.port());
            socket.send(&header_declaring(FIN | TEXT, 65_536));
            socket.send(b"x");
            socket
        })
        .collect();
    arena.assert_healthy("a thousand promises");
    let grown = arena.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for a thousand headers");
    drop(sockets);
    arena.assert_restored();
}
