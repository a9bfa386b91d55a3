//! Peers that send without end: pings, messages over the rate, requests whose replies nobody reads.

use std::collections::HashSet;

use serde_json::json;

use crate::arena::{Arena, connect_small, upgrade, upgraded};
use crate::harness::client::Client;
use crate::harness::raw::{FIN, PING, RawSocket, TEXT, frame};

/// The most that the server's memory may grow by while a peer floods it with ten times as much.
const BOUND: usize = 16 << 20;

/// Sends `bytes` until 160 MB are through or the server takes no more; then the close code.
#[track_caller]
fn flood_without_reading(arena: &mut Arena, bytes: &[u8]) -> u16 {
    let before = arena.resident_bytes();
    let mut socket = connect_small(arena.port());
    upgrade(&mut socket);
    let mut most = 0;
    for _ in 0..160_000_000 / bytes.len() {
        if socket.try_send(bytes).is_err() {
            break;
        }
        most = most.max(arena.resident_bytes());
        // The close frame waits for a few seconds only: it is to be read as soon as it is there.
        if arena.server.metric("tableforge_websocket_slow_closes_total") > Some(0.0) {
            break;
        }
    }
    assert!(most.saturating_sub(before) < BOUND, "{most} bytes of memory, {before} before");
    arena.assert_healthy("a flood");
    let code = close_code(&mut socket);
    arena.note_end(code);
    code
}

/// The code of the close frame, which the peer may not answer in time any more.
#[track_caller]
fn close_code(socket: &mut RawSocket) -> u16 {
    loop {
        let frame = socket.frame().expect("a close frame before the end");
        if frame.first == 0x88 {
            return u16::from_be_bytes(*frame.payload.first_chunk().expect("a code"));
        }
    }
}

#[test]
fn pings_from_a_peer_that_reads_nothing() {
    let mut arena = Arena::start(&[("OUTBOX_BYTES", "262144")]);
    let pings = frame(FIN | PING, &[b'x'; 125]).repeat(1_000);
    assert_eq!(flood_without_reading(&mut arena, &pings), 4003);
    arena.assert_restored();
}

