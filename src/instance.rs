//! What all threads of this process know about it.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;

use crate::config::Settings;
use crate::identity::InstanceId;
use crate::metrics::{AuthorizationCells, ControlCells, PortCells, ShardCells, UplinkCells};
use crate::preflight;
use crate::quota::Quotas;
use crate::room::traffic::{self, BusyRoom};
use crate::steering::{DrainPlan, InstanceLoad, Steering};
use crate::trace::Tracer;

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
    /// Everything that can be set, as it was at the start. What may change while the process runs is read from
    /// [`Instance::live`], and on a shard from its own copy of that.
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
    /// What the separate port counts.
    pub port: PortCells,
    /// The rooms with the most traffic, by shard: each replaces its list every few seconds.
    pub busy_rooms: Vec<ArcSwap<Vec<BusyRoom>>>,
    /// Takes the spans of what is followed, if anything is.
    pub tracer: Option<Arc<Tracer>>,
    phase: AtomicU8,
    live: ArcSwap<Settings>,
    /// How new clients are dealt with; written by the control thread.
    pub steering: ArcSwap<Steering>,
    /// Part of their time in which the shards work, in hundredths; written by the control thread.
    pub busy_percent: AtomicU8,
    drain: OnceLock<DrainPlan>,
}

impl Instance {
    /// A process that is starting.
    pub fn new(settings: Settings, boot: u32) -> Self {
        Self {
            id: settings.instance_id.clone(),
            boot,
            shards: (0..settings.shards).map(|_| Arc::default()).collect(),
            busy_rooms: (0..settings.shards).map(|_| ArcSwap::default()).collect(),
            quotas: Quotas::new(&settings.limits),
            uplink: settings.redis.is_some().then(Arc::default),
            authorization: settings.authorization.is_some().then(Arc::default),
            live: ArcSwap::from_pointee(settings.clone()),
            settings,
            control: ControlCells::default(),
            port: PortCells::default(),
            tracer: None,
            phase: AtomicU8::new(Phase::Starting as u8),
            steering: ArcSwap::from_pointee(Steering::Welcome),
            busy_percent: AtomicU8::new(0),
            drain: OnceLock::new(),
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

    /// The settings that hold now.
    pub fn live(&self) -> Arc<Settings> {
        self.live.load_full()
    }

    /// The settings are others from now on. Shards have copies of their own and are told besides.
    pub fn adopt(&self, settings: Arc<Settings>) {
        self.quotas.adopt(&settings.limits);
        self.live.store(settings);
    }

    /// The instance goes away from now on.
    pub fn begin_drain(&self) {
        let others = self.uplink.as_ref().map(|cells| cells.others.load_full());
        let others: Vec<_> =
            others.iter().flat_map(|loads| loads.iter()).filter(|load| !load.draining).cloned().collect();
        let _ = self.drain.set(DrainPlan::new(self.connections(), &others, self.live().drain_timeout));
        self.enter(Phase::Draining);
        self.announce();
    }

    /// What this instance says of its load has changed: the others are told at once.
    pub fn announce(&self) {
        if let Some(cells) = &self.uplink {
            cells.announce.store(true, SeqCst);
        }
    }

    /// How clients are sent away, once the instance drains.
    pub fn drain(&self) -> Option<DrainPlan> {
        self.drain.get().copied()
    }

    /// Whether new clients are sent to other instances.
    pub fn is_overloaded(&self) -> bool {
        **self.steering.load() != Steering::Welcome
    }

    /// Connections that the instance takes: those that are set, or as many as the limit of descriptors allows.
    pub fn capacity(&self) -> u64 {
        preflight::fitting_connections(self.live.load().ws_max_connections).into()
    }

    /// Whether the instance has as many connections as it takes.
    pub fn is_full(&self) -> bool {
        self.connections() >= self.capacity()
    }

    /// What this instance says of its load.
    pub fn load(&self) -> InstanceLoad {
        let live = self.live.load();
        InstanceLoad {
            connections: self.connections(),
            capacity: self.capacity(),
            shards: self.shards.len() as u64,
            busy: f64::from(self.busy_percent.load(SeqCst)) / 100.0,
            overloaded: self.is_overloaded(),
            draining: self.phase() == Phase::Draining,
            url: live.advertise_url.clone(),
        }
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
        let most = self.live.load().administration.stall_threshold.as_millis() as u64;
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

    /// The rooms with the most traffic on this instance.
    pub fn busiest_rooms(&self) -> Vec<BusyRoom> {
        traffic::merged(self.busy_rooms.iter().map(|rooms| rooms.load().to_vec()))
    }

    /// Instances of the cluster, this one included.
    pub fn instances(&self) -> u64 {
        self.uplink.as_ref().map_or(1, |cells| cells.instances.get().max(1))
    }
}
