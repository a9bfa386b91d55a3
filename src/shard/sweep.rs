//! Time passes: deadlines of every connection, looked at in turn.
//!
//! There are no timers. Each tick looks at a tenth of the connections, so each is seen once a second,
//! and a deadline is kept within a second of what was set.

use std::sync::Arc;

use super::envelope::{Asker, Envelope, ReadHistory};
use super::mesh::Mesh;
use super::requests::{BUSY, Outcome, Refused};
use super::session::Phase;
use super::{Action, Now, Shard, api, home, key};
use crate::accept::request::Refusal;
use crate::codec::close::CloseCode;
use crate::codec::frame;
use crate::command::rejection::ErrorCode;
use crate::identity::{ConnectionId, RoomId};
use crate::limits;
use crate::room::history::Position;

/// Milliseconds between ticks.
pub const TICK_MS: u64 = 100;

/// Ticks in which every connection is looked at once.
const TICKS_PER_SWEEP: usize = 10;

/// Milliseconds for the peer to answer a close frame, and again to close its end: enough for a slow
/// mobile link, short enough that dead ones do not pile up.
const CLOSE_MS: u32 = 5000;

/// Milliseconds after which a request to another thread is sent again.
const ASK_AGAIN_MS: u32 = 2000;

/// What a client wants to know of a room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Question {
    /// Who is in it.
    Members,
    /// What was said in it.
    History { since: Option<Position>, limit: usize, reverse: bool },
}

/// A question to a room's home that waits for its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) room: RoomId,
    pub(super) asker: Asker,
    pub(super) question: Question,
    pub(super) since: u32,
}

impl Shard {
    /// A tick has passed.
    pub fn handle_tick(&mut self, now: Now) {
        if !self.instance.is_degraded() {
            self.instance.quotas.share_among(self.instance.instances());
        }
        if let Some(rooms) = self.traffic.look(&self.directory, now.since_start_ms) {
            self.instance.busy_rooms[self.id.index()].store(Arc::new(rooms));
        }
        self.cells.mesh_backlog.set(self.mesh.backlog() as u64);
        let count = self.sessions.len().div_ceil(TICKS_PER_SWEEP);
        let end = (self.sweep_from + count).min(self.sessions.len());
        for slot in self.sweep_from..end {
            self.look_at(slot as u32, now);
        }
        self.sweep_from = end;
        if end >= self.sessions.len() {
            self.sweep_from = 0;
            self.deliver_sizes();
            self.look_at_questions(now);
            self.look_at_api(now);
            self.outboxes.trim();
        }
        let homes = &self.homes;
        self.archive.sweep(now.since_start_ms, |room| homes.get(room.as_str()).is_some());
        self.drain_some(now);
        self.step_local(now);
    }

    fn look_at(&mut self, slot: u32, now: Now) {
        let head_time = ms(self.settings().handshake_timeout);
        let Some(session) = self.session(slot) else { return };
        let id = session.id;
        let in_phase = now.ms().wrapping_sub(session.since);
        match session.phase {
            Phase::Handshake if in_phase >= head_time => self.refuse_slow_head(slot, now),
            Phase::Requesting if in_phase >= head_time.max(api::ANSWER_MS) => {
                self.refuse_slow_request(slot, now);
            }
            // Asked while the link went down, and its home had not heard of that yet: nobody will answer. The
            // subscription comes with the next restoring.
            Phase::Attaching if in_phase >= ASK_AGAIN_MS => {
                self.mesh.send(self.id, Envelope::Attached { connection: id });
            }
            Phase::Open => self.look_at_open(slot, now),
            Phase::Closing | Phase::Finishing if in_phase >= CLOSE_MS => self.drop_connection(id, now),
            _ => {}
        }
    }

    fn look_at_open(&mut self, slot: u32, now: Now) {
        let settings = &self.settings;
        let silence = ms(settings.ping_interval);
        let patience = silence.saturating_add(ms(settings.pong_timeout));
        let (authentication, age) = (ms(settings.authentication_timeout), ms(settings.outbox_age));
        let Some(session) = self.session(slot) else { return };
        let silent = now.ms().wrapping_sub(session.heard_at);
        let in_phase = now.ms().wrapping_sub(session.since);
        let unauthenticated = session.identity.is_none();
        let ping = silent >= silence && !session.pinged;
        session.pinged = silent >= silence;
        let id = session.id;
        self.retry_joins(id, now);
        self.watch_expiry(id, now);
        self.look_at_awaited(id, now);
        if unauthenticated && in_phase >= authentication {
            self.close(slot, CloseCode::AuthenticationTimeout, "send authenticate with a token in time", now);
        } else if silent >= patience {
            self.close(slot, CloseCode::NoPong, "no pong in time", now);
        } else if self.outboxes.stalled_for(slot, now.ms()).is_some_and(|stalled| stalled >= age) {
            self.cells.slow_closes.add(1);
            self.cells.outboxes_stalled.add(1);
            self.close(slot, CloseCode::SlowReader, "nothing was read for too long", now);
        } else if ping {
            self.outboxes.push(slot, &frame::ping());
        }
    }

