//! What a run connects to and how it talks; the same for all its workers.

use std::time::Duration;

use crate::credentials::Credentials;
use crate::dialect::Language;
use crate::layout::Layout;
use crate::payloads::{Payloads, scattered};
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
    /// Connections that may be under way at once, over all workers.
    pub handshakes: usize,
    /// What messages carry.
    pub payloads: Payloads,
    /// How sending is shared among the rooms.
    pub turns: Turns,
    /// Connections per second that leave and come back at once, while messages are sent; 0 for none. They are
    /// those at the transient places of the layout.
    pub churn_rate: f64,
    /// Whether connections that come back say what they have seen, and whether refused ones try again.
    pub resume: bool,
    /// Messages that the first member of each room sends in a round.
    pub round_messages: u32,
    /// Length of the intervals that are reported, in microseconds.
    pub interval_us: u64,
    /// Whether messages ask for an ack.
    pub acknowledged: bool,
    /// Pause between reads while messages are sent; zero to read whatever is ready at once.
    pub read_interval: Duration,
    /// Seed of everything random.
    pub seed: u64,
    /// Workers, each a thread with its own share of the connections.
    pub workers: usize,
}

/// How sending is shared among the rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    /// All rooms and members send the same.
    Equal,
    /// Every room has a rate of its own, from this to that many messages per second.
    PerRoom(u32, u32),
}

impl Turns {
    /// Messages that a room sends in one round of turns.
    pub fn of_room(self, room: usize, members: usize, seed: u64) -> u32 {
        match self {
            Self::Equal => members as u32,
            Self::PerRoom(low, high) => {
                let spread = u64::from(high - low) + 1;
                low + (scattered(seed ^ room as u64) % spread) as u32
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::payloads::Mix;

    /// A small plan for tests to change.
    pub fn plan() -> Plan {
        let layout = Layout { connections: 1, room_size: 1, servers: 1, transients: 0 };
        Plan {
            targets: Vec::new(),
            language: Language::Tableforge,
            sources: Sources::new(&[], 0, None).expect("no connections need no sources"),
            layout,
            rooms: Vec::new(),
            credentials: Credentials::new(None, None),
            join: true,
            deflate: false,
            join_by_url: false,
            connect_rate: None,
            connect_timeout: Duration::ZERO,
            handshakes: 1,
            payloads: Payloads::new(&Mix::of_one_size(100), 1),
            turns: Turns::Equal,
            churn_rate: 0.0,
            resume: false,
            round_messages: 0,
            interval_us: 1_000_000,
            acknowledged: false,
            read_interval: Duration::ZERO,
            seed: 1,
            workers: 1,
        }
    }
}
