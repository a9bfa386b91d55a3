//! Reads of rooms with history, over the connection that their messages come over.

use std::time::Instant;

use redis::{ServerError, Value, cmd};

use super::{Expect, Ingress};
use crate::identity::RoomId;
use crate::room::history::Position;
use crate::shard::envelope::{HistoryPage, Joined, ReadHistory};
use crate::uplink::history::{self, Call};
use crate::uplink::link::{LinkError, PASSING, words};
use crate::uplink::script_queue::Outgoing;

/// Rooms whose positions are compared in one call.
const ROOMS_PER_CALL: usize = 256;

impl Ingress {
    /// Notes how many commands wait in the queue.
    pub fn note_waiting(&self, commands: usize) {
        self.cells.commands_waiting.set(commands as u64);
    }

    /// Sends the reads that followers want.
    pub(super) fn send_reads(&mut self, now: Instant) {
        for read in self.delivery.following().take_reads() {
            self.call_history(Call::Read(read), now);
        }
    }

    /// The connection is up: Redis is given the script, so that what rooms have missed is read in front of
    /// everything that restores them.
    pub(super) fn load_history(&mut self, now: Instant) {
        if self.delivery.is_following()
            && let Some(outgoing) = self.history_scripts.submit(Call::Positions(Vec::new()))
        {
            self.send_history(Outgoing { with_text: true, ..outgoing }, now);
        }
    }

    fn call_history(&mut self, call: Call, now: Instant) {
        if let Some(outgoing) = self.history_scripts.submit(call) {
            self.send_history(outgoing, now);
        }
    }

    fn send_history(&mut self, outgoing: Outgoing<Call>, now: Instant) {
        let fresh = self.delivery.following().draw_epoch();
        let command = self.history.command(&outgoing.call, fresh, outgoing.with_text);
        self.link.send(&command, Expect::History(outgoing.call), now);
    }

    /// A join was granted: answered once the room's history is known, if it has one.
    pub(super) fn join_granted(&mut self, joined: Box<Joined>, since: Option<Position>, now: Instant) {
        let ready = if self.delivery.following().covers(joined.room.as_str()) {
            self.delivery.following().join(joined, since)
        } else {
            Some(joined)
        };
        if let Some(joined) = ready {
            self.delivery.joined(joined);
        }
        self.send_reads(now);
    }

    /// A connection asks for a page. What Redis has published before now comes in front of this PING's answer, so
    /// whoever has had an ack finds its message in the page.
    pub(super) fn ask_page(&mut self, request: Box<ReadHistory>, now: Instant) {
        self.link.send(&cmd("PING"), Expect::Page(request), now);
    }

    /// The room is as far as Redis was when the page was asked for.
    pub(super) fn page_due(&mut self, request: Box<ReadHistory>, now: Instant) {
        match self.delivery.following().page(&request) {
            Some(page) => self.delivery.page(*request, Some(page)),
            None => self.call_history(Call::Page(request), now),
        }
    }

    /// Looks at the positions of rooms that may have gone quiet just when a message was lost.
    pub(super) fn check_positions(&mut self, now: Instant) {
        let rooms = self.delivery.following().check();
        for rooms in rooms.chunks(ROOMS_PER_CALL) {
            self.call_history(Call::Positions(rooms.to_vec()), now);
        }
    }

    /// A call was answered.
    pub(super) fn history_answer(
        &mut self,
        call: Call,
        answer: Result<Value, ServerError>,
        now: Instant,
    ) -> Result<(), LinkError> {
        let mut outgoing = Vec::new();
        let answered = self.history_scripts.answered(call, answer, |out| outgoing.push(out));
        for out in outgoing {
            self.send_history(out, now);
        }
        let Some((call, answer)) = answered else { return Ok(()) };
        let value = match answer {
            Ok(value) => Some(value),
            Err(error) if PASSING.contains(&error.code()) => {
                tracing::debug!(error = %words(&error), "a room's history cannot be read now");
                None
            }
            Err(error) => return Err(super::refused("the history script", &error)),
        };
        self.read(call, value)
            .ok_or(LinkError::Other("the history script gave an answer of the wrong shape"))?;
        self.send_reads(now);
        Ok(())
    }

    /// Takes an answer, or that there is none; nothing when it has the wrong shape.
    fn read(&mut self, call: Call, value: Option<Value>) -> Option<()> {
        match call {
            Call::Read(read) => {
                let kept = match value {
                    Some(value) => Some(history::decode_kept(&value)?),
                    None => None,
                };
                self.delivery.history_read(&read, kept);
            }
            Call::Page(request) => {
                let page = match value {
                    Some(value) => {
                        let (position, frames) = history::decode_page(&value)?;
                        Some(HistoryPage { position, frames })
                    }
                    None => None,
                };
                self.delivery.page(*request, page);
            }
            Call::Positions(rooms) => {
                let positions = value.map_or(Some(Vec::new()), |value| history::decode_positions(&value))?;
                self.compare(&rooms, &positions);
            }
            Call::Probe => {}
        }
        Some(())
    }

    fn compare(&mut self, rooms: &[RoomId], positions: &[Option<Position>]) {
        for (room, position) in rooms.iter().zip(positions) {
            // A room that is not subscribed again yet is read when it is: till then its members could not be told.
            if self.delivery.has_room(room.as_str()) {
                self.delivery.following().compare(room, *position);
            }
        }
    }

    /// The connection is gone, with calls that clients wait for: they are told.
    pub(super) fn history_lost(&mut self, unanswered: Vec<Expect>) {
        let waiting = self.history_scripts.clear().into_iter().map(Expect::History);
        for expect in unanswered.into_iter().chain(waiting) {
            if let Expect::Page(request) | Expect::History(Call::Page(request)) = expect {
                self.delivery.page(*request, None);
            }
        }
        self.delivery.following().link_lost();
    }
}
