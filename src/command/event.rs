//! Every message from the server to a client, encoded as a complete WebSocket text frame.
//!
//! Where a frame's JSON is wanted without the WebSocket header (for other instances),
//! [`crate::codec::frame::payload`] gives it without a copy. Times are milliseconds since 1970.

use bytes::Bytes;

use super::decode::Position;
use super::json::ObjectWriter;
use super::rejection::ErrorCode;
use crate::codec::frame::FrameWriter;

/// The version of the client protocol.
pub const PROTOCOL_VERSION: u64 = 1;

/// Bytes of a `room_message` without its strings and `data`: keys, punctuation, numbers.
const MESSAGE_OVERHEAD: usize = 160;

/// Bytes that a number adds to an event at most.
const OFFSET_BYTES: usize = r#","offset":18446744073709551615"#.len();

/// Bytes of a list's entry without its strings.
const MEMBER_OVERHEAD: usize = 48;

/// Bytes of any other event that has no long strings.
const SMALL: usize = 160;

/// A member as the others may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The user.
    pub user: &'a str,
    /// The display name, if the user has one.
    pub name: Option<&'a str>,
    /// One of the user's connections in the room.
    pub socket: &'a str,
}

/// The content of [`connection_established`].
#[derive(Clone, Copy, Debug)]
pub struct ConnectionEstablished<'a> {
    /// The connection.
    pub socket: &'a str,
    /// The instance it is on.
    pub instance: &'a str,
    /// The user, once known.
    pub user: Option<&'a str>,
    /// Milliseconds between the server's pings.
    pub heartbeat_ms: u64,
    /// Bytes of the largest message that the server takes.
    pub max_message_bytes: u64,
}

/// The first message on every connection.
pub fn connection_established(content: &ConnectionEstablished<'_>) -> Bytes {
    ObjectWriter::new("connection_established", 2 * SMALL)
        .string("socketId", content.socket)
        .string("instanceId", content.instance)
        .optional_string("userId", content.user)
        .integer("protocol", PROTOCOL_VERSION)
        .integer("heartbeatMs", content.heartbeat_ms)
        .integer("maxMessageBytes", content.max_message_bytes)
        .finish()
}

/// The reply to `authenticate`: the user, and when the token runs out.
pub fn authentication_success(user: &str, expires_at_ms: u64, message_id: Option<&str>) -> Bytes {
    ObjectWriter::new("authentication_success", SMALL + user.len())
        .string("userId", user)
        .integer("expiresAt", expires_at_ms)
        .optional_string("messageId", message_id)
        .finish()
}

/// The content of [`room_joined`].
#[derive(Clone, Copy, Debug)]
pub struct RoomJoined<'a> {
    /// The room.
    pub room: &'a str,
    /// How many users are in it.
    pub member_count: u32,
    /// Where the room's history stands, if it has one that can be reached.
    pub history: Option<Position<'a>>,
    /// If the request had a `since`: the frames of what was missed, or why they cannot be given.
    pub recovery: Option<Result<&'a [Bytes], &'static str>>,
    /// The request's name.
    pub message_id: Option<&'a str>,
}

/// The reply to `join_room`. `members` only if the request asked for them.
pub fn room_joined(
    content: &RoomJoined<'_>,
    members: Option<&mut dyn ExactSizeIterator<Item = Member<'_>>>,
) -> Bytes {
    let RoomJoined { room, member_count, history, recovery, message_id } = *content;
    let missed = recovery.and_then(Result::ok).map_or(0, total_bytes);
    let capacity = 2 * SMALL
        + room.len()
        + members.as_ref().map_or(0, |members| members_capacity(members.len()))
        + missed;
    let writer = ObjectWriter::new("room_joined", capacity)
        .string("roomId", room)
        .integer("memberCount", member_count.into());
    let writer = match members {
        Some(members) => writer.objects("members", members.map(member_fields)),
        None => writer,
    };
    let writer = optional_position(writer, history);
    let writer = match recovery {
        Some(Ok(messages)) => writer.raw("recovered", "true").payloads("messages", messages.iter()),
        Some(Err(reason)) => writer.raw("recovered", "false").string("reason", reason),
        None => writer,
    };
    writer.optional_string("messageId", message_id).finish()
}

/// The reply to `room_history`: a part of the room's past, and where the room stands now.
pub fn room_history(
    room: &str,
    position: Position<'_>,
    messages: &[Bytes],
    message_id: Option<&str>,
) -> Bytes {
    let writer = ObjectWriter::new("room_history", 2 * SMALL + room.len() + total_bytes(messages));
    optional_position(writer.string("roomId", room), Some(position))
        .payloads("messages", messages.iter())
        .optional_string("messageId", message_id)
        .finish()
}

