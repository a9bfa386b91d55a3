//! What a run records: who sent, got, joined and left what, and when.

use std::fmt;

/// A room, by a number of the caller's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Room(pub u32);

/// A client over all of its connections, by a number of the caller's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member(pub u32);

/// A message: its sender's how-manieth one to its room. Sending it again does not change its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    /// Who sent it.
    pub sender: Member,
    /// Rises by one with each new message of the sender to the room.
    pub number: u64,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "room {}", self.0)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {}", self.0)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of {}", self.number, self.sender)
    }
}

/// A place in the history of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The numbering.
    pub epoch: u64,
    /// The last message's number; 0 before the first.
    pub offset: u64,
}

/// What a join was answered about the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The client had not asked, or was told that it could not be given everything.
    None,
    /// `recovered: true`: this is all that came after `since`, in order, with offsets.
    Full {
        /// Where the client had stopped reading.
        since: Position,
        /// What it missed.
        messages: Vec<(u64, Message)>,
    },
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A client sent a message, for the first time or again.
    Sent {
        /// To which room.
        room: Room,
        /// What.
        message: Message,
        /// The how-manieth connection of the client it went out on.
        session: u32,
    },
    /// A sender got the `message_ack`.
    Acked {
        /// Of the message to this room.
        room: Room,
        /// What.
        message: Message,
        /// The ack's `offset`.
        offset: Option<u64>,
    },
    /// The server that acknowledged a message of a room without history has died before it can have told the
    /// others: it may be lost.
    Doubted {
        /// Of the message to this room.
        room: Room,
        /// What.
        message: Message,
    },
    /// A sender was told that nothing was done: any `error` but `timeout`. Record nothing for `timeout` and
    /// for a connection that ended before the reply: the outcome is unknown then.
    Failed {
        /// The message to this room.
        room: Room,
        /// What.
        message: Message,
    },
    /// A client is in a room: `room_joined`.
    Joined {
        /// Who.
        member: Member,
        /// Where.
        room: Room,
        /// Whether it wants its own messages back.
        echo: bool,
        /// Where the room's history stands, if it has one.
        position: Option<Position>,
        /// What it was given of the past.
        recovery: Recovery,
    },
    /// A client got a `room_message`.
    Received {
        /// Who.
        member: Member,
        /// From which room.
        room: Room,
        /// Its number, if the room has history.
        offset: Option<u64>,
        /// What.
        message: Message,
    },
    /// A client was told that it may have missed messages.
    Resynced {
        /// Who.
        member: Member,
        /// In which room.
        room: Room,
        /// Where the room goes on from, if that was said.
        position: Option<Position>,
    },
    /// A client is no longer in a room because it wanted to leave: `room_left`.
    Left {
        /// Who.
        member: Member,
        /// Where.
        room: Room,
    },
    /// A client's connection has ended: a close frame came, or the socket broke. It still wants to be in its
    /// rooms.
    Closed {
        /// Who.
        member: Member,
    },
    /// A client has gone for good.
    Gone {
        /// Who.
        member: Member,
    },
    /// Something is being broken from now on.
    FaultsBegin,
    /// Everything has been put right.
    FaultsEnd,
}

/// A room's history as it is at the end, with all that is still kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Final {
    /// The room.
    pub room: Room,
    /// Where it stands.
    pub position: Position,
    /// What is kept, in rising order.
    pub messages: Vec<(u64, Message)>,
}