#[test]
fn requests_from_a_peer_that_reads_no_replies() {
    let mut arena = Arena::start(&[("OUTBOX_BYTES", "262144")]);
    let requests = frame(FIN | TEXT, br#"{"type":"ping","messageId":"x"}"#).repeat(1_000);
    assert_eq!(flood_without_reading(&mut arena, &requests), 4003);
    arena.assert_restored();
}

#[test]
fn messages_over_the_rate_get_one_reply_each_and_in_the_end_4005() {
    // The limits hold for the healthy pair too, each of whom sends a few messages per second.
    let mut arena = Arena::start(&[("MESSAGE_RATE", "10"), ("MESSAGE_BURST", "20")]);
    let (mut socket, _) = upgraded(arena.port());
    let mut unanswered: HashSet<_> = (0..500).map(|id| id.to_string()).collect();
    let flood: Vec<_> = unanswered
        .iter()
        .flat_map(|id| frame(FIN | TEXT, json!({"type": "ping", "messageId": id}).to_string().as_bytes()))
        .collect();
    socket.send(&flood);
    let mut limited = 0;
    while !unanswered.is_empty() {
        let event = socket.event();
        let id = event["messageId"].as_str().expect("every reply has its messageId");
        assert!(unanswered.remove(id), "a second reply: {event}");
        if event["type"] == "error" {
            assert_eq!(event["code"], "rate_limited", "{event}");
            assert!((1..=1000).contains(&event["retryAfterMs"].as_u64().expect("a time")), "{event}");
            limited += 1;
        }
    }
    assert!(limited > 100, "{limited} of 500");
    arena.assert_healthy("messages over the rate");
    let pings = frame(FIN | TEXT, br#"{"type":"ping"}"#).repeat(10_000);
    let _ = socket.try_send(&pings);
    assert_eq!(close_code(&mut socket), 4005);
    arena.note_end(4005);
    drop(socket);
    arena.assert_healthy("a flood over the rate");
    arena.assert_restored();
}

#[test]
fn a_reader_that_stopped_comes_back_and_has_missed_nothing() {
    let mut arena = Arena::start(&[("HISTORY_ROOMS", "*")]);
    let mut sender = Client::connect(&arena.server);
    let epoch = sender.join("r")["epoch"].clone();
    let mut slow = connect_small(arena.port());
    upgrade(&mut slow);
    slow.send_text(r#"{"type":"join_room","roomId":"r"}"#);
    slow.expect("room_joined");
    let payload = "x".repeat(16_000);
    let mut sent = 0;
    while !sender.has_received("user_left_room") {
        assert!(sent < 900, "14 MB went to a reader that does not read");
        sender.request(json!({"type": "room_message", "roomId": "r", "data": payload}));
        sent += 1;
    }
    arena.assert_healthy("a reader that stopped");
    // What the kernel had taken still arrives, and then the reason.
    let mut last = 0;
    loop {
        let frame = slow.frame().expect("a close frame before the end");
        if frame.first == 0x88 {
            assert_eq!(frame.payload.first_chunk(), Some(&4003_u16.to_be_bytes()));
            break;
        }
        let event: serde_json::Value = serde_json::from_slice(&frame.payload).expect("whole messages only");
        if event["type"] == "room_message" {
            assert_eq!(event["offset"], last + 1);
            last += 1;
        }
    }
    arena.note_end(4003);
    assert!(last < sent, "{last} of {sent}");
    let mut back = Client::connect(&arena.server);
    let since = json!({"epoch": epoch, "offset": last});
    let joined = back.join_with(json!({"type": "join_room", "roomId": "r", "since": since}));
    assert_eq!(joined["recovered"], true, "{}", joined["reason"]);
    let offsets: Vec<_> = joined["messages"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|message| message["offset"].clone())
        .collect();
    assert_eq!(offsets, (last + 1..=sent).map(|offset| json!(offset)).collect::<Vec<_>>());
    sender.say("r", "live");
    assert_eq!(back.expect_said("r", "live")["offset"], sent + 1);
    drop((slow, sender, back));
    arena.assert_restored();
}

#[test]
fn a_reader_that_stops_gets_4003_behind_its_backlog_when_it_reads_again() {
    let mut arena = Arena::start(&[("OUTBOX_BYTES", "131072")]);
    let mut sender = Client::connect(&arena.server);
    sender.join("r");
    let mut slow = connect_small(arena.port());
    upgrade(&mut slow);
    slow.send_text(r#"{"type":"join_room","roomId":"r"}"#);
    slow.expect("room_joined");
    let mut other = Client::connect(&arena.server);
    other.join("r");
    let mut sent = 0;
    let payload = "x".repeat(32_000);
    while !sender.has_received("user_left_room") {
        assert!(sent < 3_000, "96 MB went to a reader that does not read");
        sender.say("r", format!("{sent} {payload}"));
        other.expect_said("r", format!("{sent} {payload}"));
        sent += 1;
        if sent % 10 == 0 {
            arena.assert_healthy("a reader that stopped");
        }
    }
    let mut read = 0;
    loop {
        let frame = slow.frame().expect("a close frame before the end");
        if frame.first == 0x88 {
            assert_eq!(frame.payload.first_chunk(), Some(&4003_u16.to_be_bytes()));
            break;
        }
        let event: serde_json::Value = serde_json::from_slice(&frame.payload).expect("whole messages only");
        if event["type"] == "room_message" {
            let text = event["data"].as_str().expect("text");
            assert_eq!(text.split_once(' ').map(|(number, _)| number), Some(read.to_string().as_str()));
            read += 1;
        }
    }
    arena.note_end(4003);
    assert!((1..sent).contains(&read), "{read} of {sent}: what was under way, and not all");
    drop((slow, sender, other));
    arena.assert_restored();
}
