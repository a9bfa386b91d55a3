//! What all threads of this process know about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use crate::config::Settings;
use crate::identity::InstanceId;
use crate::metrics::{AuthorizationCells, ControlCells, ShardCells, UplinkCells};
use crate::quota::Quotas;

/// Where the process stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not every shard listens yet, or the first link to Redis is not up.
    Starting,
    /// Clients are welcome.
    Serving,
    /// The process is going away.
    Draining,
}

/// One TableForge process.
#[derive(Debug)]
pub struct Instance {
    /// Its name in the cluster.
    pub id: InstanceId,
    /// A random number that makes `socketId`s unique across restarts.
    pub boot: u32,
    /// Everything that can be set.
    pub settings: Settings,
    /// What each shard counts.
    pub shards: Vec<Arc<ShardCells>>,
    /// What the uplink counts, if there is a cluster.
    pub uplink: Option<Arc<UplinkCells>>,
    /// What the asking of the application counts, if it is asked.
    pub authorization: Option<Arc<AuthorizationCells>>,
    /// Limits that the shards keep together.
    pub quotas: Quotas,
    /// What the control thread counts.
    pub control: ControlCells,
    phase: AtomicU8,
}

impl Instance {
    /// A process that is starting.
    pub fn new(settings: Settings, boot: u32) -> Self {
        Self {
            id: settings.instance_id.clone(),
            boot,
            shards: (0..settings.shards).map(|_| Arc::default()).collect(),
            quotas: Quotas::new(&settings.limits),
            uplink: settings.redis.is_some().then(Arc::default),
            authorization: settings.authorization.is_some().then(Arc::default),
            settings,
            control: ControlCells::default(),
            phase: AtomicU8::new(Phase::Starting as u8),
        }
    }

    /// Where the process stands.
    pub fn phase(&self) -> Phase {
        match self.phase.load(SeqCst) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// The process enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, SeqCst);
    }

    /// Whether the other instances cannot be reached.
    pub fn is_degraded(&self) -> bool {
        self.uplink.as_ref().is_some_and(|cells| cells.link_up.get() == 0)
    }

    /// Whether Redis is there and refuses this instance: nothing but another setting helps.
    pub fn is_refused_by_redis(&self) -> bool {
        self.uplink.as_ref().is_some_and(|cells| cells.link_refused.get() == 1)
    }

    /// Shards whose last turn began longer ago than STALL_THRESHOLD, at `now_ms` since the start. None while the
    /// process starts or drains: shards come up and end one after the other then.
    pub fn stalled_shards(&self, now_ms: u64) -> Vec<usize> {
        if self.phase() != Phase::Serving {
            return Vec::new();
        }
        let most = self.settings.administration.stall_threshold.as_millis() as u64;
        let stalled = |cells: &ShardCells| now_ms.saturating_sub(cells.last_turn.get()) > most;
        let shards = self.shards.iter().enumerate();
        shards.filter(|(_, cells)| stalled(cells)).map(|(index, _)| index).collect()
    }

    /// WebSocket connections of all shards.
    pub fn connections(&self) -> u64 {
        self.shards.iter().map(|cells| cells.connections.get()).sum()
    }

    /// Rooms with members on this instance.
    pub fn rooms(&self) -> u64 {
        self.shards.iter().map(|cells| cells.rooms.get()).sum()
    }

    /// Instances of the cluster, this one included.
    pub fn instances(&self) -> u64 {
        self.uplink.as_ref().map_or(1, |cells| cells.instances.get().max(1))
    }
}