    fn refuse_slow_head(&mut self, slot: u32, now: Now) {
        let refusal = Refusal::new("408 Request Timeout", "the request head was not complete in time");
        self.refuse_incomplete(slot, &refusal, now);
    }

    /// Closes the socket, whatever still waits for it.
    pub(super) fn drop_connection(&mut self, id: ConnectionId, now: Now) {
        if let Some(session) = self.session_of(id) {
            session.enter(Phase::Gone, now);
            self.outboxes.shut(id.slot);
            self.outboxes.discard(id.slot);
            self.actions.push(Action::Close(key(id)));
        }
    }

    fn retry_joins(&mut self, id: ConnectionId, now: Now) {
        let Some(unsettled) = self.session_of(id).and_then(|session| session.unsettled.as_mut()) else {
            return;
        };
        let mut late = Vec::new();
        for joining in &mut unsettled.joining {
            if now.ms().wrapping_sub(joining.asked_at) >= ASK_AGAIN_MS {
                joining.asked_at = now.ms();
                late.push(joining.room.clone());
            }
        }
        for room in late {
            self.ask_to_join(id, &room, true);
        }
    }

    /// The link went down: what the uplink was asked will not be answered by it.
    pub(super) fn ask_again(&mut self) {
        let pending: Vec<_> = self
            .sessions
            .iter()
            .flatten()
            .filter_map(|session| Some((session, session.unsettled.as_ref()?)))
            .flat_map(|(session, unsettled)| {
                unsettled.joining.iter().map(move |joining| (session.id, joining.room.clone()))
            })
            .collect();
        for (id, room) in pending {
            self.ask_to_join(id, &room, true);
        }
        let attaching: Vec<_> = self
            .sessions
            .iter()
            .flatten()
            .filter(|session| {
                session.phase == Phase::Attaching
                    || session.unsettled.as_ref().is_some_and(|unsettled| unsettled.authenticating.is_some())
            })
            .map(|session| session.id)
            .collect();
        for connection in attaching {
            // Its home has it attached already; only the subscription is missing, and comes later.
            self.mesh.send(self.id, Envelope::Attached { connection });
        }
        self.repeat_questions();
    }

    fn repeat_questions(&mut self) {
        for asked in &self.asked {
            put(&mut self.mesh, asked);
        }
    }

    /// Asks the room's home, and waits for its answer.
    ///
    /// # Errors
    /// When too many wait already.
    pub(super) fn ask(&mut self, asked: Asked) -> Result<Outcome, Refused> {
        if self.asked.len() >= limits::OPEN_QUESTIONS {
            return Err(BUSY);
        }
        put(&mut self.mesh, &asked);
        self.asked.push(asked);
        Ok(Outcome::Later)
    }

    /// Whether the answer was still waited for.
    pub(super) fn answered(&mut self, room: &RoomId, asker: &Asker) -> bool {
        let place = self.asked.iter().position(|asked| asked.asker == *asker && asked.room == *room);
        place.map(|place| self.asked.swap_remove(place)).is_some()
    }

    fn look_at_questions(&mut self, now: Now) {
        let (late, waiting) = std::mem::take(&mut self.asked)
            .into_iter()
            .partition(|asked| now.ms().wrapping_sub(asked.since) >= 2 * ASK_AGAIN_MS);
        self.asked = waiting;
        let late: Vec<Asked> = late;
        for asked in late {
            let (slot, message_id) = (asked.asker.connection.slot, asked.asker.message_id.as_deref());
            if self.session_of(asked.asker.connection).is_some() {
                let message = "the answer could not be had in time: ask again";
                self.error(slot, ErrorCode::Unavailable, message, message_id, None);
            }
        }
    }
}

fn put(mesh: &mut Mesh, asked: &Asked) {
    let (room, asker) = (asked.room.clone(), asked.asker.clone());
    let to = home::of_room(room.as_str(), mesh.shards());
    let envelope = match asked.question {
        Question::Members => Envelope::ListMembers { room, asker },
        Question::History { since, limit, reverse } => {
            Envelope::ReadHistory(Box::new(ReadHistory { room, asker, since, limit, reverse }))
        }
    };
    mesh.send(to, envelope);
}

fn ms(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_takes_a_second() {
        assert_eq!(TICK_MS * TICKS_PER_SWEEP as u64, 1000);
    }
}
