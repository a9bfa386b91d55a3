//! A worker's event loop: one thread that drives its share of the connections.

mod comings;
mod connecting;
mod incoming;
mod outgoing;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use self::comings::Churn;
use self::connecting::Connecting;
use crate::connection::{Connection, READ_BYTES, State};
use crate::control::{Control, Load};
use crate::deflate::Deflate;
use crate::dialect::Dialect;
use crate::frame;
use crate::interval::Interval;
use crate::layout::PRESENCE_MEMBERS;
use crate::plan::Plan;
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::verify::Verifier;

/// Longest wait for an event, so that the coordinator's wishes are noticed.
const LONGEST_WAIT_US: u64 = 20_000;

/// Time for the server to answer the close handshakes at the end.
const CLOSING_US: u64 = 2_000_000;

/// Close frame payload: 1000, normal.
const CLOSE_NORMAL: [u8; 2] = 1000_u16.to_be_bytes();

/// One thread's part of a run.
pub struct Worker {
    number: usize,
    plan: Arc<Plan>,
    control: Arc<Control>,
    dialect: Box<dyn Dialect>,
    /// The number of `connections[0]` within the whole run.
    first: usize,
    connections: Vec<Connection>,
    epoll: OwnedFd,
    events: Vec<Event>,
    buffer: Vec<u8>,
    text: Vec<u8>,
    random: fastrand::Rng,
    /// The time, in microseconds since the epoch, as of the last look at the clock.
    now_us: u64,
    connecting: Connecting,
    pinged: bool,
    stopping: bool,
    load: Option<Load>,
    schedule: Schedule,
    /// The connections in the order in which they send.
    rotation: Vec<u32>,
    next_sender: usize,
    next_read_us: u64,
    dirty: Vec<u32>,
    churn: Churn,
    interval: Interval,
    /// What members who are there throughout get.
    verifier: Verifier,
    deflate: Deflate,
    /// What those get that come and go.
    guests: Verifier,
    tally: Tally,
}

impl Worker {
    /// Worker `number` of a plan, with an epoll instance of its own; it begins to connect when it runs.
    pub fn new(
        number: usize,
        plan: Arc<Plan>,
        control: Arc<Control>,
        dialect: Box<dyn Dialect>,
        epoll: OwnedFd,
    ) -> Self {
        let share = plan.layout.share(number, plan.workers);
        let mut random = fastrand::Rng::with_seed(plan.seed.wrapping_add(number as u64));
        let now_us = control.now_us();
        Self {
            number,
            dialect,
            first: share.start,
            connections: share.clone().map(|index| Connection::new(plan.layout.room_of(index))).collect(),
            epoll,
            events: Vec::with_capacity(share.len().max(1)),
            buffer: vec![0; READ_BYTES],
            text: Vec::new(),
            now_us,
            connecting: Connecting::new(&plan, number, share.len(), now_us),
            pinged: false,
            stopping: false,
            load: None,
            schedule: Schedule::new(0.0, 0, 0, 0, 1),
            rotation: outgoing::rotation(&plan, share.clone(), &mut random),
            next_sender: 0,
            next_read_us: 0,
            dirty: Vec::new(),
            churn: Churn::new(&plan, share.clone()),
            interval: Interval::new(0),
            verifier: Verifier::new(share.len()),
            deflate: Deflate::default(),
            guests: Verifier::new(share.len()),
            tally: Tally::new(),
            random,
            plan,
            control,
        }
    }

    /// Runs until the coordinator says stop; returns what was counted.
    pub fn run(mut self) -> Tally {
        while !self.control.stopping() {
            self.turn();
        }
        self.close_all();
        self.begin_interval(u64::MAX);
        self.tally.received = self.verifier.received;
        self.tally.duplicated = self.verifier.duplicated + self.guests.duplicated;
        self.tally.out_of_order = self.verifier.out_of_order + self.guests.out_of_order;
        (self.tally.comings.received, self.tally.comings.lost) = (self.guests.received, self.guests.missing);
        self.tally
    }

    fn turn(&mut self) {
        self.now_us = self.control.now_us();
        self.begin_load();
        self.begin_interval(self.now_us);
        self.come_and_go();
        self.begin_connections();
        self.expire_connections();
        self.send_pings();
        self.send_rounds();
        self.send_due();
        self.flush_dirty();
        self.publish_progress();
        if self.pause_before_reading() {
            return;
        }
        let wait = self.next_wake_us().saturating_sub(self.control.now_us());
        // While reads are spaced out, the pause was the wait.
        self.read_ready(if self.reads_are_spaced() { 0 } else { wait });
        self.flush_dirty();
    }

