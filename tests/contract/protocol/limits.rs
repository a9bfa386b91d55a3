//! Limits of a connection whose end is a close code.

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::raw::{self, FIN, PING, PONG, RawSocket, TEXT};
use crate::harness::server::Server;

#[test]
fn ten_invalid_requests_close_with_4502() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server);
    for _ in 0..10 {
        client.send_text("{");
    }
    assert_eq!(client.expect_close(), 4502);
}

#[test]
fn who_goes_on_sending_over_the_rate_is_closed_with_4005() {
    let server = Server::start(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "1")]);
    let mut client = RawSocket::upgraded(&server);
    let pings = raw::frame(FIN | TEXT, br#"{"type":"ping"}"#).repeat(5_000);
    // The server closes before it has read them all.
    let _ = client.try_send(&pings);
    assert_eq!(client.expect_close(), 4005);
}

#[test]
fn a_peer_that_answers_no_ping_is_closed_with_4002_and_leaves_its_rooms() {
    let server = Server::start(&[("PING_INTERVAL", "200"), ("PONG_TIMEOUT", "2000")]);
    let mut witness = Client::connect(&server);
    witness.join("r");
    let mut mute = RawSocket::upgraded(&server);
    mute.send_text(&json!({"type": "join_room", "roomId": "r"}).to_string());
    let joined = witness.expect("user_joined_room");
    // The witness reads meanwhile, and so answers its own pings.
    let left = witness.expect("user_left_room");
    assert_eq!(left["userId"], joined["userId"]);
    assert_eq!(mute.expect_close(), 4002);
}

#[test]
fn a_silent_peer_that_answers_pings_stays() {
    let server = Server::start(&[("PING_INTERVAL", "100"), ("PONG_TIMEOUT", "10000")]);
    let mut silent = RawSocket::upgraded(&server);
    for _ in 0..5 {
        let ping = silent.frame().expect("a ping");
        assert_eq!(ping.first, FIN | PING, "{ping:?}");
        silent.send_frame(FIN | PONG, &ping.payload);
    }
    silent.send_text(r#"{"type":"ping"}"#);
    silent.expect_pong_event();
}

impl RawSocket {
    /// Reads past pings up to the `pong` event.
    fn expect_pong_event(&mut self) {
        while let Some(frame) = self.frame() {
            if frame.first != FIN | PING {
                assert!(String::from_utf8_lossy(&frame.payload).contains("\"pong\""), "{frame:?}");
                return;
            }
        }
        panic!("the connection ended");
    }
}
