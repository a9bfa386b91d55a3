//! RFC 6455, tried with bytes that no well-behaved client sends.

mod close;
mod compression;
mod frames;
mod size;
mod upgrade;
mod utf8;

use crate::harness::raw::RawSocket;
use crate::harness::server::Server;

/// Sends `bytes` on a new connection and checks the code that the server closes it with, and that the
/// server still takes others.
#[track_caller]
fn assert_closes(server: &Server, what: &str, bytes: &[u8], code: u16) {
    let mut socket = RawSocket::upgraded(server);
    // The server may close before it has read everything.
    let _ = socket.try_send(bytes);
    assert_eq!(socket.expect_close(), code, "{what}");
    assert_serves(server);
}

/// Checks that a new connection gets an answer.
#[track_caller]
fn assert_serves(server: &Server) {
    let mut other = RawSocket::upgraded(server);
    other.send_text(r#"{"type":"ping"}"#);
    other.expect("pong");
}
