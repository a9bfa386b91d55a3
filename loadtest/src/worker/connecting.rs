//! How a worker's connections are made, and how they end.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::atomic::Ordering;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::Worker;
use crate::connection::State;
use crate::dialect::Position;
use crate::dialect::with_query;
use crate::handshake::Handshake;
use crate::plan::Plan;
use crate::schedule::Schedule;

/// Pause before another attempt where the server names none, in microseconds; up to half as much again is added
/// at random, so that those refused together do not return together.
const RETRY_US: u64 = 1_000_000;

/// The connections that are being made.
pub struct Connecting {
    pub(super) in_flight: usize,
    pub(super) schedule: Option<Schedule>,
    /// What each connection has seen of its room, for those that say so when they come back.
    pub(super) seen: HashMap<usize, Position>,
    limit: usize,
    /// Connections to begin, with the time from which on.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    /// Connections begun, with the time by which they must be ready and the number of the attempt; earliest
    /// first.
    deadlines: VecDeque<(u64, usize, u32)>,
}

impl Connecting {
    /// All of a worker's connections, to begin now.
    pub(super) fn new(plan: &Plan, worker: usize, connections: usize, now_us: u64) -> Self {
        let schedule = |rate| Schedule::new(rate, now_us, u64::MAX, worker as u64, plan.workers as u64);
        Self {
            in_flight: 0,
            schedule: plan.connect_rate.map(schedule),
            seen: HashMap::new(),
            limit: plan.handshakes.div_ceil(plan.workers),
            waiting: (0..connections).map(|index| Reverse((now_us, index))).collect(),
            deadlines: VecDeque::new(),
        }
    }

    /// Has a connection begin, from `from_us` on.
    pub(super) fn add(&mut self, index: usize, from_us: u64) {
        self.waiting.push(Reverse((from_us, index)));
    }

    /// When the next connection may begin; `None` if none waits, or if too many are under way.
    pub(super) fn next_due(&self) -> Option<u64> {
        let Reverse((from_us, _)) = self.waiting.peek().filter(|_| self.in_flight < self.limit)?;
        let paced = self.schedule.as_ref().and_then(Schedule::next_due).unwrap_or(0);
        Some(paced.max(*from_us))
    }

    fn take_due(&mut self, now_us: u64) -> Option<usize> {
        self.next_due().filter(|due| *due <= now_us)?;
        if let Some(schedule) = &mut self.schedule {
            schedule.take_due(now_us)?;
        }
        self.waiting.pop().map(|Reverse((_, index))| index)
    }
}

impl Worker {
    /// Begins the connections that are due.
    pub(super) fn begin_connections(&mut self) {
        while let Some(index) = self.connecting.take_due(self.now_us) {
            self.connecting.in_flight += 1;
            self.connections[index].attempt += 1;
            let deadline = self.now_us + self.plan.connect_timeout.as_micros() as u64;
            self.connecting.deadlines.push_back((deadline, index, self.connections[index].attempt));
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
        connection.state = State::Connecting(handshake);
        connection.connect(target.address, source)?;
        connection.queue_bytes(request.as_bytes());
        // Within one machine the TCP handshake is over when connect(2) returns.
        let is_sent = connection.flush()?;
        connection.watches_write = !is_sent;
        if is_sent {
            connection.await_upgrade();
        }
        let awaited = if is_sent { EventFlags::IN } else { EventFlags::OUT };
        let socket = connection.socket().expect("connect made a socket");
        epoll::add(&self.epoll, socket, EventData::new_u64(index as u64), awaited)
    }

    /// Ends the connections that take too long.
    pub(super) fn expire_connections(&mut self) {
        while let Some(&(deadline, index, attempt)) = self.connecting.deadlines.front() {
            let connection = &self.connections[index];
            let doing = match connection.state {
                _ if connection.attempt != attempt => None,
                State::Ready | State::Closed => None,
                State::Unstarted | State::Connecting(..) => Some("connecting"),
                State::Upgrading(_) => Some("waiting for the upgrade"),
                State::Greeting => Some("waiting for the first message"),
                State::Joining => Some("joining a room"),
            };
            if doing.is_some() && deadline > self.now_us {
                return;
            }
            self.connecting.deadlines.pop_front();
            if let Some(doing) = doing {
                self.end(index, &format!("timed out {doing}"));
            }
        }
    }

    /// Goes on with a connection whose socket has become writable.
    pub(super) fn finish_connecting(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let Err(error) = connection.connected() {
            self.end(index, &format!("cannot connect: {error}"));
            return;
        }
        connection.await_upgrade();
        self.flush(index);
    }

    /// Ends a connection and counts it, unless the run is over and connections are meant to end.
    pub(super) fn end(&mut self, index: usize, reason: &str) {
        self.end_for(index, reason, None);
    }

    /// Ends a connection and counts it; one that had not become ready tries again after `retry_after` seconds where
    /// the plan says so.
    pub(super) fn end_for(&mut self, index: usize, reason: &str, retry_after: Option<u32>) {
        match self.connections[index].end() {
            State::Closed => {}
            State::Ready => {
                self.count_gone(index);
                if !self.stopping {
                    self.interval.refused += 1;
                    self.tally.closed.add(reason);
                }
            }
            _ => {
                self.connecting.in_flight -= 1;
                self.interval.refused += 1;
                if self.plan.resume {
                    self.tally.comings.refused.add(reason);
                    let pause = retry_after.map_or(RETRY_US, |seconds| u64::from(seconds) * 1_000_000);
                    let pause = pause + self.random.u64(..=pause / 2);
                    self.connecting.add(index, self.now_us + pause);
                } else {
                    let was_away = self.connections[index].intended_us.take().is_some();
                    self.churn.away -= u64::from(was_away);
                    self.control.progress(self.number).failed.fetch_add(1, Ordering::AcqRel);
                    self.tally.connect_failures.add(reason);
                }
            }
        }
    }

    /// Notes that a connection that was ready is not there any more.
    pub(super) fn count_gone(&mut self, index: usize) {
        if self.is_counted(index) {
            let room = self.connections[index].room as usize;
            self.control.open_members(room).fetch_sub(1, Ordering::AcqRel);
        }
        self.control.progress(self.number).open.fetch_sub(1, Ordering::AcqRel);
    }
}
