//! The end of a connection in every order: close frames, half-closed sockets, resets.

use std::net::Shutdown;

use serde_json::json;

use crate::arena::{Arena, connect, reset, upgraded};
use crate::harness::client::Client;
use crate::harness::raw::{BINARY, CLOSE, FIN, RawSocket, TEXT, UPGRADE, frame};

/// The code of a close frame, which comes next.
#[track_caller]
fn close_code(socket: &mut RawSocket) -> u16 {
    let frame = socket.frame().expect("a close frame");
    assert_eq!(frame.first, FIN | CLOSE, "{frame:?}");
    frame.payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))
}

/// A message that the server closes for, with 1003.
fn provocation() -> Vec<u8> {
    frame(FIN | BINARY, b"x")
}

fn close_frame(code: u16) -> Vec<u8> {
    frame(FIN | CLOSE, &code.to_be_bytes())
}

#[test]
fn the_client_closes_first_and_keeps_talking() {
    let mut arena = Arena::start(&[]);
    let (mut socket, _) = upgraded(arena.port());
    socket.send(&[close_frame(4321), frame(FIN | TEXT, br#"{"type":"ping"}"#), close_frame(1000)].concat());
    assert_eq!(close_code(&mut socket), 4321, "its own code comes back");
    assert_eq!(socket.frame(), None, "and nothing after it");
    arena.assert_healthy("a close");
    arena.assert_restored();
}

#[test]
fn both_close_at_once() {
    let mut arena = Arena::start(&[]);
    let (mut socket, _) = upgraded(arena.port());
    socket.send(&[provocation(), close_frame(1000)].concat());
    assert_eq!(close_code(&mut socket), 1003);
    assert_eq!(socket.frame(), None, "one close frame is enough");
    arena.note_end(1003);
    arena.assert_healthy("two closes");
    arena.assert_restored();
}

#[test]
fn the_server_closes_and_the_client_answers_after_more_messages() {
    let mut arena = Arena::start(&[]);
    let (mut socket, _) = upgraded(arena.port());
    socket.send(&provocation());
    assert_eq!(close_code(&mut socket), 1003);
    socket.send(&[frame(FIN | TEXT, br#"{"type":"ping"}"#), close_frame(1003)].concat());
    assert_eq!(socket.frame(), None, "nothing follows a close frame");
    arena.note_end(1003);
    arena.assert_healthy("a late answer");
    arena.assert_restored();
}

#[test]
fn a_peer_that_never_answers_a_close_is_dropped() {
    let mut arena = Arena::start(&[]);
    let (mut silent, _) = upgraded(arena.port());
    silent.send(&provocation());
    assert_eq!(close_code(&mut silent), 1003);
    let (mut babbling, _) = upgraded(arena.port());
    babbling.send(&provocation());
    assert_eq!(close_code(&mut babbling), 1003);
    babbling.send(&frame(FIN | TEXT, br#"{"type":"ping"}"#));
    assert_eq!(silent.frame(), None);
    assert_eq!(babbling.frame(), None);
    (0..2).for_each(|_| arena.note_end(1003));
    arena.assert_healthy("silence");
    arena.assert_restored();
}

#[test]
fn a_peer_that_never_closes_its_end_is_dropped() {
    let mut arena = Arena::start(&[]);
    let (mut socket, stream) = upgraded(arena.port());
    socket.send(&close_frame(1000));
    assert_eq!(close_code(&mut socket), 1000);
    socket.assert_ends();
    // Both handles stay open: only the server can end this.
    arena.assert_healthy("a handshake that stays half done");
    arena.assert_restored();
    drop((socket, stream));
}

#[test]
fn a_client_that_closes_its_own_end_gets_the_replies_to_what_it_sent() {
    let mut arena = Arena::start(&[]);
    let (mut socket, stream) = upgraded(arena.port());
    socket.send(&frame(FIN | TEXT, br#"{"type":"ping"}"#).repeat(100));
    stream.shutdown(Shutdown::Write).expect("the connection is open");
    for _ in 0..100 {
        assert_eq!(socket.event()["type"], "pong");
    }
    assert_eq!(socket.frame(), None);
    let (mut socket, stream) = upgraded(arena.port());
    socket.send(&close_frame(1000));
    stream.shutdown(Shutdown::Write).expect("the connection is open");
    assert_eq!(close_code(&mut socket), 1000);
    assert_eq!(socket.frame(), None);
    arena.assert_healthy("half-closed connections");
    arena.assert_restored();
}

#[test]
fn a_reset_in_any_phase_leaves_nothing_behind() {
    let mut arena = Arena::start(&[]);
    let mut witness = Client::connect(&arena.server);
    witness.join("r");
    let join = frame(FIN | TEXT, br#"{"type":"join_room","roomId":"r"}"#);
    let leave = frame(FIN | TEXT, br#"{"type":"leave_room","roomId":"r"}"#);
    let message =
        frame(FIN | TEXT, json!({"type": "room_message", "roomId": "r", "data": 1}).to_string().as_bytes());
    for _ in 0..20 {
        reset(connect(arena.port()));
        for bytes in [&UPGRADE.as_bytes()[..30], UPGRADE.as_bytes(), b"GET /metrics HTTP/1.1\r\n\r\n"] {
            let (mut socket, stream) = connect(arena.port());
            socket.send(bytes);
            reset((socket, stream));
        }
        for bytes in [
            vec![],
            join.clone(),
            [&join[..], &message[..], &message[..9]].concat(),
            [&join[..], &leave[..]].concat().repeat(10),
            provocation(),
            close_frame(1000),
        ] {
            let (mut socket, stream) = upgraded(arena.port());
            socket.send(&bytes);
            reset((socket, stream));
        }
        // One request lacks its Host, and one message provokes.
        arena.note_unseen_ends(400, 1);
        arena.note_unseen_ends(1003, 1);
        arena.assert_healthy("resets");
    }
    crate::harness::eventually("the room is the witness's again", || {
        let members = witness.request(json!({"type": "room_members", "roomId": "r"}));
        (members["memberCount"] == 1).then_some(())
    });
    drop(witness);
    arena.assert_restored();
}
