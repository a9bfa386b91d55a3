//! What the coordinator and the workers tell each other while a run is on.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::interval::{Gathered, Interval};

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
    /// Deliveries that later ones of the same sender have overtaken, or that are lost.
    pub missing: AtomicU64,
    /// Connections on their way back.
    pub away: AtomicU64,
    /// Joins and leaves that members are still to be told of.
    pub untold: AtomicI64,
    /// Rounds of [`Control::publish`] that were sent.
    pub rounds: AtomicU32,
    /// Intervals that are over and not gathered yet.
    pub intervals: Mutex<Vec<Interval>>,
}

impl Progress {
    /// Hands over an interval that is over.
    pub fn finish(&self, interval: Interval) {
        self.intervals.lock().unwrap_or_else(PoisonError::into_inner).push(interval);
    }
}

/// Shared by the coordinator and all workers of a run.
#[derive(Debug)]
pub struct Control {
    epoch: Instant,
    load: OnceLock<Load>,
    ping: AtomicBool,
    stop: AtomicBool,
    leave: AtomicBool,
    /// When those that left come back, in microseconds since the epoch; 0 for not yet.
    comeback_us: AtomicU64,
    rounds: AtomicU32,
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
            leave: AtomicBool::new(false),
            comeback_us: AtomicU64::new(0),
            rounds: AtomicU32::new(0),
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

    /// The begin of the interval that a time lies in; intervals count from the load's start once there is one.
    pub fn interval_start(&self, time_us: u64, length_us: u64) -> u64 {
        let phase = self.load().map_or(0, |load| load.start_us % length_us);
        let past = (time_us + length_us - phase) % length_us;
        time_us - past.min(time_us)
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

    /// Has all connections at transient places leave at once, without a word; once per run.
    pub fn leave(&self) {
        self.leave.store(true, Ordering::Release);
    }

    /// Whether those connections are to leave.
    pub fn leaves(&self) -> bool {
        self.leave.load(Ordering::Acquire)
    }

    /// Has those that left come back, all at once; returns when.
    pub fn come_back(&self) -> u64 {
        let now = self.now_us();
        self.comeback_us.store(now, Ordering::Release);
        now
    }

    /// When they come back, if they were told to.
    pub fn comeback_us(&self) -> Option<u64> {
        Some(self.comeback_us.load(Ordering::Acquire)).filter(|time| *time > 0)
    }

    /// Has the first member of every room send one more round of messages; returns how many rounds there are.
    pub fn publish(&self) -> u32 {
        self.rounds.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Rounds to have been sent.
    pub fn rounds(&self) -> u32 {
        self.rounds.load(Ordering::Acquire)
    }

    /// Whether every worker has sent so many rounds, and everything expected has come.
    pub fn published(&self, rounds: u32) -> bool {
        self.progress.iter().all(|progress| progress.rounds.load(Ordering::Acquire) >= rounds)
            && self.outstanding() <= 0
    }

    /// Deliveries and acks expected and not here yet.
    pub fn outstanding(&self) -> i64 {
        self.progress.iter().map(|progress| progress.outstanding.load(Ordering::Acquire)).sum()
    }

    /// Moves the intervals that workers have finished to `gathered`.
    pub fn gather(&self, gathered: &mut Gathered) {
        for progress in &self.progress {
            let finished =
                std::mem::take(&mut *progress.intervals.lock().unwrap_or_else(PoisonError::into_inner));
            finished.into_iter().for_each(|interval| gathered.add(interval));
        }
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

    /// Whether everything was sent, everything expected has come, and everyone is back.
    pub fn settled(&self) -> bool {
        // First whether all has been sent: what is outstanding can then only fall.
        self.progress.iter().all(|progress| progress.sending_done.load(Ordering::Acquire))
            && self.outstanding() <= 0
            && self.sum(|progress| &progress.away) == 0
            && self.progress.iter().map(|progress| progress.untold.load(Ordering::Acquire)).sum::<i64>() <= 0
    }
}
