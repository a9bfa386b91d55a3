//! A worker's event loop: one thread that drives its share of the connections.

mod incoming;
mod outgoing;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::connection::{Connection, READ_BYTES, State};
use crate::control::{Control, Load};
use crate::deflate::Deflate;
use crate::dialect::{Dialect, with_query};
use crate::frame;
use crate::handshake::Handshake;
use crate::plan::Plan;
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::verify::Verifier;

/// Handshakes under way at once, over all workers: enough to keep a server busy, few enough not to
/// overflow its accept queue.
const HANDSHAKES_IN_FLIGHT: usize = 128;

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
    verifier: Verifier,
    deflate: Deflate,
    tally: Tally,
}

/// The connections that are being made.
struct Connecting {
    next: usize,
    in_flight: usize,
    limit: usize,
    schedule: Option<Schedule>,
    /// Connections begun, with the time by which they must be ready; earliest first.
    deadlines: VecDeque<(u64, usize)>,
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
        let connecting = Connecting {
            next: 0,
            in_flight: 0,
            limit: HANDSHAKES_IN_FLIGHT.div_ceil(plan.workers),
            schedule: plan.connect_rate.map(|rate| {
                Schedule::new(rate, control.now_us(), u64::MAX, number as u64, plan.workers as u64)
            }),
            deadlines: VecDeque::new(),
        };
        Self {
            number,
            dialect,
            first: share.start,
            connections: share.clone().map(|index| Connection::new(plan.layout.room_of(index))).collect(),
            epoll,
            events: Vec::with_capacity(share.len().max(1)),
            buffer: vec![0; READ_BYTES],
            text: Vec::new(),
            now_us: control.now_us(),
            connecting,
            pinged: false,
            stopping: false,
            load: None,
            schedule: Schedule::new(0.0, 0, 0, 0, 1),
            rotation: outgoing::rotation(&plan.layout, share.clone(), &mut random),
            next_sender: 0,
            next_read_us: 0,
            dirty: Vec::new(),
            verifier: Verifier::new(share.len()),
            deflate: Deflate::default(),
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
        self.tally.received = self.verifier.received;
        self.tally.duplicated = self.verifier.duplicated;
        self.tally.out_of_order = self.verifier.out_of_order;
        self.tally
    }

    fn turn(&mut self) {
        self.now_us = self.control.now_us();
        self.begin_load();
        self.begin_connections();
        self.expire_connections();
        self.send_pings();
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
        }
    }

    fn begin_connections(&mut self) {
        while self.connecting.next < self.connections.len()
            && self.connecting.in_flight < self.connecting.limit
        {
            let now = self.now_us;
            if self.connecting.schedule.as_mut().is_some_and(|schedule| schedule.take_due(now).is_none()) {
                break;
            }
            let index = self.connecting.next;
            self.connecting.next += 1;
            self.connecting.in_flight += 1;
            let deadline = now + self.plan.connect_timeout.as_micros() as u64;
            self.connecting.deadlines.push_back((deadline, index));
            if let Err(error) = self.begin_connection(index) {
                self.end(index, &format!("cannot connect: {error}"));
            }
        }
    }

    fn begin_connection(&mut self, index: usize) -> Result<(), Errno> {
        let number = self.first + index;
        let target = &self.plan.targets[self.plan.layout.server_of(number)];
        let source = self.plan.sources.of(number / self.plan.targets.len());
        let connection = &mut self.connections[index];
        let room = self.plan.join.then(|| self.plan.rooms[connection.room as usize].as_str());
        let path = match (self.plan.join_by_url, room) {
            (true, Some(room)) => with_query(&target.path, &format!("join={room}")),
            _ => self.dialect.request_target(&target.path, room),
        };
        let token = self.plan.credentials.token(number);
        let (handshake, request) = Handshake::start(target, &path, token.as_deref(), self.plan.deflate);
        connection.state = State::Connecting(handshake, request);
        connection.connect(target.address, source)?;
        let socket = connection.socket().expect("connect made a socket");
        epoll::add(&self.epoll, socket, EventData::new_u64(index as u64), EventFlags::OUT)
    }

    fn expire_connections(&mut self) {
        while let Some(&(deadline, index)) = self.connecting.deadlines.front() {
            let doing = match self.connections[index].state {
                State::Ready | State::Closed => {
                    self.connecting.deadlines.pop_front();
                    continue;
                }
                _ if deadline > self.now_us => return,
                State::Unstarted | State::Connecting(..) => "connecting",
                State::Upgrading(_) => "waiting for the upgrade",
                State::Greeting => "waiting for the first message",
                State::Joining => "joining a room",
            };
            self.end(index, &format!("timed out {doing}"));
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
        let may_connect = self.connecting.next < self.connections.len()
            && self.connecting.in_flight < self.connecting.limit;
        let connect = self.connecting.schedule.as_ref().filter(|_| may_connect).and_then(Schedule::next_due);
        let latest = self.now_us + LONGEST_WAIT_US;
        [connect, self.schedule.next_due()].into_iter().flatten().fold(latest, u64::min)
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

    fn finish_connecting(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let Err(error) = connection.connected() {
            self.end(index, &format!("cannot connect: {error}"));
            return;
        }
        let State::Connecting(handshake, request) = std::mem::replace(&mut connection.state, State::Closed)
        else {
            unreachable!("only called while connecting");
        };
        connection.state = State::Upgrading(handshake);
        connection.queue_bytes(request.as_bytes());
        connection.watches_write = true;
        self.flush(index);
    }

    /// Ends a connection and counts it, unless the run is over and connections are meant to end.
    fn end(&mut self, index: usize, reason: &str) {
        let room = self.connections[index].room as usize;
        let progress = self.control.progress(self.number);
        match self.connections[index].end() {
            State::Closed => {}
            State::Ready => {
                self.control.open_members(room).fetch_sub(1, Ordering::AcqRel);
                progress.open.fetch_sub(1, Ordering::AcqRel);
                if !self.stopping {
                    self.tally.closed.add(reason);
                }
            }
            _ => {
                self.connecting.in_flight -= 1;
                progress.failed.fetch_add(1, Ordering::AcqRel);
                self.tally.connect_failures.add(reason);
            }
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
