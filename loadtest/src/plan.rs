//! What a run connects to and how it talks; the same for all its workers.

use std::time::Duration;

use crate::credentials::Credentials;
use crate::dialect::Language;
use crate::layout::Layout;
use crate::stamp::Payload;
use crate::target::{Sources, Target};

/// A run, apart from when and how fast it sends.
pub struct Plan {
    /// The servers.
    pub targets: Vec<Target>,
    /// What the servers speak.
    pub language: Language,
    /// The source addresses.
    pub sources: Sources,
    /// The connections and their rooms.
    pub layout: Layout,
    /// The names of the rooms.
    pub rooms: Vec<String>,
    /// How connections authenticate.
    pub credentials: Credentials,
    /// Whether connections join their rooms.
    pub join: bool,
    /// Whether connections offer permessage-deflate.
    pub deflate: bool,
    /// Whether rooms are named in the address even where they can be asked for.
    pub join_by_url: bool,
    /// Connections begun per second; `None` for as fast as the handshakes in flight allow.
    pub connect_rate: Option<f64>,
    /// Time for a connection to become ready.
    pub connect_timeout: Duration,
    /// What messages carry.
    pub payload: Payload,
    /// Whether messages ask for an ack.
    pub acknowledged: bool,
    /// Pause between reads while messages are sent; zero to read whatever is ready at once.
    pub read_interval: Duration,
    /// Seed of everything random.
    pub seed: u64,
    /// Workers, each a thread with its own share of the connections.
    pub workers: usize,
}
