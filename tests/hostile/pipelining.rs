//! Requests sent without waiting for replies: every one gets exactly one, and the state is the last one's.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::arena::{Arena, upgraded};
use crate::harness::raw::{FIN, RawSocket, TEXT, frame};

fn text(message: &Value) -> Vec<u8> {
    frame(FIN | TEXT, message.to_string().as_bytes())
}

/// How often each kind of reply came, once each of `count` numbered requests has one.
#[track_caller]
fn replies(socket: &mut RawSocket, count: usize) -> HashMap<String, usize> {
    let (mut kinds, mut answered) = (HashMap::new(), vec![false; count]);
    while answered.contains(&false) {
        let event = socket.event();
        let Some(id) = event["messageId"].as_str().and_then(|id| id.parse::<usize>().ok()) else { continue };
        assert!(!std::mem::replace(&mut answered[id], true), "a second reply: {event}");
        let kind = if event["type"] == "error" { &event["code"] } else { &event["type"] };
        *kinds.entry(kind.as_str().expect("text").to_owned()).or_default() += 1;
    }
    kinds
}

/// Whether the connection is in `room`, by its own account.
#[track_caller]
fn is_in(socket: &mut RawSocket, room: &str) -> bool {
    socket.send(&text(&json!({"type": "room_members", "roomId": room, "messageId": "where"})));
    loop {
        let event = socket.event();
        if event["messageId"] == "where" {
            return event["type"] == "room_members";
        }
    }
}

#[track_caller]
fn joins_and_leaves_by_the_thousand(shards: usize) {
    let mut arena = Arena::start(&[("SHARDS", &shards.to_string())]);
    for room in ["a", "b", "c", "d"] {
        let (mut socket, _) = upgraded(arena.port());
        let kinds = ["join_room", "leave_room"];
        let flapping: Vec<u8> = (0..2_000)
            .flat_map(|id| text(&json!({"type": kinds[id % 2], "roomId": room, "messageId": id.to_string()})))
            .collect();
        socket.send(&flapping);
        let counts = replies(&mut socket, 2_000);
        // What is too much to keep while a join is under way is refused, and not done.
        let known = ["room_joined", "room_left", "unavailable", "not_in_room"];
        assert!(counts.keys().all(|kind| known.contains(&kind.as_str())), "{counts:?}");
        assert!(counts["room_joined"] >= counts["room_left"], "{counts:?}");
        socket.send(&text(&json!({"type": "join_room", "roomId": room, "messageId": "0"})));
        assert_eq!(replies(&mut socket, 1)["room_joined"], 1);
        assert!(is_in(&mut socket, room));
        socket.send(&text(&json!({"type": "leave_room", "roomId": room, "messageId": "0"})));
        assert_eq!(replies(&mut socket, 1)["room_left"], 1);
        assert!(!is_in(&mut socket, room));
        arena.assert_healthy("flapping");
    }
    arena.assert_restored();
}

#[track_caller]
fn the_same_room_twice_and_a_message(shards: usize) {
    let mut arena = Arena::start(&[("SHARDS", &shards.to_string())]);
    for room in ["a", "b", "c", "d"] {
        let (mut socket, _) = upgraded(arena.port());
        let request = |kind: &str, id: &str| {
            text(&json!({"type": kind, "roomId": room, "messageId": id, "data": 1, "echo": true}))
        };
        let requests = [
            ("join_room", "room_joined"),
            ("join_room", "room_joined"),
            ("room_message", "message_ack"),
            ("leave_room", "room_left"),
            ("room_message", "not_in_room"),
            ("join_room", "room_joined"),
            ("leave_room", "room_left"),
            ("leave_room", "not_in_room"),
        ];
        let bytes: Vec<_> =
            (0..).zip(requests).map(|(id, (kind, _))| request(kind, &id.to_string())).collect();
        socket.send(&bytes.concat());
        let mut echoed = 0;
        let mut expected = (0..).zip(requests);
        let mut next = expected.next();
        while let Some((id, (_, reply))) = next {
            let event = socket.event();
            if event["type"] == "room_message" {
                echoed += 1;
                continue;
            }
            if event["type"] == "user_joined_room" || event["type"] == "user_left_room" {
                continue;
            }
            let kind = if event["type"] == "error" { &event["code"] } else { &event["type"] };
            assert_eq!((kind, &event["messageId"]), (&json!(reply), &json!(id.to_string())), "{event}");
            next = expected.next();
        }
        assert_eq!(echoed, 1, "a member that joined twice hears a message once");
        arena.assert_healthy("pipelining");
    }
    arena.assert_restored();
}

with_one_shard_and_four!(joins_and_leaves_by_the_thousand, the_same_room_twice_and_a_message);
