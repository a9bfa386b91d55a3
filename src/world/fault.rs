//! What goes wrong in a world.

use super::pipe::Ms;
use super::random::Random;

/// One fault. Numbers of hosts, shards and clients are taken modulo how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A host's connection to Redis breaks, or both do, or those of all hosts.
    LinkDropped { host: Option<usize>, ingress: bool, publisher: bool },
    /// Redis answers late.
    RedisSlow { by: u64, lasts: Ms },
    /// Redis restarts without its data.
    RedisEmpty { lasts: Ms },
    /// A replica takes over that lags behind.
    RedisFailover { lasts: Ms },
    /// Streams are evicted or deleted.
    StreamsEvicted,
    /// SCRIPT FLUSH.
    ScriptsForgotten,
    /// Redis has no memory left.
    RedisFull { lasts: Ms },
    /// A host cannot reach Redis; its connections say nothing.
    CutOff { host: usize, lasts: Ms },
    /// The same while clients come and go: what the host has to say about them stays on its way. In worlds with
    /// rushes only.
    Rush { host: usize, lasts: Ms },
    /// A process is killed, and another one takes its place and name.
    Killed { host: usize, lasts: Ms },
    /// A shard's thread stands still.
    ShardStalled { host: usize, shard: usize, lasts: Ms },
    /// Some clients' connections break.
    ClientsDropped { every: u64 },
    /// A client does not read.
    ReaderStalled { client: usize, lasts: Ms },
}

impl Fault {
    pub(super) fn draw_rush(random: &mut Random) -> Self {
        Self::Rush { host: random.below(3) as usize, lasts: random.within(1_500..4_000) }
    }

    pub(super) fn draw(random: &mut Random) -> Self {
        let host = random.below(3) as usize;
        let lasts = random.within(50..4_000);
        match random.below(15) {
            0 | 1 => Self::LinkDropped { host: Some(host), ingress: true, publisher: random.chance(300) },
            2 => Self::LinkDropped { host: Some(host), ingress: false, publisher: true },
            3 => Self::LinkDropped { host: None, ingress: true, publisher: true },
            4 => Self::RedisSlow { by: random.within(20..2_500), lasts },
            5 => Self::RedisEmpty { lasts },
            6 => Self::RedisFailover { lasts },
            7 => Self::ScriptsForgotten,
            8 => Self::RedisFull { lasts },
            9 => Self::CutOff { host, lasts },
            10 => Self::Killed { host, lasts },
            11 => Self::ShardStalled { host, shard: random.below(4) as usize, lasts: lasts / 4 },
            13 => Self::StreamsEvicted,
            12 => Self::ClientsDropped { every: random.within(1..20) },
            _ => Self::ReaderStalled { client: random.below(1_000) as usize, lasts },
        }
    }
}
