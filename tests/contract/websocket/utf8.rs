//! Text must be UTF-8, in whole messages, across fragments and in close reasons.

use super::assert_closes;
use crate::harness::raw::{self, CLOSE, CONTINUATION, FIN, PING, TEXT};
use crate::harness::server::Server;

/// Byte strings that are no UTF-8, each for another reason.
const BROKEN: [(&str, &[u8]); 7] = [
    ("a lone continuation byte", b"{\"x\":\"\x80\"}"),
    ("a byte that never occurs", b"{\"x\":\"\xff\"}"),
    ("a sequence that is cut off", b"{\"x\":\"\xe2\x82\"}"),
    ("an overlong slash", b"{\"x\":\"\xc0\xaf\"}"),
    ("a surrogate", b"{\"x\":\"\xed\xa0\x80\"}"),
    ("above U+10FFFF", b"{\"x\":\"\xf4\x90\x80\x80\"}"),
    ("a sequence that the message's end cuts off", b"{\"x\":\"\xf0\x9f\x8e"),
];

#[test]
fn text_that_is_not_utf8_closes_with_1007() {
    let server = Server::start(&[]);
    for (what, bytes) in BROKEN {
        assert_closes(&server, what, &raw::frame(FIN | TEXT, bytes), 1007);
    }
}

#[test]
fn text_that_is_not_utf8_over_fragments_closes_with_1007() {
    let server = Server::start(&[]);
    for (what, bytes) in BROKEN {
        let mut frames = raw::frame(TEXT, b"");
        for byte in bytes {
            frames.extend(raw::frame(CONTINUATION, &[*byte]));
        }
        frames.extend(raw::frame(FIN | PING, b""));
        frames.extend(raw::frame(FIN | CONTINUATION, b""));
        assert_closes(&server, what, &frames, 1007);
    }
}

#[test]
fn a_close_reason_that_is_not_utf8_closes_with_1007() {
    let server = Server::start(&[]);
    for (what, bytes) in BROKEN {
        let payload = [&1000_u16.to_be_bytes()[..], bytes].concat();
        assert_closes(&server, what, &raw::frame(FIN | CLOSE, &payload), 1007);
    }
}