    fn begin_load(&mut self) {
        if self.load.is_some() {
            return;
        }
        self.load = self.control.load();
        if let Some(load) = self.load {
            let (first, stride) = (self.number as u64, self.plan.workers as u64);
            self.schedule = Schedule::new(load.rate, load.start_us, load.end_us, first, stride);
            self.churn.schedule =
                Schedule::new(self.plan.churn_rate, load.start_us, load.end_us, first, stride);
        }
    }

    /// Hands over the interval that is over at `now_us`, if it is, and begins the next.
    fn begin_interval(&mut self, now_us: u64) {
        let start_us = match now_us {
            u64::MAX => u64::MAX,
            _ => self.control.interval_start(now_us, self.plan.interval_us),
        };
        if start_us != self.interval.start_us {
            let over = std::mem::replace(&mut self.interval, Interval::new(start_us));
            if !over.is_empty() {
                self.control.progress(self.number).finish(over);
            }
        }
    }

    fn send_pings(&mut self) {
        if self.pinged || !self.control.pings() {
            return;
        }
        self.pinged = true;
        for index in 0..self.connections.len() {
            if self.connections[index].is_ready() {
                self.queue_frame(index, frame::PING, b"loadtest");
            }
        }
    }

    fn publish_progress(&self) {
        let progress = self.control.progress(self.number);
        let outstanding = self.tally.expected - self.verifier.received as i64 + self.tally.acks_awaited;
        progress.outstanding.store(outstanding, Ordering::Release);
        progress.away.store(self.churn.away, Ordering::Release);
        if self.plan.layout.room_size <= PRESENCE_MEMBERS {
            let comings = &self.tally.comings;
            let untold = comings.presence_expected as i64 - comings.presence_received as i64;
            progress.untold.store(untold, Ordering::Release);
        }
        progress.missing.store(self.verifier.missing + self.guests.missing, Ordering::Release);
        let done = self.load.is_some() && self.schedule.next_due().is_none();
        progress.sending_done.store(done, Ordering::Release);
    }

    fn reads_are_spaced(&self) -> bool {
        !self.plan.read_interval.is_zero() && self.load.is_some_and(|load| load.start_us <= self.now_us)
    }

    /// With reads spaced out: sleeps until the next read or send is due; whether it is too early to read.
    fn pause_before_reading(&mut self) -> bool {
        if !self.reads_are_spaced() {
            return false;
        }
        let now = self.control.now_us();
        if now >= self.next_read_us {
            self.next_read_us = now + self.plan.read_interval.as_micros() as u64;
            return false;
        }
        self.control.sleep_until(self.next_read_us.min(self.next_wake_us()));
        true
    }

    fn next_wake_us(&self) -> u64 {
        let latest = self.now_us + LONGEST_WAIT_US;
        [self.connecting.next_due(), self.schedule.next_due(), self.churn.schedule.next_due()]
            .into_iter()
            .flatten()
            .fold(latest, u64::min)
    }

    fn read_ready(&mut self, wait_us: u64) {
        let wait =
            Timespec { tv_sec: (wait_us / 1_000_000) as i64, tv_nsec: (wait_us % 1_000_000 * 1_000) as i64 };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("epoll_wait on a valid descriptor failed: {error}"),
        }
        for place in 0..self.events.len() {
            let Event { flags, data } = self.events[place];
            let index = data.u64() as usize;
            if matches!(self.connections[index].state, State::Connecting(..)) {
                self.now_us = self.control.now_us();
                self.finish_connecting(index);
                continue;
            }
            if flags.contains(EventFlags::OUT) {
                self.flush(index);
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                self.read(index);
            }
            // A pass over many connections takes long; what falls due meanwhile goes out on time.
            self.send_due();
        }
    }

    fn close_all(&mut self) {
        self.stopping = true;
        for index in 0..self.connections.len() {
            if self.connections[index].is_ready() {
                self.queue_frame(index, frame::CLOSE, &CLOSE_NORMAL);
            }
        }
        self.flush_dirty();
        let deadline = self.control.now_us() + CLOSING_US;
        let open = |worker: &Self| worker.control.progress(worker.number).open.load(Ordering::Acquire);
        while open(self) > 0 && self.control.now_us() < deadline {
            self.now_us = self.control.now_us();
            self.read_ready(LONGEST_WAIT_US);
            self.flush_dirty();
        }
    }
}
