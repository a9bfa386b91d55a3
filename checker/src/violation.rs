//! What a broken promise looks like.

use std::fmt;

use crate::record::{Member, Message, Room};

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two messages have the same place in a room's history.
    Fork {
        /// The room.
        room: Room,
        /// The numbering.
        epoch: u64,
        /// The place.
        offset: u64,
        /// Whom the first record shows there.
        first: Message,
        /// Whom a later record shows there.
        second: Message,
    },
    /// A message has two places in one numbering, or a member of a room without history got it twice.
    Duplicate {
        /// The room.
        room: Room,
        /// The message.
        message: Message,
        /// The member that saw it; nothing when two records of the history disagree.
        member: Option<Member>,
    },
    /// A member was not given the message with this offset, and not told.
    Gap {
        /// The room.
        room: Room,
        /// Who.
        member: Member,
        /// What should have come.
        expected: u64,
        /// What came.
        got: u64,
        /// When it came.
        at_ms: u64,
    },
    /// A member of a room without history did not get an acknowledged message, and was not told.
    Lost {
        /// The room.
        room: Room,
        /// Who.
        member: Member,
        /// The message.
        message: Message,
    },
    /// A message came without an offset where one is due, or with one where none is.
    Unnumbered {
        /// The room.
        room: Room,
        /// Who got it.
        member: Member,
        /// The message.
        message: Message,
    },
    /// Two messages of one connection are not in the order in which they were sent.
    OutOfOrder {
        /// The room.
        room: Room,
        /// The one that was sent first.
        first: Message,
        /// The one that came first.
        second: Message,
        /// Who saw it; nothing when the room's history has it so.
        member: Option<Member>,
    },
    /// A message of which the sender was told that nothing was done.
    Refused {
        /// The room.
        room: Room,
        /// The message that was delivered or stored all the same.
        message: Message,
    },
    /// A message that nobody sent.
    Invented {
        /// The room.
        room: Room,
        /// The message.
        message: Message,
    },
    /// An acknowledged message is not in the history, or elsewhere in it.
    NotStored {
        /// The room.
        room: Room,
        /// The message.
        message: Message,
        /// Where the acknowledgement says it is.
        acked: u64,
        /// Where it is.
        found: Option<u64>,
    },
    /// A message for someone who is not in the room.
    Uninvited {
        /// The room.
        room: Room,
        /// Who got it.
        member: Member,
        /// The message.
        message: Message,
        /// When.
        at_ms: u64,
    },
    /// What a member was given as all that it had missed is not all, or not what it had missed.
    WrongRecovery {
        /// The room.
        room: Room,
        /// Who.
        member: Member,
        /// When.
        at_ms: u64,
    },
    /// With no fault left, a message took longer than allowed.
    Late {
        /// The room.
        room: Room,
        /// Who waited.
        member: Member,
        /// The message.
        message: Message,
        /// For how long.
        ms: u64,
    },
    /// At the end a member that wants to be in the room is not in it, or is behind.
    NotCurrent {
        /// The room.
        room: Room,
        /// Who.
        member: Member,
        /// How far it has come; nothing when it is not in the room.
        at: Option<u64>,
        /// How far it should be.
        should: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fork { room, epoch, offset, first, second } => {
                write!(f, "{room}: {first} and {second} are both number {offset} of epoch {epoch:016x}")
            }
            Self::Duplicate { room, message, member: Some(member) } => {
                write!(f, "{room}: {member} got {message} twice")
            }
            Self::Duplicate { room, message, member: None } => {
                write!(f, "{room}: {message} has two offsets in one epoch")
            }
            Self::Gap { room, member, expected, got, at_ms } => {
                write!(f, "{room}: at {at_ms} ms {member} got number {got}, and {expected} was to come")
            }
            Self::Lost { room, member, message } => {
                write!(f, "{room}: {member} neither got {message} nor was told of a loss")
            }
            Self::Unnumbered { room, member, message } => {
                write!(f, "{room}: {member} got {message} with or without an offset, unlike the others")
            }
            Self::OutOfOrder { room, first, second, member: Some(member) } => {
                write!(f, "{room}: {member} got {second} before {first}, which was sent before it")
            }
            Self::OutOfOrder { room, first, second, member: None } => {
                write!(f, "{room}: {second} is stored before {first}, which was sent before it")
            }
            Self::Refused { room, message } => {
                write!(f, "{room}: {message} was refused and delivered all the same")
            }
            Self::Invented { room, message } => write!(f, "{room}: nobody has sent {message}"),
            Self::NotStored { room, message, acked, found: None } => {
                write!(f, "{room}: {message} was acknowledged as number {acked} and is not in the history")
            }
            Self::NotStored { room, message, acked, found: Some(found) } => {
                write!(f, "{room}: {message} was acknowledged as number {acked} and is number {found}")
            }
            Self::Uninvited { room, member, message, at_ms } => {
                write!(f, "{room}: at {at_ms} ms {member}, who is not in the room, got {message}")
            }
            Self::WrongRecovery { room, member, at_ms } => {
                write!(f, "{room}: at {at_ms} ms {member} was not given exactly what it had missed")
            }
            Self::Late { room, member, message, ms } => {
                write!(f, "{room}: {member} waited {ms} ms for {message} although nothing was amiss")
            }
            Self::NotCurrent { room, member, at: None, should } => {
                write!(f, "{room}: at the end {member} is not in the room, which is at {should}")
            }
            Self::NotCurrent { room, member, at: Some(at), should } => {
                write!(f, "{room}: at the end {member} is at {at} and should be at {should}")
            }
        }
    }
}
