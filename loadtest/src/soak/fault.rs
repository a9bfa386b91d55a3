//! What goes wrong in a run.

use fastrand::Rng;

use crate::Ms;
use crate::cluster::HOSTS;

/// One fault. A host is an instance with its own network to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Redis closes the connections that messages come on: of all instances (CLIENT KILL TYPE pubsub).
    PubsubKilled,
    /// Redis closes both connections of one instance.
    LinkKilled {
        /// Whose.
        host: usize,
    },
    /// Redis drops an instance that does not read, for its output limit.
    OutputLimit {
        /// Whose.
        host: usize,
        /// Milliseconds.
        lasts: Ms,
    },
    /// `kill -9` of Redis, and a restart without its data.
    RedisEmpty {
        /// Milliseconds in between.
        lasts: Ms,
    },
    /// SIGSTOP of Redis.
    RedisStopped {
        /// Milliseconds.
        lasts: Ms,
    },
    /// The replica is promoted; what the primary took after that is lost.
    Failover {
        /// Milliseconds in which both take writes, and those of the old one are lost.
        lost: Ms,
        /// Milliseconds in which instances find a replica that refuses writes.
        readonly: Ms,
    },
    /// Redis has no memory left.
    RedisFull {
        /// Milliseconds.
        lasts: Ms,
    },
    /// SCRIPT FLUSH.
    ScriptsForgotten,
    /// Streams, or what is known of their rooms, are deleted.
    KeysDeleted {
        /// Of so many keys one.
        every: usize,
    },
    /// Everything between the instances, or one of them, and Redis takes longer.
    RedisSlow {
        /// Whose network; of all without.
        host: Option<usize>,
        /// Milliseconds more in each direction.
        by: u64,
        /// Milliseconds.
        lasts: Ms,
    },
    /// Segments between an instance, or all, and Redis are lost: their connections stall, and some break.
    Lossy {
        /// Whose network; of all without.
        host: Option<usize>,
        /// Of 100.
        percent: u32,
        /// Milliseconds.
        lasts: Ms,
    },
    /// Nothing passes between an instance and Redis, and nobody is told.
    CutOff {
        /// Whose network.
        host: usize,
        /// Milliseconds.
        lasts: Ms,
    },
    /// Connections between an instance and Redis are cut, and new ones refused.
    Refused {
        /// Whose network.
        host: usize,
        /// Milliseconds.
        lasts: Ms,
    },
    /// `kill -9` of an instance, and a restart.
    HostKilled {
        /// Which.
        host: usize,
        /// Milliseconds in between.
        lasts: Ms,
    },
    /// SIGSTOP of an instance.
    HostStopped {
        /// Which.
        host: usize,
        /// Milliseconds.
        lasts: Ms,
    },
    /// SIGTERM of an instance, and a restart when it has ended.
    HostDrained {
        /// Which.
        host: usize,
    },
    /// Some clients' connections break.
    ClientsDropped {
        /// Of so many clients one.
        every: u32,
    },
    /// Some clients do not read.
    ReadersStalled {
        /// How many.
        number: u32,
        /// Milliseconds.
        lasts: Ms,
    },
}

/// The names of all kinds.
pub const KINDS: [&str; 18] = [
    "pubsub-killed",
    "link-killed",
    "output-limit",
    "redis-empty",
    "redis-stopped",
    "failover",
    "redis-full",
    "scripts-forgotten",
    "keys-deleted",
    "redis-slow",
    "lossy",
    "cut-off",
    "refused",
    "host-killed",
    "host-stopped",
    "host-drained",
    "clients-dropped",
    "readers-stalled",
];

/// What a fault hits: two at the same time hit different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hit {
    Redis,
    Network,
    Host,
    Clients,
}

