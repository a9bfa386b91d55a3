//! Every event, field by field as the protocol's documentation has it.

use super::*;
use crate::codec::frame::payload;
use crate::command::decode::{Command, Request, Scratch, decode};

/// The frame's JSON; the frame must be one text frame.
fn json(frame: &Bytes) -> String {
    assert_eq!(frame[0], 0x81, "a final text frame");
    String::from_utf8(payload(frame).to_vec()).unwrap()
}

const ANNA: Member<'_> = Member { user: "anna", name: Some("Anna \"A\""), socket: "s1" };
const BEN: Member<'_> = Member { user: "ben", name: None, socket: "s2" };

#[test]
fn connection_events() {
    let mut content = ConnectionEstablished {
        socket: "s1",
        instance: "i1",
        user: Some("anna"),
        heartbeat_ms: 25000,
        max_message_bytes: 65536,
    };
    assert_eq!(
        json(&connection_established(&content)),
        r#"{"type":"connection_established","socketId":"s1","instanceId":"i1","userId":"anna","protocol":1,"heartbeatMs":25000,"maxMessageBytes":65536}"#
    );
    content.user = None;
    assert!(!json(&connection_established(&content)).contains("userId"));
    assert_eq!(
        json(&authentication_success("anna", 1_700_000_000_000, Some("m"))),
        r#"{"type":"authentication_success","userId":"anna","expiresAt":1700000000000,"messageId":"m"}"#
    );
    assert_eq!(json(&pong(7, None)), r#"{"type":"pong","timestamp":7}"#);
    assert_eq!(json(&pong(7, Some("m"))), r#"{"type":"pong","timestamp":7,"messageId":"m"}"#);
    assert_eq!(json(&server_draining(1500)), r#"{"type":"server_draining","reconnectAfterMs":1500}"#);
    assert_eq!(
        json(&cluster_status(ClusterStatus::Degraded)),
        r#"{"type":"cluster_status","status":"degraded"}"#
    );
    assert_eq!(json(&cluster_status(ClusterStatus::Ok)), r#"{"type":"cluster_status","status":"ok"}"#);
}

fn joined(
    member_count: u32,
    members: Option<&[Member<'_>]>,
    position: Option<Position<'_>>,
    recovery: Option<Result<&[Bytes], &'static str>>,
    message_id: Option<&str>,
) -> Bytes {
    let mut members = members.map(|members| members.iter().copied());
    let members = members.as_mut().map(|members| members as &mut dyn ExactSizeIterator<Item = _>);
    room_joined(RoomJoined { room: "r", member_count, members, position, recovery, message_id })
}

#[test]
fn rooms_with_history() {
    let event = r#"{"type":"room_message","roomId":"r","senderId":"a","timestamp":1,"data":{"n":[1 ]}}"#;
    let frame = numbered(event, 7);
    let message =
        r#"{"type":"room_message","roomId":"r","senderId":"a","timestamp":1,"data":{"n":[1 ]},"offset":7}"#;
    assert_eq!(json(&frame), message);
    let position = Position { epoch: "00000000000000e1", offset: 7 };
    let frames = [frame.clone(), frame];
    let standing = r#""epoch":"00000000000000e1","offset":7"#;
    assert_eq!(
        json(&joined(1, None, Some(position), Some(Ok(&frames)), None)),
        format!(
            r#"{{"type":"room_joined","roomId":"r","memberCount":1,{standing},"recovered":true,"messages":[{message},{message}]}}"#
        )
    );
    assert_eq!(
        json(&room_history("r", position, &frames[..1], Some("m"))),
        format!(
            r#"{{"type":"room_history","roomId":"r",{standing},"messages":[{message}],"messageId":"m"}}"#
        )
    );
    assert_eq!(
        json(&room_history("r", position, &[], None)),
        format!(r#"{{"type":"room_history","roomId":"r",{standing},"messages":[]}}"#)
    );
    assert_eq!(
        json(&room_resync("r", "gap", Some(position))),
        format!(r#"{{"type":"room_resync","roomId":"r","reason":"gap",{standing}}}"#)
    );
    let failed = [NotResumed { room: "s".into(), code: ErrorCode::Forbidden, message: "no".into() }];
    assert_eq!(
        json(&resumed(["a", "b"].into_iter(), &failed, Some("m"))),
        r#"{"type":"resumed","joined":["a","b"],"failed":[{"roomId":"s","code":"forbidden","message":"no"}],"messageId":"m"}"#
    );
    assert_eq!(json(&resumed([].into_iter(), &[], None)), r#"{"type":"resumed","joined":[],"failed":[]}"#);
}

#[test]
fn room_replies() {
    assert_eq!(
        json(&joined(1, None, None, Some(Err("expired")), None)),
        r#"{"type":"room_joined","roomId":"r","memberCount":1,"recovered":false,"reason":"expired"}"#
    );
    assert_eq!(
        json(&joined(2, Some(&[ANNA, BEN]), None, None, Some("m"))),
        r#"{"type":"room_joined","roomId":"r","memberCount":2,"members":[{"userId":"anna","name":"Anna \"A\"","socketId":"s1"},{"userId":"ben","socketId":"s2"}],"messageId":"m"}"#
    );
    assert_eq!(json(&room_left("r", Some("m"))), r#"{"type":"room_left","roomId":"r","messageId":"m"}"#);
    assert_eq!(
        json(&room_members("r", 1, [BEN].into_iter(), None)),
        r#"{"type":"room_members","roomId":"r","memberCount":1,"members":[{"userId":"ben","socketId":"s2"}]}"#
    );
    assert_eq!(
        json(&room_members("r", 0, [].into_iter(), None)),
        r#"{"type":"room_members","roomId":"r","memberCount":0,"members":[]}"#
    );
    assert_eq!(
        json(&message_ack("m", Some("r"), Some(9))),
        r#"{"type":"message_ack","roomId":"r","offset":9,"messageId":"m"}"#
    );
    assert_eq!(json(&message_ack("m", None, None)), r#"{"type":"message_ack","messageId":"m"}"#);
}

#[test]
fn room_events() {
    assert_eq!(
        json(&user_joined_room("r", &ANNA, 3)),
        r#"{"type":"user_joined_room","roomId":"r","userId":"anna","name":"Anna \"A\"","socketId":"s1","memberCount":3}"#
    );
    assert_eq!(
        json(&user_left_room("r", &BEN, 2)),
        r#"{"type":"user_left_room","roomId":"r","userId":"ben","socketId":"s2","memberCount":2}"#
    );
    assert_eq!(json(&room_size("r", 201)), r#"{"type":"room_size","roomId":"r","memberCount":201}"#);
    assert_eq!(json(&room_resync("r", "gap", None)), r#"{"type":"room_resync","roomId":"r","reason":"gap"}"#);
}

#[test]
fn messages() {
    let mut message = RoomMessage {
        room: "r",
        sender: "anna\n",
        sender_socket: Some("s1"),
        timestamp_ms: 1_700_000_000_001,
        message_id: Some("m"),
        offset: Some(4),
        data: "{ \"roll\" : 1.0e1 }",
    };
    assert_eq!(
        json(&room_message(&message)),
        r#"{"type":"room_message","roomId":"r","senderId":"anna\u000a","senderSocketId":"s1","timestamp":1700000000001,"messageId":"m","offset":4,"data":{ "roll" : 1.0e1 }}"#
    );
    (message.sender_socket, message.message_id, message.offset) = (None, None, None);
    assert_eq!(
        json(&room_message(&message)),
        r#"{"type":"room_message","roomId":"r","senderId":"anna\u000a","timestamp":1700000000001,"data":{ "roll" : 1.0e1 }}"#
    );
    assert_eq!(
        json(&user_message("anna", 5, Some("m"), "null")),
        r#"{"type":"user_message","senderId":"anna","timestamp":5,"messageId":"m","data":null}"#
    );
    assert_eq!(
        json(&global_message("server", 5, "[1]")),
        r#"{"type":"global_message","senderId":"server","timestamp":5,"data":[1]}"#
    );
}

#[test]
fn errors_carry_every_code() {
    assert_eq!(
        json(&error(ErrorCode::RateLimited, "slow \"down\"", Some("m"), Some(250))),
        r#"{"type":"error","code":"rate_limited","message":"slow \"down\"","messageId":"m","retryAfterMs":250}"#
    );
    let documented = [
        "invalid_json",
        "invalid_message",
        "unknown_type",
        "invalid_room",
        "message_too_large",
        "unauthenticated",
        "forbidden",
        "not_in_room",
        "room_full",
        "too_many_rooms",
        "rate_limited",
        "unavailable",
        "timeout",
        "internal",
    ];
    assert_eq!(ErrorCode::ALL.map(ErrorCode::as_str), documented);
    let frame = error(ErrorCode::Internal, "x", None, None);
    assert_eq!(json(&frame), r#"{"type":"error","code":"internal","message":"x"}"#);
}

#[test]
fn common_room_message_fits_the_memory_reserved_for_it() {
    let message = RoomMessage {
        room: &"r".repeat(128),
        sender: &"u".repeat(256),
        sender_socket: Some(&"s".repeat(22)),
        timestamp_ms: u64::MAX,
        message_id: Some(&"m".repeat(64)),
        offset: Some(u64::MAX),
        data: "1",
    };
    let content = 128 + 256 + 22 + 64 + 1;
    let overhead = json(&room_message(&message)).len() - content;
    assert!(overhead <= r#"{"type":"room_message""#.len() + MESSAGE_OVERHEAD, "{overhead} bytes");
}

#[test]
fn data_passes_from_command_to_event_unchanged() {
    let text = r#"{"type":"room_message","roomId":"r","data":{"a" : 1.50, "b":"\u0041"} }"#;
    let mut scratch = Scratch::default();
    let Ok(Request { command: Command::RoomMessage { room, data }, .. }) = decode(text, &mut scratch) else {
        panic!("not understood: {text}");
    };
    let message = RoomMessage {
        room,
        sender: "anna",
        sender_socket: None,
        timestamp_ms: 1,
        message_id: None,
        offset: None,
        data,
    };
    assert!(json(&room_message(&message)).ends_with(r#","data":{"a" : 1.50, "b":"\u0041"}}"#));
}
