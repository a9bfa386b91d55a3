//! Every message from the server to a client, encoded as a complete WebSocket text frame.
//!
//! Where a frame's JSON is wanted without the WebSocket header (for other instances),
//! [`crate::codec::frame::payload`] gives it without a copy. Times are milliseconds since 1970.

use bytes::Bytes;

use super::decode::Position;
use super::json::ObjectWriter;
use super::rejection::ErrorCode;
use crate::codec::frame::{self, FrameWriter};

/// The version of the client protocol.
pub const PROTOCOL_VERSION: u64 = 1;

/// Bytes of a `room_message` without its strings and `data`: keys, punctuation, numbers.
const MESSAGE_OVERHEAD: usize = 160;

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

/// The connection's token runs out soon: `in_ms` from now the connection ends, unless it is renewed.
pub fn token_expiring(expires_at_ms: u64, in_ms: u64) -> Bytes {
    ObjectWriter::new("token_expiring", SMALL)
        .integer("expiresAt", expires_at_ms)
        .integer("inMs", in_ms)
        .finish()
}

/// The content of [`room_joined`].
pub struct RoomJoined<'a, 'm> {
    /// The room.
    pub room: &'a str,
    /// How many users are in it.
    pub member_count: u32,
    /// All of them, if the request asked for that.
    pub members: Option<&'a mut dyn ExactSizeIterator<Item = Member<'m>>>,
    /// Where the room's history stands, if it has one.
    pub position: Option<Position<'a>>,
    /// If the request had a `since`: the frames of what was missed, or why they are not given.
    pub recovery: Option<Result<&'a [Bytes], &'static str>>,
    /// The request's name.
    pub message_id: Option<&'a str>,
}

/// The reply to `join_room`.
pub fn room_joined(content: RoomJoined<'_, '_>) -> Bytes {
    let RoomJoined { room, member_count, members, position, recovery, message_id } = content;
    let missed = recovery.and_then(Result::ok).unwrap_or_default();
    let listed = members.as_ref().map_or(0, |members| members_capacity(members.len()));
    let writer = ObjectWriter::new("room_joined", 2 * SMALL + room.len() + listed + total_bytes(missed))
        .string("roomId", room)
        .integer("memberCount", member_count.into());
    let writer = match members {
        Some(members) => writer.objects("members", members.map(member_fields)),
        None => writer,
    };
    let writer = with_position(writer, position);
    let writer = match recovery {
        Some(Ok(frames)) => writer.raw("recovered", "true").raws("messages", texts(frames)),
        Some(Err(reason)) => writer.raw("recovered", "false").string("reason", reason),
        None => writer,
    };
    writer.optional_string("messageId", message_id).finish()
}

fn with_position(writer: ObjectWriter, position: Option<Position<'_>>) -> ObjectWriter {
    match position {
        Some(Position { epoch, offset }) => writer.string("epoch", epoch).integer("offset", offset),
        None => writer,
    }
}

fn total_bytes(frames: &[Bytes]) -> usize {
    frames.iter().map(Bytes::len).sum()
}

/// The JSON of frames that this module made.
fn texts(frames: &[Bytes]) -> impl Iterator<Item = &str> {
    frames.iter().map(frame::text_of)
}

/// The reply to `room_history`.
pub fn room_history(room: &str, position: Position<'_>, frames: &[Bytes], message_id: Option<&str>) -> Bytes {
    let writer = ObjectWriter::new("room_history", SMALL + room.len() + total_bytes(frames));
    with_position(writer.string("roomId", room), Some(position))
        .raws("messages", texts(frames))
        .optional_string("messageId", message_id)
        .finish()
}

/// A room that `resume` could not join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotResumed {
    /// The room.
    pub room: Box<str>,
    /// The error's code.
    pub code: ErrorCode,
    /// What was wrong and what would be right.
    pub message: Box<str>,
}

/// The reply to `resume`, after a `room_joined` for each room that was `joined`.
pub fn resumed<'a>(
    joined: impl Iterator<Item = &'a str>,
    failed: &'a [NotResumed],
    message_id: Option<&str>,
) -> Bytes {
    let failed = failed.iter().map(|failure| {
        let NotResumed { room, code, message } = failure;
        [("roomId", Some(&**room)), ("code", Some(code.as_str())), ("message", Some(&**message))]
    });
    ObjectWriter::new("resumed", 4 * SMALL)
        .strings("joined", joined)
        .objects("failed", failed)
        .optional_string("messageId", message_id)
        .finish()
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

/// `event`, the JSON of a `room_message` without an offset, as the complete frame with one.
///
/// # Panics
/// When `event` is empty.
pub fn numbered(event: &str, offset: u64) -> Bytes {
    let mut writer = FrameWriter::with_capacity(event.len() + 32);
    writer.put(&event[..event.len() - 1]);
    writer.put(",\"offset\":");
    writer.put(itoa::Buffer::new().format(offset));
    writer.put("}");
    writer.finish()
}

/// The `timestamp` of an event that this module made, in milliseconds since 1970; nothing if it has none.
pub fn timestamp(event: &str) -> Option<u64> {
    // Nothing before it is the application's, and a quote within a name is escaped.
    let (_, rest) = event.split_once(",\"timestamp\":")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
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

/// Messages of a room may be lost for good: the client reloads its state. `position` is where the room's history
/// goes on from, if it has one.
pub fn room_resync(room: &str, reason: &str, position: Option<Position<'_>>) -> Bytes {
    let writer = ObjectWriter::new("room_resync", SMALL + room.len());
    with_position(writer.string("roomId", room).string("reason", reason), position).finish()
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