impl Fault {
    /// A fault of the kind of that name, with the rest drawn.
    pub(crate) fn of_kind(kind: &str, random: &mut Rng) -> Option<Self> {
        let host = random.usize(..HOSTS);
        let one_or_all = random.bool().then_some(host);
        // One in eight lasts so long that instances count as dead.
        let lasts = if random.u8(..8) == 0 { random.u64(5_500..9_000) } else { random.u64(100..4_000) };
        Some(match kind {
            "pubsub-killed" => Self::PubsubKilled,
            "link-killed" => Self::LinkKilled { host },
            "output-limit" => Self::OutputLimit { host, lasts: lasts.min(2_000) },
            "redis-empty" => Self::RedisEmpty { lasts },
            "redis-stopped" => Self::RedisStopped { lasts },
            "failover" if random.bool() => Self::Failover { lost: 0, readonly: random.u64(0..1_500) },
            "failover" => Self::Failover { lost: random.u64(1..800), readonly: 0 },
            "redis-full" => Self::RedisFull { lasts },
            "scripts-forgotten" => Self::ScriptsForgotten,
            "keys-deleted" => Self::KeysDeleted { every: random.usize(1..4) },
            "redis-slow" => Self::RedisSlow { host: one_or_all, by: random.u64(20..2_000), lasts },
            "lossy" => Self::Lossy { host: one_or_all, percent: random.u32(2..25), lasts },
            "cut-off" => Self::CutOff { host, lasts },
            "refused" => Self::Refused { host, lasts },
            "host-killed" => Self::HostKilled { host, lasts: lasts.min(6_000) },
            "host-stopped" => Self::HostStopped { host, lasts },
            "host-drained" => Self::HostDrained { host },
            "clients-dropped" => Self::ClientsDropped { every: random.u32(1..10) },
            "readers-stalled" => Self::ReadersStalled { number: random.u32(1..10), lasts },
            _ => return None,
        })
    }

    /// The name of its kind.
    pub fn kind(self) -> &'static str {
        match self {
            Self::PubsubKilled => "pubsub-killed",
            Self::LinkKilled { .. } => "link-killed",
            Self::OutputLimit { .. } => "output-limit",
            Self::RedisEmpty { .. } => "redis-empty",
            Self::RedisStopped { .. } => "redis-stopped",
            Self::Failover { .. } => "failover",
            Self::RedisFull { .. } => "redis-full",
            Self::ScriptsForgotten => "scripts-forgotten",
            Self::KeysDeleted { .. } => "keys-deleted",
            Self::RedisSlow { .. } => "redis-slow",
            Self::Lossy { .. } => "lossy",
            Self::CutOff { .. } => "cut-off",
            Self::Refused { .. } => "refused",
            Self::HostKilled { .. } => "host-killed",
            Self::HostStopped { .. } => "host-stopped",
            Self::HostDrained { .. } => "host-drained",
            Self::ClientsDropped { .. } => "clients-dropped",
            Self::ReadersStalled { .. } => "readers-stalled",
        }
    }

    /// What it hits.
    pub(crate) fn hits(self) -> Hit {
        match self {
            Self::PubsubKilled
            | Self::LinkKilled { .. }
            | Self::RedisEmpty { .. }
            | Self::RedisStopped { .. }
            | Self::Failover { .. }
            | Self::RedisFull { .. }
            | Self::ScriptsForgotten
            | Self::KeysDeleted { .. } => Hit::Redis,
            Self::OutputLimit { .. }
            | Self::RedisSlow { .. }
            | Self::Lossy { .. }
            | Self::CutOff { .. }
            | Self::Refused { .. } => Hit::Network,
            Self::HostKilled { .. } | Self::HostStopped { .. } | Self::HostDrained { .. } => Hit::Host,
            Self::ClientsDropped { .. } | Self::ReadersStalled { .. } => Hit::Clients,
        }
    }

    /// How long it lasts, in ms.
    pub(crate) fn lasts(self) -> Ms {
        match self {
            Self::OutputLimit { lasts, .. }
            | Self::RedisEmpty { lasts }
            | Self::RedisStopped { lasts }
            | Self::RedisFull { lasts }
            | Self::RedisSlow { lasts, .. }
            | Self::Lossy { lasts, .. }
            | Self::CutOff { lasts, .. }
            | Self::Refused { lasts, .. }
            | Self::HostKilled { lasts, .. }
            | Self::HostStopped { lasts, .. }
            | Self::ReadersStalled { lasts, .. } => lasts,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_drawn_under_its_name() {
        let mut random = Rng::with_seed(1);
        for kind in KINDS {
            assert_eq!(Fault::of_kind(kind, &mut random).map(Fault::kind), Some(kind));
        }
        assert_eq!(Fault::of_kind("nothing", &mut random), None);
    }
}
