//! What the coordinator and the workers tell each other while a run is on.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When messages are sent and which of them are measured; microseconds since the run's epoch.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Messages per second, over all workers.
    pub rate: f64,
    /// The first message is due.
    pub start_us: u64,
    /// The warm-up is over.
    pub measured_from_us: u64,
    /// No message is due any more.
    pub end_us: u64,
}

impl Load {
    /// Whether a time lies in the measured part.
    pub fn measures(&self, time_us: u64) -> bool {
        (self.measured_from_us..self.end_us).contains(&time_us)
    }
}

/// How far a worker is. It alone writes, once per turn; the coordinator adds up.
#[derive(Debug, Default)]
pub struct Progress {
    /// Connections whose upgrade succeeded.
    pub established: AtomicU64,
    /// Connections that became ready.
    pub ready: AtomicU64,
    /// Connections that failed before they were ready.
    pub failed: AtomicU64,
    /// Ready connections that are still open.
    pub open: AtomicU64,
    /// When the last upgrade succeeded, in microseconds since the epoch.
    pub last_established_us: AtomicU64,
    /// When the last connection became ready, in microseconds since the epoch.
    pub last_ready_us: AtomicU64,
    /// Deliveries and acks expected and not here yet.
    pub outstanding: AtomicI64,
    /// Whether all messages have been sent.
    pub sending_done: AtomicBool,
    /// Answers to [`Control::ping`].
    pub pongs: AtomicU64,
}

/// Shared by the coordinator and all workers of a run.
#[derive(Debug)]
pub struct Control {
    epoch: Instant,
    load: OnceLock<Load>,
    ping: AtomicBool,
    stop: AtomicBool,
    open_members: Vec<AtomicU32>,
    progress: Vec<Progress>,
}

impl Control {
    /// For so many rooms and workers. The run's epoch is now.
    pub fn new(rooms: usize, workers: usize) -> Self {
        Self {
            epoch: Instant::now(),
            load: OnceLock::new(),
            ping: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            open_members: (0..rooms).map(|_| AtomicU32::new(0)).collect(),
            progress: (0..workers).map(|_| Progress::default()).collect(),
        }
    }

    /// Microseconds since the epoch.
    pub fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    /// Sleeps until a time since the epoch.
    pub fn sleep_until(&self, time_us: u64) {
        std::thread::sleep(Duration::from_micros(time_us.saturating_sub(self.now_us())));
    }

    /// Tells the workers to send; once per run.
    pub fn start_load(&self, load: Load) {
        self.load.set(load).expect("a run has one load");
    }

    /// The load, once it is known.
    pub fn load(&self) -> Option<Load> {
        self.load.get().copied()
    }

    /// Tells the workers to ping all their connections, once per run.
    pub fn ping(&self) {
        self.ping.store(true, Ordering::Release);
    }

    /// Whether connections are to be pinged.
    pub fn pings(&self) -> bool {
        self.ping.load(Ordering::Acquire)
    }

    /// Tells the workers to close their connections and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Whether it is time to end.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The number of open members of a room, whichever worker has them.
    pub fn open_members(&self, room: usize) -> &AtomicU32 {
        &self.open_members[room]
    }

    /// How far a worker is.
    pub fn progress(&self, worker: usize) -> &Progress {
        &self.progress[worker]
    }

    /// One figure of all workers, added up.
    pub fn sum(&self, figure: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        self.progress.iter().map(|progress| figure(progress).load(Ordering::Acquire)).sum()
    }

    /// One figure of all workers, the largest.
    pub fn max(&self, figure: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        self.progress.iter().map(|progress| figure(progress).load(Ordering::Acquire)).max().unwrap_or(0)
    }

    /// Whether everything was sent and everything expected has come.
    pub fn settled(&self) -> bool {
        // First whether all has been sent: what is outstanding can then only fall.
        self.progress.iter().all(|progress| progress.sending_done.load(Ordering::Acquire))
            && self.progress.iter().map(|p| p.outstanding.load(Ordering::Acquire)).sum::<i64>() <= 0
    }
}
