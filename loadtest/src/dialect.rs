//! What differs between room servers: how to join, how to send, and what an incoming message means.

mod tableforge;

pub use tableforge::TableForge;

use crate::stamp::{Payload, Stamp};

/// How to talk to one kind of room server over WebSocket. One value serves all connections of a worker.
pub trait Dialect: Send {
    /// Appends the message that joins `room`.
    fn write_join(&self, room: &str, out: &mut Vec<u8>);

    /// Appends the message that sends a stamped payload to `room`; `acknowledged` asks for a reply.
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

/// What a server's text message means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The connection may be used.
    Greeting,
    /// The connection is in its room.
    Joined,
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
