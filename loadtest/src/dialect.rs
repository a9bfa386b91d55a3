//! What differs between room servers: how to join, how to send, and what an incoming message means.

mod plain;
mod socketio;
mod tableforge;

use crate::stamp::{Payload, Stamp};

/// The kinds of room servers that the generator can talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    /// TableForge's JSON messages
    Tableforge,
    /// Text frames, published as they are to the other members of the room in the URL's `room` parameter
    Plain,
    /// Socket.IO 4 over WebSocket: the event `join`, acknowledged, and the event `m` for messages
    Socketio,
}

impl Language {
    /// A dialect that has read nothing yet.
    pub fn dialect(self) -> Box<dyn Dialect> {
        match self {
            Self::Tableforge => Box::new(tableforge::TableForge::new()),
            Self::Plain => Box::new(plain::Plain::new()),
            Self::Socketio => Box::new(socketio::SocketIo::new()),
        }
    }

    /// Whether a join can say what was seen before.
    pub fn has_history(self) -> bool {
        matches!(self, Self::Tableforge)
    }

    /// Whether a message can ask for an ack.
    pub fn has_acks(self) -> bool {
        matches!(self, Self::Tableforge)
    }
}

/// How a connection gets into its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// It asks once the server has greeted it, and the server answers.
    Asked,
    /// The room is named in the upgrade's request target, and nothing more is said.
    Upgraded,
}

/// How to talk to one kind of room server over WebSocket. One value serves all connections of a worker.
pub trait Dialect: Send {
    /// How a connection gets into its room.
    fn joining(&self) -> Joining {
        Joining::Asked
    }

    /// The request target to upgrade at, made of the URL's own; `room` is the room to be in at once, which
    /// matters with [`Joining::Upgraded`] only.
    fn request_target(&self, path: &str, _room: Option<&str>) -> String {
        path.to_owned()
    }

    /// Appends the message that joins `room`; never called with [`Joining::Upgraded`]. `since` says what has
    /// been seen, where [`Language::has_history`].
    fn write_join(&self, room: &str, since: Option<&Position>, out: &mut Vec<u8>);

    /// Appends the message that sends a stamped payload to `room`; `acknowledged` asks for a reply, where
    /// [`Language::has_acks`].
    fn write_message(
        &self,
        room: &str,
        stamp: &Stamp,
        payload: &Payload,
        acknowledged: bool,
        out: &mut Vec<u8>,
    );

    /// What a text message means. Called for every delivery, so it has to be cheap for those.
    fn read(&mut self, text: &[u8]) -> Incoming;

    /// Whether a delivery is right in every field, the data byte for byte; for samples.
    fn is_correct(&self, text: &[u8], room: &str, stamp: &Stamp, payload: &Payload) -> bool;
}

/// How far a member has seen a room with history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The name of the numbering.
    pub epoch: String,
    /// The number of the last message.
    pub offset: u64,
}

/// Where a room stands when a connection joins it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Where the room's history stands, if it has one.
    pub position: Option<Position>,
    /// Where the join said what it had seen: the stamps of what was missed, or why they are not given.
    pub recovered: Option<Result<Vec<Stamp>, String>>,
}

/// What a server's text message means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The connection may be used.
    Greeting,
    /// The server waits for this text message before anything else, or to see that the client is alive.
    Answer(&'static str),
    /// The connection is in its room.
    Joined(Standing),
    /// Another member came or left.
    Presence,
    /// A message from a member of the room.
    Delivery(Stamp),
    /// The reply to a message that asked for one.
    Acknowledged(Stamp),
    /// A request failed and nothing was done.
    Refused {
        /// The server's name for the reason.
        code: String,
        /// Whether the refused message carried a stamp to reply to.
        acknowledged: bool,
    },
    /// The server does not know whether a message got through.
    Uncertain {
        /// The server's name for the reason.
        code: String,
        /// Whether the message carried a stamp to reply to.
        acknowledged: bool,
    },
    /// Something worth counting, by name.
    Notice(String),
    /// Nothing to do.
    Ignored,
    /// Not a message of this dialect.
    Malformed,
}

/// `path` with more query parameters.
pub fn with_query(path: &str, query: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}{query}")
}
