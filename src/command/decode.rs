//! What a client's message asks for.

use std::borrow::Cow;
use std::fmt;

use crate::command::document::{self, Document, Value};
use crate::command::rejection::{ErrorCode, Rejection};
use crate::identity::RoomId;
use crate::limits;

pub use crate::command::document::Scratch;

/// A client's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The client's name for it, which the one reply carries; 1 to 64 bytes.
    pub message_id: Option<&'a str>,
    /// What it asks for.
    pub command: Command<'a>,
}

/// What a client may ask for. Room names are valid ([`RoomId::is_valid`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Say who the user is, or renew that.
    Authenticate {
        /// The token.
        token: Token<'a>,
    },
    /// Come into a room.
    JoinRoom {
        /// The room.
        room: &'a str,
        /// The last message that the client has seen.
        since: Option<Position<'a>>,
        /// Whether the reply lists the members.
        members: bool,
        /// Whether the connection gets its own messages too.
        echo: bool,
    },
    /// Come into several rooms at once, after a reconnect.
    Resume {
        /// The rooms, each of them once; at most [`limits::RESUME_ROOMS`].
        rooms: Vec<ResumedRoom<'a>>,
    },
    /// Leave a room.
    LeaveRoom {
        /// The room.
        room: &'a str,
    },
    /// Say something to a room.
    RoomMessage {
        /// The room.
        room: &'a str,
        /// The application's JSON, byte for byte.
        data: &'a str,
    },
    /// Say something to a user.
    UserMessage {
        /// The user; of an allowed length.
        target: &'a str,
        /// The application's JSON, byte for byte.
        data: &'a str,
    },
    /// Say something to everyone.
    GlobalMessage {
        /// The application's JSON, byte for byte.
        data: &'a str,
    },
    /// Ask who is in a room.
    RoomMembers {
        /// The room.
        room: &'a str,
    },
    /// Ask for a room's past messages.
    RoomHistory {
        /// The room.
        room: &'a str,
        /// The message after (or, in reverse, before) which to begin.
        since: Option<Position<'a>>,
        /// How many messages at most; at least 1.
        limit: Option<u32>,
        /// Whether the newest message comes first.
        reverse: bool,
    },
    /// Ask whether the server is there, and for its time.
    Ping,
}

impl Command<'_> {
    /// Whether it is a message to others.
    pub fn is_publication(&self) -> bool {
        matches!(self, Self::RoomMessage { .. } | Self::UserMessage { .. } | Self::GlobalMessage { .. })
    }
}

/// One room of a `resume`: what `join_room` has too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumedRoom<'a> {
    /// The room.
    pub room: &'a str,
    /// The last message that the client has seen.
    pub since: Option<Position<'a>>,
    /// Whether the reply lists the members.
    pub members: bool,
    /// Whether the connection gets its own messages too.
    pub echo: bool,
}

/// A place in a room's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position<'a> {
    /// The history that the offset belongs to; 1 to 64 bytes.
    pub epoch: &'a str,
    /// The number of a message in it.
    pub offset: u64,
}

/// A token, which never shows in logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token<'a>(pub &'a str);

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// A publication by another program: plain JSON on a Redis channel, or the body of an HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication<'a> {
    /// The publisher's name for it; 1 to 64 bytes.
    pub message_id: Option<&'a str>,
    /// The application's JSON, byte for byte.
    pub data: &'a str,
}

/// Understands one text message of a client.
///
/// # Errors
/// What the client is told if the text is not a message of the protocol.
pub fn decode<'a>(text: &'a str, scratch: &'a mut Scratch) -> Result<Request<'a>, Rejection<'a>> {
    decode_with(text, scratch, command).map(|(message_id, command)| Request { message_id, command })
}

/// Understands what another program published: an object with `data`, and perhaps a `messageId`.
///
/// # Errors
/// What was wrong with it.
pub fn decode_publication<'a>(
    text: &'a str,
    scratch: &'a mut Scratch,
) -> Result<Publication<'a>, Rejection<'a>> {
    decode_with(text, scratch, |fields| fields.data())
        .map(|(message_id, data)| Publication { message_id, data })
}

