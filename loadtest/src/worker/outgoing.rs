//! What a worker sends: messages when they are due, and everything that is queued.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use tungstenite::protocol::frame::coding::OpCode;

use super::Worker;
use crate::connection::MAX_QUEUED_BYTES;
use crate::frame;
use crate::plan::{Plan, Turns};
use crate::stamp::Stamp;

/// The order in which a worker's connections send, by their place in its list: every room's first
/// member, then every room's second, and so on, the rooms shuffled. Load is so spread evenly over
/// rooms and connections.
///
/// Where rooms have rates of their own, one round through the order is one second, in which each room's turns are
/// spread evenly.
pub fn rotation(plan: &Plan, share: Range<usize>, random: &mut fastrand::Rng) -> Vec<u32> {
    let layout = &plan.layout;
    let senders = share.clone().filter(|number| layout.is_stable(*number));
    if plan.turns == Turns::Equal {
        let mut order: Vec<u32> = senders.map(|number| (number - share.start) as u32).collect();
        random.shuffle(&mut order);
        order.sort_by_key(|index| layout.position(share.start + *index as usize));
        return order;
    }
    let mut by_room: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    senders.for_each(|number| {
        by_room.entry(layout.room_of(number)).or_default().push((number - share.start) as u32);
    });
    let mut turns: Vec<(f64, u32)> = Vec::new();
    for (room, members) in by_room {
        let number = plan.turns.of_room(room, members.len(), plan.seed);
        let phase = random.f64();
        turns.extend((0..number).map(|turn| {
            let when = (f64::from(turn) + phase) / f64::from(number);
            (when, members[turn as usize % members.len()])
        }));
    }
    turns.sort_by(|one, other| one.0.total_cmp(&other.0));
    turns.into_iter().map(|(_, index)| index).collect()
}

impl Worker {
    /// Sends all messages that are due by now.
    pub(super) fn send_due(&mut self) {
        let Some(due) = self.schedule.next_due() else { return };
        if due > self.now_us {
            return;
        }
        while let Some(intended_us) = self.schedule.take_due(self.now_us) {
            self.send_message(intended_us);
        }
        self.flush_dirty();
    }

    fn send_message(&mut self, intended_us: u64) {
        if self.rotation.is_empty() {
            self.tally.unsent += 1;
            return;
        }
        let index = self.rotation[self.next_sender] as usize;
        self.next_sender = (self.next_sender + 1) % self.rotation.len();
        self.send_from(index, intended_us);
    }

    /// Sends one message from a connection.
    pub(super) fn send_from(&mut self, index: usize, intended_us: u64) {
        let connection = &mut self.connections[index];
        if !connection.is_ready() || connection.queued_bytes() > MAX_QUEUED_BYTES {
            self.tally.unsent += 1;
            return;
        }
        let room = connection.room as usize;
        let stamp = Stamp { sender: (self.first + index) as u32, sequence: connection.sent, intended_us };
        connection.sent += 1;
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        let (plan, name) = (&self.plan, &self.plan.rooms[room]);
        let payload = plan.payloads.of(&stamp);
        self.dialect.write_message(name, &stamp, payload, plan.acknowledged, &mut text);
        if self.connections[index].deflate
            && let Some(payload) = self.deflate.compress(&text)
        {
            let mask = self.random.u32(..).to_ne_bytes();
            self.connections[index].queue_compressed(payload, mask);
            self.mark_dirty(index);
        } else {
            self.queue_frame(index, frame::TEXT, &text);
        }
        self.text = text;
        self.tally.sent += 1;
        self.interval.sent += 1;
        self.tally.expected += self.receivers(room);
        self.tally.acks_awaited += i64::from(self.plan.acknowledged);
        if self.load.is_some_and(|load| load.measures(intended_us)) {
            self.tally.send_lag.saturating_record(self.now_us - intended_us);
        }
    }

    /// How many connections get a message of one member of a room.
    pub(super) fn receivers(&self, room: usize) -> i64 {
        i64::from(self.control.open_members(room).load(Ordering::Acquire)) - 1
    }

    /// Queues a frame; it goes out with the next flush.
    pub(super) fn queue_frame(&mut self, index: usize, opcode: OpCode, payload: &[u8]) {
        let mask = self.random.u32(..).to_ne_bytes();
        self.connections[index].queue_frame(opcode, payload, mask);
        self.mark_dirty(index);
    }

    fn mark_dirty(&mut self, index: usize) {
        if !std::mem::replace(&mut self.connections[index].dirty, true) {
            self.dirty.push(index as u32);
        }
    }

    /// Writes what is queued on all connections.
    pub(super) fn flush_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.connections[index as usize].dirty = false;
            self.flush(index as usize);
        }
        self.dirty = dirty;
    }

    /// Writes what is queued on one connection, and watches for room to write while something is left.
    pub(super) fn flush(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let watch = match connection.flush() {
            Ok(all) => !all,
            // The close frame that tells why is still to be read.
            Err(Errno::PIPE | Errno::CONNRESET) if connection.is_ready() => false,
            Err(error) => return self.end(index, &format!("cannot write: {error}")),
        };
        if watch == connection.watches_write {
            return;
        }
        connection.watches_write = watch;
        let Some(socket) = connection.socket() else { return };
        let flags = if watch { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        if let Err(error) = epoll::modify(&self.epoll, socket, EventData::new_u64(index as u64), flags) {
            self.end(index, &format!("cannot watch: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::plan::tests::plan;

    fn with(layout: Layout, turns: Turns) -> Plan {
        Plan { layout, turns, ..plan() }
    }

    #[test]
    fn consecutive_messages_go_to_different_rooms() {
        let layout = Layout { connections: 60, room_size: 10, servers: 1, transients: 0 };
        let order = rotation(&with(layout, Turns::Equal), 0..60, &mut fastrand::Rng::with_seed(7));
        for round in order.chunks(layout.rooms()) {
            let mut rooms: Vec<usize> = round.iter().map(|i| layout.room_of(*i as usize)).collect();
            rooms.sort_unstable();
            assert_eq!(rooms, [0, 1, 2, 3, 4, 5]);
        }
        let mut all = order;
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<u32>>());
    }

    #[test]
    fn rooms_with_rates_of_their_own_send_that_often_and_only_those_who_stay_send() {
        let layout = Layout { connections: 500, room_size: 5, servers: 1, transients: 1 };
        let plan = with(layout, Turns::PerRoom(10, 20));
        let order = rotation(&plan, 0..500, &mut fastrand::Rng::with_seed(7));
        let mut turns = vec![0_u32; layout.rooms()];
        for index in order {
            assert!(layout.is_stable(index as usize));
            turns[layout.room_of(index as usize)] += 1;
        }
        let wanted: Vec<u32> =
            (0..layout.rooms()).map(|room| plan.turns.of_room(room, 4, plan.seed)).collect();
        assert_eq!(turns, wanted);
        assert_eq!((turns.iter().min(), turns.iter().max()), (Some(&10), Some(&20)));
    }
}
