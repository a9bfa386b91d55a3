//! The close handshake: every close frame is answered, with the right code, and then the connection ends.

use super::assert_closes;
use crate::harness::client::Client;
use crate::harness::raw::{self, CLOSE, FIN, RawSocket, TEXT};
use crate::harness::server::Server;

#[test]
fn a_close_frame_is_answered_with_its_own_code() {
    let server = Server::start(&[]);
    for code in [1000_u16, 1001, 1003, 1007, 1008, 1011, 3000, 4999] {
        let payload = [&code.to_be_bytes()[..], "grüße".as_bytes()].concat();
        assert_closes(&server, &format!("code {code}"), &raw::frame(FIN | CLOSE, &payload), code);
    }
}

#[test]
fn a_close_frame_without_a_code_is_answered() {
    let server = Server::start(&[]);
    let mut socket = RawSocket::upgraded(&server);
    socket.send_frame(FIN | CLOSE, b"");
    let code = socket.expect_close();
    // RFC 6455 section 5.5.1: the answer typically echoes the code; there was none, so 1000 is fine too.
    assert!(code == 1005 || code == 1000, "closed with {code}");
}

#[test]
fn a_malformed_close_frame_closes_with_1002() {
    let server = Server::start(&[]);
    assert_closes(&server, "one byte", &raw::frame(FIN | CLOSE, &[3]), 1002);
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535] {
        assert_closes(&server, &format!("code {code}"), &raw::frame(FIN | CLOSE, &code.to_be_bytes()), 1002);
    }
}

#[test]
fn what_comes_after_a_close_frame_is_ignored() {
    let server = Server::start(&[]);
    let mut witness = Client::connect(&server);
    witness.join("r");
    let mut socket = RawSocket::upgraded(&server);
    socket.send_text(r#"{"type":"join_room","roomId":"r","messageId":"1"}"#);
    socket.expect("room_joined");
    let too_late = raw::frame(FIN | TEXT, br#"{"type":"room_message","roomId":"r","data":"too late"}"#);
    socket.send(&[raw::frame(FIN | CLOSE, &1000_u16.to_be_bytes()), too_late].concat());
    assert_eq!(socket.expect_close(), 1000);
    witness.expect("user_left_room");
    witness.assert_none("room_message");
}

#[test]
fn requests_before_a_close_frame_are_carried_out() {
    let server = Server::start(&[]);
    let mut witness = Client::connect(&server);
    witness.join("r");
    let mut socket = RawSocket::upgraded(&server);
    socket.send_text(r#"{"type":"join_room","roomId":"r","messageId":"1"}"#);
    socket.expect("room_joined");
    let last = raw::frame(FIN | TEXT, br#"{"type":"room_message","roomId":"r","data":"goodbye"}"#);
    socket.send(&[last, raw::frame(FIN | CLOSE, &1000_u16.to_be_bytes())].concat());
    witness.expect_said("r", "goodbye");
    assert_eq!(socket.expect_close(), 1000);
}

#[test]
fn a_half_closed_connection_ends_and_leaves_its_rooms() {
    let server = Server::start(&[]);
    let mut witness = Client::connect(&server);
    witness.join("r");
    let mut leaver = Client::connect(&server);
    leaver.join("r");
    let stream = leaver.into_stream();
    stream.shutdown(std::net::Shutdown::Write).expect("the connection is open");
    witness.expect("user_left_room");
}