/// An error code and its text, before it is known which message it answers.
type Problem = (ErrorCode, Cow<'static, str>);

/// Reads `text` as an object with perhaps a `messageId`, and the rest by `decode_fields`.
fn decode_with<'a, T>(
    text: &'a str,
    scratch: &'a mut Scratch,
    decode_fields: impl FnOnce(&Fields<'_, 'a>) -> Result<T, Problem>,
) -> Result<(Option<&'a str>, T), Rejection<'a>> {
    let rejection = |(code, message), message_id| Rejection { code, message, message_id };
    let decoded = scratch.read(text, |document| {
        let fields = Fields { document, root: document.root() };
        let message_id = fields.message_id().map_err(|problem| rejection(problem, None))?;
        match decode_fields(&fields) {
            Ok(decoded) => Ok((message_id, decoded)),
            Err(problem) => Err(rejection(problem, message_id)),
        }
    });
    decoded.unwrap_or_else(|message| Err(rejection((ErrorCode::InvalidJson, message), None)))
}

fn command<'a>(fields: &Fields<'_, 'a>) -> Result<Command<'a>, Problem> {
    match fields.string("type")? {
        "room_message" => Ok(Command::RoomMessage { room: fields.room()?, data: fields.data()? }),
        "user_message" => Ok(Command::UserMessage { target: fields.target()?, data: fields.data()? }),
        "global_message" => Ok(Command::GlobalMessage { data: fields.data()? }),
        "join_room" => Ok(Command::JoinRoom {
            room: fields.room()?,
            since: fields.since()?,
            members: fields.flag("members")?,
            echo: fields.flag("echo")?,
        }),
        "resume" => Ok(Command::Resume { rooms: fields.resumed_rooms()? }),
        "leave_room" => Ok(Command::LeaveRoom { room: fields.room()? }),
        "room_members" => Ok(Command::RoomMembers { room: fields.room()? }),
        "room_history" => Ok(Command::RoomHistory {
            room: fields.room()?,
            since: fields.since()?,
            limit: fields.limit()?,
            reverse: fields.flag("reverse")?,
        }),
        "authenticate" => Ok(Command::Authenticate { token: Token(fields.string("token")?) }),
        "ping" => Ok(Command::Ping),
        unknown => Err((
            ErrorCode::UnknownType,
            format!(
                "type {} is not known: use authenticate, join_room, resume, leave_room, room_message, user_message, \
                 global_message, room_members, room_history or ping",
                document::quote(unknown)
            )
            .into(),
        )),
    }
}

/// The fields of a message, read by the protocol's rules.
struct Fields<'d, 'a> {
    document: &'d Document<'d, 'a>,
    root: Value<'d, 'a>,
}

impl<'a> Fields<'_, 'a> {
    fn message_id(&self) -> Result<Option<&'a str>, Problem> {
        if !self.root.is_object() {
            let kind = self.root.kind();
            return Err(invalid(format!("the message is {kind}: send an object with a type")));
        }
        let Some(value) = self.root.get("messageId") else { return Ok(None) };
        match value.as_str() {
            Some(id) if (1..=limits::MESSAGE_ID_BYTES).contains(&id.len()) => Ok(Some(id)),
            Some(id) => Err(wrong_length("messageId", id.len(), limits::MESSAGE_ID_BYTES)),
            None => Err(mistyped("messageId", value, "a string of 1 to 64 bytes")),
        }
    }

    fn string(&self, name: &'static str) -> Result<&'a str, Problem> {
        let value = self.root.get(name).ok_or_else(|| missing(name, "a string"))?;
        value.as_str().ok_or_else(|| mistyped(name, value, "a string"))
    }

    fn room(&self) -> Result<&'a str, Problem> {
        let room = self.string("roomId")?;
        if RoomId::is_valid(room) {
            return Ok(room);
        }
        let rule = "use 1 to 128 bytes of A-Z a-z 0-9 _ . : -";
        Err((ErrorCode::InvalidRoom, format!("roomId {} is not valid: {rule}", document::quote(room)).into()))
    }

    fn target(&self) -> Result<&'a str, Problem> {
        let user = self.string("targetUserId")?;
        if (1..=limits::USER_ID_BYTES).contains(&user.len()) {
            return Ok(user);
        }
        Err(wrong_length("targetUserId", user.len(), limits::USER_ID_BYTES))
    }

    fn data(&self) -> Result<&'a str, Problem> {
        self.document.source_of("data").ok_or_else(|| missing("data", "any JSON value"))
    }

    /// An optional field that is false when absent.
    fn flag(&self, name: &'static str) -> Result<bool, Problem> {
        match self.root.get(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| mistyped(name, value, "true or false")),
        }
    }

    fn since(&self) -> Result<Option<Position<'a>>, Problem> {
        let Some(since) = self.root.get("since") else { return Ok(None) };
        if !since.is_object() {
            return Err(mistyped("since", since, "an object with epoch and offset"));
        }
        let epoch = since.get("epoch").ok_or_else(|| missing("since.epoch", "a string"))?;
        let epoch = epoch.as_str().ok_or_else(|| mistyped("since.epoch", epoch, "a string"))?;
        if !(1..=limits::EPOCH_BYTES).contains(&epoch.len()) {
            return Err(wrong_length("since.epoch", epoch.len(), limits::EPOCH_BYTES));
        }
        let wanted = "a whole number from 0";
        let offset = since.get("offset").ok_or_else(|| missing("since.offset", wanted))?;
        let offset = offset.as_u64().ok_or_else(|| mistyped("since.offset", offset, wanted))?;
        Ok(Some(Position { epoch, offset }))
    }

    fn resumed_rooms(&self) -> Result<Vec<ResumedRoom<'a>>, Problem> {
        let wanted = "a list of objects with roomId";
        let value = self.root.get("rooms").ok_or_else(|| missing("rooms", wanted))?;
        let items = value.items().ok_or_else(|| mistyped("rooms", value, wanted))?;
        let mut rooms = Vec::new();
        for root in items {
            if !root.is_object() {
                return Err(mistyped("an entry of rooms", root, "an object with roomId"));
            }
            if rooms.len() == limits::RESUME_ROOMS {
                let most = limits::RESUME_ROOMS;
                return Err(invalid(format!("rooms has too many entries: use at most {most} in one resume")));
            }
            let fields = Fields { document: self.document, root };
            rooms.push(ResumedRoom {
                room: fields.room()?,
                since: fields.since()?,
                members: fields.flag("members")?,
                echo: fields.flag("echo")?,
            });
        }
        let mut names: Vec<_> = rooms.iter().map(|wanted| wanted.room).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                let room = document::quote(pair[0]);
                Err(invalid(format!("rooms has {room} twice: name each room once")))
            }
            None => Ok(rooms),
        }
    }

    fn limit(&self) -> Result<Option<u32>, Problem> {
        let Some(limit) = self.root.get("limit") else { return Ok(None) };
        match limit.as_u64().and_then(|limit| u32::try_from(limit).ok()) {
            Some(limit) if limit > 0 => Ok(Some(limit)),
            _ => Err(mistyped("limit", limit, "a whole number from 1 to 4294967295")),
        }
    }
}

fn invalid(message: String) -> Problem {
    (ErrorCode::InvalidMessage, message.into())
}

fn missing(name: &str, wanted: &str) -> Problem {
    invalid(format!("{name} is missing: it must be {wanted}"))
}

fn mistyped(name: &str, value: Value<'_, '_>, wanted: &str) -> Problem {
    invalid(format!("{name} is {}: it must be {wanted}", value.kind()))
}

fn wrong_length(name: &str, length: usize, limit: usize) -> Problem {
    invalid(format!("{name} has {length} bytes: it must have 1 to {limit}"))
}

#[cfg(test)]
mod tests;
