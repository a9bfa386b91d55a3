//! The application is asked who may join what: one HTTP call per question, off the shards' threads.
//!
//! A shard sends a [`Question`] and goes on; the [`Verdict`] comes back through its queue. In between stand a cache
//! of answers, and a breaker that leaves an application alone which does not answer. No answer is never a yes.

mod answer;
mod breaker;
mod cache;
pub mod driver;

use crate::identity::{ConnectionId, RoomId, UserId};
use crate::permission::RoomRights;

/// May this user join this room?
#[derive(Debug)]
pub struct Question {
    /// The connection that waits for the verdict.
    pub connection: ConnectionId,
    /// The user.
    pub user: UserId,
    /// The room.
    pub room: RoomId,
    /// When it was asked, in ms since the process started.
    pub asked_ms: u64,
}

/// What the application has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The user may join, and has these rights in the room; `join` is among them.
    Allowed(RoomRights),
    /// The user may not.
    Forbidden,
    /// There is no answer now.
    Unavailable {
        /// Milliseconds after which asking again makes sense.
        retry_after_ms: u64,
    },
}
