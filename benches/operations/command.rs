//! Messages are understood, and events encoded.

use std::hint::black_box;

use bytes::Bytes;
use tableforge::command::decode::{Scratch, decode};
use tableforge::command::event::{self, RoomMessage};

use super::{Entry, Operation, json_object};

const ROOM: &str = "table-1742";
const SOCKET: &str = "5f3a9c01000001f4000002";

pub fn entries() -> Vec<Entry> {
    vec![
        Entry::new("command/decode/room_message_128", 1, || understand(room_message(128))),
        Entry::new("command/decode/join_room", 1, || understand(join_room())),
        Entry::new("command/encode/room_message_128", 1, || {
            let data = json_object(128, 1);
            move || drop(black_box(room_event(black_box(&data))))
        }),
    ]
}

/// A client's message to its room, with `bytes` bytes of `data`.
pub fn room_message(bytes: usize) -> String {
    format!(r#"{{"type":"room_message","roomId":"{ROOM}","data":{}}}"#, json_object(bytes, 1))
}

/// A client's wish to come into the room.
pub fn join_room() -> String {
    format!(r#"{{"type":"join_room","roomId":"{ROOM}","messageId":"1"}}"#)
}

/// The frame that the room's members get.
pub fn room_event(data: &str) -> Bytes {
    event::room_message(&RoomMessage {
        room: ROOM,
        sender: "user-31337",
        sender_socket: Some(SOCKET),
        timestamp_ms: 1_790_000_000_000,
        message_id: None,
        offset: None,
        data,
    })
}

fn understand(text: String) -> impl Operation {
    let mut scratch = Scratch::default();
    move || {
        let request = decode(black_box(&text), &mut scratch).expect("a valid message");
        black_box(&request);
    }
}
