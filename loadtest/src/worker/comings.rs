//! Connections that leave and come back, and messages sent meanwhile.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{CLOSE_NORMAL, Worker};
use crate::connection::State;
use crate::dialect::Standing;
use crate::frame;
use crate::plan::Plan;
use crate::schedule::Schedule;

/// The connections of a worker that come and go, in the order in which they do.
pub struct Churn {
    pub(super) schedule: Schedule,
    turns: Vec<u32>,
    next: usize,
    /// Connections on their way back.
    pub(super) away: u64,
    has_left: bool,
    comes_back: bool,
    /// Those that left together, until they come back.
    gone: Vec<usize>,
}

impl Churn {
    /// Those at the transient places of the layout, room by room.
    pub(super) fn new(plan: &Plan, share: Range<usize>) -> Self {
        let mut turns: Vec<u32> = share
            .clone()
            .filter(|number| !plan.layout.is_stable(*number))
            .map(|n| (n - share.start) as u32)
            .collect();
        // Every room loses its first, then every room its second.
        turns.sort_by_key(|index| plan.layout.position(share.start + *index as usize));
        let schedule = Schedule::new(0.0, 0, 0, 0, 1);
        Self { schedule, turns, next: 0, away: 0, has_left: false, comes_back: false, gone: Vec::new() }
    }

    fn take_turn(&mut self) -> Option<usize> {
        let index = *self.turns.get(self.next)?;
        self.next = (self.next + 1) % self.turns.len();
        Some(index as usize)
    }
}

impl Worker {
    /// Whether what a connection gets is expected of the server: it stays, or says what it has seen when it comes
    /// back.
    pub(super) fn is_counted(&self, index: usize) -> bool {
        self.plan.resume || self.plan.layout.is_stable(self.first + index)
    }

    /// Has connections leave and come back, where it is time for that.
    pub(super) fn come_and_go(&mut self) {
        while let Some(intended_us) = self.churn.schedule.take_due(self.now_us) {
            let Some(index) = self.churn.take_turn() else { break };
            let connection = &self.connections[index];
            match connection.state {
                State::Ready => self.leave(index, self.churn.next.is_multiple_of(2)),
                State::Closed if connection.intended_us.is_none() => {}
                _ => {
                    self.tally.comings.skipped += 1;
                    continue;
                }
            }
            self.return_at(index, intended_us);
        }
        if self.control.leaves() && !self.churn.has_left {
            self.churn.has_left = true;
            self.leave_all();
        }
        if let Some(time_us) = self.control.comeback_us().filter(|_| !self.churn.comes_back) {
            self.churn.comes_back = true;
            self.return_all(time_us);
        }
    }

    fn leave_all(&mut self) {
        for place in 0..self.churn.turns.len() {
            let index = self.churn.turns[place] as usize;
            if self.connections[index].is_ready() {
                self.leave(index, false);
                self.churn.gone.push(index);
            }
        }
    }

    fn return_all(&mut self, time_us: u64) {
        let (first, stride) = (self.number as u64, self.plan.workers as u64);
        let paced = self.plan.connect_rate;
        self.connecting.schedule = paced.map(|rate| Schedule::new(rate, time_us, u64::MAX, first, stride));
        for index in std::mem::take(&mut self.churn.gone) {
            self.return_at(index, time_us);
        }
    }

    fn return_at(&mut self, index: usize, intended_us: u64) {
        self.churn.away += 1;
        self.connections[index].intended_us = Some(intended_us);
        self.connecting.add(index, intended_us);
    }

    /// Ends a connection that is ready: with a close frame, or by closing the socket without a word.
    fn leave(&mut self, index: usize, politely: bool) {
        if politely {
            self.queue_frame(index, frame::CLOSE, &CLOSE_NORMAL);
            self.flush(index);
        }
        if !matches!(self.connections[index].end(), State::Ready) {
            return;
        }
        self.count_gone(index);
        self.tally.comings.left += 1;
        let room = self.connections[index].room as usize;
        if !self.is_counted(index) {
            self.guests.begin_anew(index, self.plan.layout.members(room).len());
        }
        self.expect_presence(room);
    }

    /// Notes that the members of a room who stay are to be told that somebody came or left.
    fn expect_presence(&mut self, room: usize) {
        let told = self.control.open_members(room).load(Ordering::Acquire);
        self.tally.comings.presence_expected += u64::from(told);
    }

    /// Notes that a member was told that somebody came or left.
    pub(super) fn handle_presence(&mut self, index: usize) {
        let begun = self.load.is_some_and(|load| load.start_us <= self.now_us);
        // At the end they all leave, one after the other.
        if begun && !self.stopping && self.is_counted(index) {
            self.tally.comings.presence_received += 1;
        }
    }

    /// Notes that a connection is ready again, if it was there before.
    pub(super) fn count_return(&mut self, index: usize) {
        let Some(intended_us) = self.connections[index].intended_us.take() else { return };
        self.churn.away -= 1;
        self.tally.comings.back += 1;
        self.tally.comings.latency.saturating_record(self.now_us.saturating_sub(intended_us));
        if !self.is_counted(index) {
            self.expect_presence(self.connections[index].room as usize);
        }
    }

    /// Keeps where the room stood when a connection joined, and counts what it was told of what it had missed.
    pub(super) fn handle_standing(&mut self, index: usize, standing: Standing) {
        if !self.plan.resume {
            return;
        }
        if let Some(position) = standing.position {
            self.connecting.seen.insert(index, position);
        }
        let Some(recovered) = standing.recovered else { return };
        let stamps = match recovered {
            Ok(stamps) => stamps,
            Err(reason) => return self.tally.comings.recovered.add(&format!("not recovered: {reason}")),
        };
        self.tally.comings.recovered.add("recovered");
        self.tally.comings.recovered_messages += stamps.len() as u64;
        // All that was sent while it was away, and nothing else.
        self.tally.expected += i64::from(self.plan.round_messages);
        let members = self.plan.layout.members(self.connections[index].room as usize);
        for stamp in stamps {
            let sender = stamp.sender as usize;
            if !members.contains(&sender) || sender == self.first + index {
                self.tally.unexpected += 1;
                continue;
            }
            self.verifier.record(index, sender - members.start, stamp.sequence);
        }
    }

    /// Sends the rounds of messages that the coordinator has asked for since the last look.
    pub(super) fn send_rounds(&mut self) {
        let progress = self.control.progress(self.number);
        let (done, wanted) = (progress.rounds.load(Ordering::Acquire), self.control.rounds());
        if done >= wanted {
            return;
        }
        for index in 0..self.connections.len() {
            if self.plan.layout.position(self.first + index) == 0 {
                for _ in 0..self.plan.round_messages {
                    self.send_from(index, self.now_us);
                }
            }
        }
        self.flush_dirty();
        self.publish_progress();
        self.control.progress(self.number).rounds.store(done + 1, Ordering::Release);
    }
}