/// A room that a `resume` could not bring the client back into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotResumed {
    /// The room.
    pub room: Box<str>,
    /// What kind of error it was.
    pub code: ErrorCode,
    /// The same in words.
    pub message: &'static str,
}

/// The reply to `resume`, after all its rooms have been answered for.
pub fn resumed<'a>(
    joined: impl Iterator<Item = &'a str>,
    failed: &[NotResumed],
    message_id: Option<&str>,
) -> Bytes {
    let failures = failed.iter().map(|failure| {
        [
            ("roomId", Some(&*failure.room)),
            ("code", Some(failure.code.as_str())),
            ("message", Some(failure.message)),
        ]
    });
    ObjectWriter::new("resumed", 4 * SMALL)
        .strings("joined", joined)
        .objects("failed", failures)
        .optional_string("messageId", message_id)
        .finish()
}

fn optional_position(writer: ObjectWriter, position: Option<Position<'_>>) -> ObjectWriter {
    match position {
        Some(Position { epoch, offset }) => writer.string("epoch", epoch).integer("offset", offset),
        None => writer,
    }
}

fn total_bytes(frames: &[Bytes]) -> usize {
    frames.iter().map(|frame| frame.len() + 1).sum()
}

/// The reply to `leave_room`.
pub fn room_left(room: &str, message_id: Option<&str>) -> Bytes {
    ObjectWriter::new("room_left", SMALL + room.len())
        .string("roomId", room)
        .optional_string("messageId", message_id)
        .finish()
}

/// The reply to `room_members`.
pub fn room_members<'a>(
    room: &str,
    member_count: u32,
    members: impl ExactSizeIterator<Item = Member<'a>>,
    message_id: Option<&str>,
) -> Bytes {
    ObjectWriter::new("room_members", SMALL + room.len() + members_capacity(members.len()))
        .string("roomId", room)
        .integer("memberCount", member_count.into())
        .objects("members", members.map(member_fields))
        .optional_string("messageId", message_id)
        .finish()
}

/// The reply to a message that was sent: to `room`, or to a user or everyone without one.
pub fn message_ack(message_id: &str, room: Option<&str>, offset: Option<u64>) -> Bytes {
    ObjectWriter::new("message_ack", SMALL + room.map_or(0, str::len))
        .optional_string("roomId", room)
        .optional_integer("offset", offset)
        .string("messageId", message_id)
        .finish()
}

/// The reply to `ping`.
pub fn pong(timestamp_ms: u64, message_id: Option<&str>) -> Bytes {
    ObjectWriter::new("pong", SMALL)
        .integer("timestamp", timestamp_ms)
        .optional_string("messageId", message_id)
        .finish()
}

/// The content of [`room_message`].
#[derive(Clone, Copy, Debug)]
pub struct RoomMessage<'a> {
    /// The room.
    pub room: &'a str,
    /// Who sent it; `server` for other programs.
    pub sender: &'a str,
    /// The connection that sent it, if it was one.
    pub sender_socket: Option<&'a str>,
    /// When the server took it.
    pub timestamp_ms: u64,
    /// The sender's name for it.
    pub message_id: Option<&'a str>,
    /// Its number in the room's history, if the room has one.
    pub offset: Option<u64>,
    /// The application's JSON, taken over byte for byte.
    pub data: &'a str,
}

/// A message in a joined room.
pub fn room_message(message: &RoomMessage<'_>) -> Bytes {
    let RoomMessage { room, sender, sender_socket, timestamp_ms, message_id, offset, data } = *message;
    let strings = room.len() + sender.len() + sender_socket.map_or(0, str::len);
    let capacity = MESSAGE_OVERHEAD + strings + message_id.map_or(0, str::len) + data.len();
    ObjectWriter::new("room_message", capacity)
        .string("roomId", room)
        .string("senderId", sender)
        .optional_string("senderSocketId", sender_socket)
        .integer("timestamp", timestamp_ms)
        .optional_string("messageId", message_id)
        .optional_integer("offset", offset)
        .raw("data", data)
        .finish()
}

