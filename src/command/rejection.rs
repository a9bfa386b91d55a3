//! What an `error` message says.

use std::borrow::Cow;

/// The `code` of an `error` message: a part of the client protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The text is not the JSON that the protocol allows.
    InvalidJson,
    /// A field is missing, or is not what it must be.
    InvalidMessage,
    /// No message has this `type`.
    UnknownType,
    /// The `roomId` is not a valid name.
    InvalidRoom,
    /// The message is larger than the server or the room allows.
    MessageTooLarge,
    /// The connection has to authenticate first.
    Unauthenticated,
    /// The user may not do this.
    Forbidden,
    /// The connection is not in this room.
    NotInRoom,
    /// The room takes no more members.
    RoomFull,
    /// The connection is in as many rooms as it may be.
    TooManyRooms,
    /// The connection sent more than its limit.
    RateLimited,
    /// Something that the request needs is away. Nothing was done.
    Unavailable,
    /// Nothing was heard in time: the outcome is unknown.
    Timeout,
    /// The server's own fault.
    Internal,
}

impl ErrorCode {
    /// Every code, for counters and documents.
    pub const ALL: [Self; 14] = [
        Self::InvalidJson,
        Self::InvalidMessage,
        Self::UnknownType,
        Self::InvalidRoom,
        Self::MessageTooLarge,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotInRoom,
        Self::RoomFull,
        Self::TooManyRooms,
        Self::RateLimited,
        Self::Unavailable,
        Self::Timeout,
        Self::Internal,
    ];

    /// The code as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidMessage => "invalid_message",
            Self::UnknownType => "unknown_type",
            Self::InvalidRoom => "invalid_room",
            Self::MessageTooLarge => "message_too_large",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotInRoom => "not_in_room",
            Self::RoomFull => "room_full",
            Self::TooManyRooms => "too_many_rooms",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }
}

/// Why a client's message was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection<'a> {
    /// The kind of error.
    pub code: ErrorCode,
    /// What was wrong and what would be right, for a person. May quote the client.
    pub message: Cow<'static, str>,
    /// The message's `messageId`, if it could be read: the error answers it.
    pub message_id: Option<&'a str>,
}
