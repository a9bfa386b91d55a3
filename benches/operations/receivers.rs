//! A frame gets into every receiver's outbox, and the outboxes are flushed.

use std::hint::black_box;

use bytes::Bytes;
use tableforge::ring::SendBatch;
use tableforge::room::fanout::{SliceMember, fan_out};
use tableforge::send::outbox::{Outboxes, Outgoing};

use super::command::room_event;
use super::{Entry, Operation, json_object};

/// Connections that a message reaches in one run of fan-out, in one room or several.
const RECEIVERS: usize = 1000;

/// Connections with something to send in one run of a flush.
const DIRTY: usize = 500;

/// Bytes that may wait for one connection: the server's default is larger, and never reached here.
const OUTBOX_BYTES: usize = 256 * 1024;

pub fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    for (members, room) in [(50, "rooms_of_50"), (1000, "room_of_1000")] {
        for (before, is_logged, frame) in
            [(0, true, "first_frame"), (1, true, "later_frame"), (2, false, "copied_frame")]
        {
            entries.push(Entry::new(format!("room/fan_out/{room}/{frame}"), RECEIVERS, move || FanOut {
                queued: Queued::new(RECEIVERS, members),
                before,
                is_logged,
            }));
        }
    }
    for (frames, queue) in [(1, "one_frame_each"), (3, "three_frames_each")] {
        entries.push(Entry::new(format!("send/flush/500_dirty/{queue}"), DIRTY, move || Flush {
            queued: Queued::new(DIRTY, DIRTY),
            frames,
        }));
    }
    entries
}

/// One message to each room, behind `before` others.
struct FanOut {
    queued: Queued,
    before: usize,
    /// Whether outboxes refer to the room's log, or else have copies.
    is_logged: bool,
}

impl Operation for FanOut {
    fn prepare(&mut self) {
        self.queued.flush();
        for _ in 0..self.before {
            self.queued.fan_out(self.is_logged);
        }
    }

    fn run(&mut self) {
        self.queued.fan_out(self.is_logged);
    }
}

/// Every outbox with `frames` frames is planned for, and its batch taken back.
struct Flush {
    queued: Queued,
    frames: usize,
}

impl Operation for Flush {
    fn prepare(&mut self) {
        for _ in 0..self.frames {
            self.queued.fan_out(true);
        }
    }

    fn run(&mut self) {
        self.queued.flush();
    }
}

/// Rooms on one shard, and what waits for their members.
struct Queued {
    outboxes: Outboxes,
    rooms: Vec<Vec<SliceMember>>,
    frame: Bytes,
    in_flight: Vec<(u32, Box<SendBatch>)>,
}

impl Queued {
    fn new(connections: usize, members: usize) -> Self {
        // Members' slots are scattered as in a server that has run for a while, not in their order.
        let slots: Vec<_> = (0..connections)
            .map(|i| SliceMember { slot: (i * 617 % connections) as u32, echo: false, window: 0 })
            .collect();
        let mut outboxes = Outboxes::new(OUTBOX_BYTES);
        slots.iter().for_each(|member| outboxes.open(member.slot));
        Self {
            outboxes,
            rooms: slots.chunks(members).map(<[_]>::to_vec).collect(),
            frame: room_event(&json_object(128, 1)),
            in_flight: Vec::with_capacity(connections),
        }
    }

    fn fan_out(&mut self, is_logged: bool) {
        for (room, members) in self.rooms.iter().enumerate() {
            let frame = black_box(&self.frame);
            let stretch = if is_logged { self.outboxes.log(room as u32, frame) } else { None };
            let frame = stretch.as_ref().map_or(Outgoing::Alone(frame), Outgoing::Logged);
            black_box(fan_out(members, None, |member| self.outboxes.push(member.slot, frame)));
        }
    }

    /// A flush to a ring that sends nothing and is done at once.
    fn flush(&mut self) {
        self.outboxes.flush(black_box(1), usize::MAX, |slot, batch| {
            self.in_flight.push((slot, batch));
            Ok(())
        });
        for (slot, batch) in self.in_flight.drain(..) {
            self.outboxes.sent(slot, batch);
        }
    }
}