/// The complete frame of a `room_message` that has got its number: `event` is its JSON without one, to which
/// `offset` is added as the last field.
///
/// # Panics
/// If `event` is empty.
pub fn numbered(event: &[u8], offset: u64) -> Bytes {
    let (closing, fields) = event.split_last().expect("an event is a JSON object");
    debug_assert_eq!(*closing, b'}', "an event is a JSON object");
    let mut frame = FrameWriter::with_capacity(event.len() + OFFSET_BYTES);
    frame.put_bytes(fields);
    frame.put(",\"offset\":");
    frame.put(itoa::Buffer::new().format(offset));
    frame.put("}");
    frame.finish()
}

/// A message to a user.
pub fn user_message(sender: &str, timestamp_ms: u64, message_id: Option<&str>, data: &str) -> Bytes {
    let capacity = MESSAGE_OVERHEAD + sender.len() + message_id.map_or(0, str::len) + data.len();
    ObjectWriter::new("user_message", capacity)
        .string("senderId", sender)
        .integer("timestamp", timestamp_ms)
        .optional_string("messageId", message_id)
        .raw("data", data)
        .finish()
}

/// A message to everyone.
pub fn global_message(sender: &str, timestamp_ms: u64, data: &str) -> Bytes {
    ObjectWriter::new("global_message", MESSAGE_OVERHEAD + sender.len() + data.len())
        .string("senderId", sender)
        .integer("timestamp", timestamp_ms)
        .raw("data", data)
        .finish()
}

/// A user came into a room.
pub fn user_joined_room(room: &str, member: &Member<'_>, member_count: u32) -> Bytes {
    presence("user_joined_room", room, member, member_count)
}

/// A user left a room.
pub fn user_left_room(room: &str, member: &Member<'_>, member_count: u32) -> Bytes {
    presence("user_left_room", room, member, member_count)
}

fn presence(kind: &'static str, room: &str, member: &Member<'_>, member_count: u32) -> Bytes {
    let Member { user, name, socket } = *member;
    let strings = room.len() + user.len() + name.map_or(0, str::len) + socket.len();
    ObjectWriter::new(kind, SMALL + strings)
        .string("roomId", room)
        .string("userId", user)
        .optional_string("name", name)
        .string("socketId", socket)
        .integer("memberCount", member_count.into())
        .finish()
}

/// How many users are in a large room.
pub fn room_size(room: &str, member_count: u32) -> Bytes {
    ObjectWriter::new("room_size", SMALL + room.len())
        .string("roomId", room)
        .integer("memberCount", member_count.into())
        .finish()
}

/// Messages of a room may be lost: the client reloads its state, or reads the history on from where it stopped.
/// `position` is where messages go on from, if that is known.
pub fn room_resync(room: &str, reason: &str, position: Option<Position<'_>>) -> Bytes {
    let writer =
        ObjectWriter::new("room_resync", SMALL + room.len()).string("roomId", room).string("reason", reason);
    optional_position(writer, position).finish()
}

/// Whether the other instances can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterStatus {
    /// They can not.
    Degraded,
    /// They can, again.
    Ok,
}

/// The link to the other instances was lost or is back.
pub fn cluster_status(status: ClusterStatus) -> Bytes {
    let status = match status {
        ClusterStatus::Degraded => "degraded",
        ClusterStatus::Ok => "ok",
    };
    ObjectWriter::new("cluster_status", SMALL).string("status", status).finish()
}

/// This instance is going away.
pub fn server_draining(reconnect_after_ms: u64) -> Bytes {
    ObjectWriter::new("server_draining", SMALL).integer("reconnectAfterMs", reconnect_after_ms).finish()
}

/// A request failed. `message` says what was wrong and what would be right.
pub fn error(code: ErrorCode, message: &str, message_id: Option<&str>, retry_after_ms: Option<u64>) -> Bytes {
    ObjectWriter::new("error", SMALL + message.len())
        .string("code", code.as_str())
        .string("message", message)
        .optional_string("messageId", message_id)
        .optional_integer("retryAfterMs", retry_after_ms)
        .finish()
}

/// One room of a `resume` could not be joined.
pub fn room_error(room: &str, code: ErrorCode, message: &str) -> Bytes {
    ObjectWriter::new("error", SMALL + message.len() + room.len())
        .string("code", code.as_str())
        .string("message", message)
        .string("roomId", room)
        .finish()
}

fn members_capacity(members: usize) -> usize {
    // Ids are mostly UUIDs or shorter; a wrong guess costs a copy.
    members * (MEMBER_OVERHEAD + 2 * 36)
}

fn member_fields(member: Member<'_>) -> [(&'static str, Option<&str>); 3] {
    [("userId", Some(member.user)), ("name", member.name), ("socketId", Some(member.socket))]
}

#[cfg(test)]
mod tests;
