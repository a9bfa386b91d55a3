//! Rooms with history: what members send there waits for its number, and who comes back gets what it missed.
//!
//! Alone, the home of a room numbers and keeps its messages; in a cluster Redis does, by way of the uplink, and the
//! home only passes requests on. Either way a message comes to its receivers, the sender's shard included, only after
//! it was stored.

use std::collections::VecDeque;

use bytes::Bytes;

use super::envelope::{
    Asker, Envelope, HistoryPage, LinkState, Publication, ReadHistory, Store, StoreOutcome, UplinkCommand,
};
use super::requests::{BUSY, Outcome, Refused};
use super::{Now, Shard, home};
use crate::command::decode;
use crate::command::event;
use crate::command::rejection::ErrorCode;
use crate::identity::{ConnectionId, RoomId, UserId};
use crate::limits;
use crate::permission::RoomRight;
use crate::room::histories::{Kept, NewMessage};
use crate::room::history::{Epoch, NotRecovered, Position};

/// Milliseconds, beyond the time that Redis may take, after which a history's answer is given up: it comes within a
/// turn of the home shard or a flush of the uplink, or not at all.
const ANSWER_MS: u32 = 5000;

const UNREACHABLE: Refused =
    Refused(ErrorCode::Unavailable, "the history cannot be reached: nothing was done, try again", Some(1000));

const UNKNOWN: &str =
    "whether the message was stored is not known: send it again with the same messageId, which is safe";

/// What a request of a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Stored,
    Page,
}

/// A request whose reply comes when a history has answered.
#[derive(Debug)]
pub(super) struct Awaited {
    answer: Answer,
    room: RoomId,
    message_id: Option<Box<str>>,
    asked_at: u32,
}

/// What the client may have meant by `since`: an epoch that no server has written is no room's.
pub(super) fn position(since: &decode::Position<'_>) -> Position {
    Position { epoch: Epoch::parse(since.epoch).unwrap_or(Epoch::NONE), offset: since.offset }
}

impl Shard {
    // ── as the owner of connections ───────────────────────────────────────────────────────

    /// A member's message to a room with history.
    pub(super) fn publish_to_history(
        &mut self,
        id: ConnectionId,
        room: RoomId,
        user: UserId,
        message_id: Option<&str>,
        event: Bytes,
        now: Now,
    ) -> Result<Outcome, Refused> {
        let asker = Asker { connection: id, message_id: message_id.map(Into::into) };
        let store = Store { room: room.clone(), asker, user, sender: Some(id), event };
        if message_id.is_some() && !self.has_room_to_await(id) {
            return Err(BUSY);
        }
        match &self.uplink {
            Some(uplink) if uplink.state == LinkState::Down => return Err(UNREACHABLE),
            Some(uplink) => {
                uplink.publications.try_send(Publication::Store(Box::new(store))).map_err(|_| BUSY)?;
            }
            None => {
                let to = home::of_room(room.as_str(), self.mesh.shards());
                if self.mesh.is_congested(to) {
                    return Err(BUSY);
                }
                self.mesh.send(to, Envelope::Store(Box::new(store)));
            }
        }
        if message_id.is_some() {
            self.wait_for(Answer::Stored, id, room, message_id, now);
        }
        Ok(Outcome::Later)
    }

    pub(super) fn read_history(
        &mut self,
        id: ConnectionId,
        request: &decode::HistoryRequest<'_>,
        message_id: Option<&str>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        self.may(id, RoomRight::History, request.room)?;
        if !self.settings().history.covers(request.room) {
            return Err((ErrorCode::Unavailable, "this room keeps no history").into());
        }
        let to = home::of_room(request.room, self.mesh.shards());
        if self.mesh.is_congested(to) || !self.has_room_to_await(id) {
            return Err(BUSY);
        }
        let room = RoomId::parse(request.room).ok_or((ErrorCode::InvalidRoom, "this is no room name"))?;
        let most = self.settings().history.page;
        let read = ReadHistory {
            room: room.clone(),
            asker: Asker { connection: id, message_id: message_id.map(Into::into) },
            since: request.since.as_ref().map(position),
            limit: request.limit.map_or(most, |limit| most.min(limit as usize)),
            reverse: request.reverse,
        };
        self.mesh.send(to, Envelope::ReadHistory(Box::new(read)));
        self.wait_for(Answer::Page, id, room, message_id, now);
        Ok(Outcome::Later)
    }

    fn has_room_to_await(&mut self, id: ConnectionId) -> bool {
        let unsettled = self.session_of(id).and_then(|session| session.unsettled.as_ref());
        unsettled.is_none_or(|unsettled| unsettled.awaited.len() < limits::AWAITED_REPLIES)
    }

    fn wait_for(
        &mut self,
        answer: Answer,
        id: ConnectionId,
        room: RoomId,
        message_id: Option<&str>,
        now: Now,
    ) {
        let awaited = Awaited { answer, room, message_id: message_id.map(Into::into), asked_at: now.ms() };
        if let Some(session) = self.session_of(id) {
            session.unsettled().awaited.push_back(awaited);
        }
    }

    /// Whether the connection still waits for this answer; it does so no more.
    fn take_awaited(&mut self, answer: Answer, room: &RoomId, asker: &Asker) -> bool {
        let Some(session) = self.session_of(asker.connection) else { return false };
        let Some(unsettled) = &mut session.unsettled else { return false };
        let place = unsettled.awaited.iter().position(|awaited| {
            awaited.answer == answer && awaited.message_id == asker.message_id && awaited.room == *room
        });
        let Some(place) = place else { return false };
        unsettled.awaited.remove(place);
        session.settle();
        true
    }

    /// A message was stored, or was not. Without a `messageId` only the latter is told.
    pub(super) fn stored(&mut self, room: &RoomId, asker: &Asker, outcome: StoreOutcome) {
        let id = asker.connection;
        let message_id = asker.message_id.as_deref();
        if message_id.is_some() && !self.take_awaited(Answer::Stored, room, asker) {
            return;
        }
        if self.session_of(id).is_none() {
            return;
        }
        match (outcome, message_id) {
            (StoreOutcome::Stored(_), None) => {}
            (StoreOutcome::Stored(offset), Some(message_id)) => {
                let ack = event::message_ack(message_id, Some(room.as_str()), Some(offset));
                self.outboxes.push(id.slot, &ack);
            }
            (StoreOutcome::Unavailable, _) => self.refuse(id, message_id, UNREACHABLE),
            (StoreOutcome::Timeout, _) => {
                self.error(id.slot, ErrorCode::Timeout, UNKNOWN, message_id, None);
            }
        }
    }

    /// A part of a room's past: as much of it as the connection's outbox has room for.
    pub(super) fn history_read(&mut self, room: &RoomId, asker: &Asker, page: Option<HistoryPage>) {
        if !self.take_awaited(Answer::Page, room, asker) {
            return;
        }
        let id = asker.connection;
        let message_id = asker.message_id.as_deref();
        let Some(HistoryPage { position, mut frames }) = page else {
            return self.refuse(id, message_id, UNREACHABLE);
        };
        let mut left = self.replay_bytes(id.slot);
        let fitting = frames.iter().take_while(|frame| {
            let fits = frame.len() < left;
            left = left.saturating_sub(frame.len() + 1);
            fits
        });
        let fitting = fitting.count();
        if fitting == 0 && !frames.is_empty() {
            return self.refuse(id, message_id, BUSY);
        }
        frames.truncate(fitting);
        let epoch = position.epoch.to_string();
        let position = decode::Position { epoch: &epoch, offset: position.offset };
        self.outboxes.push(id.slot, &event::room_history(room.as_str(), position, &frames, message_id));
    }

    fn refuse(&mut self, id: ConnectionId, message_id: Option<&str>, refused: Refused) {
        let Refused(code, message, retry_after_ms) = refused;
        self.error(id.slot, code, message, message_id, retry_after_ms);
    }

    /// Bytes of past messages that one reply to the connection may have now: a client that reads is not closed
    /// for what it was given to catch up.
    fn replay_bytes(&self, slot: u32) -> usize {
        (self.settings().outbox_bytes / 2).saturating_sub(self.outboxes.bytes(slot))
    }

    /// What was missed, unless it is more than the connection can take now.
    pub(super) fn fitting_recovery(
        &self,
        slot: u32,
        recovery: Result<Vec<Bytes>, NotRecovered>,
    ) -> Result<Vec<Bytes>, NotRecovered> {
        let frames = recovery?;
        let bytes: usize = frames.iter().map(|frame| frame.len() + 1).sum();
        if bytes > self.replay_bytes(slot) && bytes > 0 { Err(NotRecovered::TooMuch) } else { Ok(frames) }
    }

    /// Gives up what the connection has waited for too long.
    pub(super) fn look_at_awaited(&mut self, id: ConnectionId, now: Now) {
        let redis = self.settings().redis.as_ref().map_or(0, |redis| redis.timeout.as_millis() as u32);
        let most = ANSWER_MS.saturating_add(redis);
        self.give_up(id, |awaited| now.ms().wrapping_sub(awaited.asked_at) >= most);
    }

    /// The link went down: histories that the uplink was asked for will not come. What became of messages the uplink
    /// says itself.
    pub(super) fn give_up_pages(&mut self) {
        let waiting = self.sessions.iter().flatten().filter(|session| {
            session.unsettled.as_ref().is_some_and(|unsettled| !unsettled.awaited.is_empty())
        });
        let waiting: Vec<_> = waiting.map(|session| session.id).collect();
        for id in waiting {
            self.give_up(id, |awaited| awaited.answer == Answer::Page);
        }
    }

    fn give_up(&mut self, id: ConnectionId, is_given_up: impl Fn(&Awaited) -> bool) {
        let Some(session) = self.session_of(id) else { return };
        let Some(unsettled) = session.unsettled.as_mut().filter(|unsettled| !unsettled.awaited.is_empty())
        else {
            return;
        };
        let (late, waiting): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut unsettled.awaited).into_iter().partition(is_given_up);
        unsettled.awaited = waiting;
        session.settle();
        for Awaited { answer, message_id, .. } in late {
            match answer {
                Answer::Stored => {
                    self.error(id.slot, ErrorCode::Timeout, UNKNOWN, message_id.as_deref(), None);
                }
                Answer::Page => self.refuse(id, message_id.as_deref(), UNREACHABLE),
            }
        }
    }

    // ── as the home of rooms ──────────────────────────────────────────────────────────────

    /// Where the room's history stands, if this shard keeps it, and what was missed since.
    pub(super) fn home_recover(
        &mut self,
        room: &RoomId,
        since: Option<Position>,
        now: Now,
    ) -> (Option<Position>, Result<Vec<Bytes>, NotRecovered>) {
        if !self.settings().history.covers(room.as_str()) {
            return (None, Err(NotRecovered::NoHistory));
        }
        let most_bytes = self.settings().outbox_bytes / 2;
        let Some(histories) = &mut self.histories else { return (None, Err(NotRecovered::Unavailable)) };
        let homes = &self.homes;
        let history = histories.open(room, now.since_start_ms, |room| homes.get(room).is_some());
        let recovery = match since {
            Some(since) => history.recover(since, most_bytes).map(|frames| frames.cloned().collect()),
            None => Ok(Vec::new()),
        };
        (Some(history.position()), recovery)
    }

    pub(super) fn home_store(&mut self, store: Store, now: Now) {
        let Store { room, asker, user, sender, event } = store;
        let outcome = match &mut self.histories {
            // In a cluster the uplink stores, and nobody asks the home.
            None => StoreOutcome::Unavailable,
            Some(histories) => {
                let homes = &self.homes;
                let message =
                    NewMessage { room: &room, user: &user, message_id: asker.message_id.as_deref() };
                let is_occupied = |room: &str| homes.get(room).is_some();
                let numbered = |offset| event::numbered(&event, offset);
                match histories.store(message, now.since_start_ms, is_occupied, numbered) {
                    Kept::Repetition(offset) => StoreOutcome::Stored(offset),
                    Kept::New(position, frame) => {
                        self.pass_on(&room, sender, &frame, position);
                        StoreOutcome::Stored(position.offset)
                    }
                }
            }
        };
        self.mesh.send(asker.connection.shard, Envelope::Stored { room, asker, outcome });
    }

    /// Sends a numbered message to the shards with members. One that has missed a message gets none until it has
    /// told its members where the room stands.
    fn pass_on(&mut self, room: &RoomId, sender: Option<ConnectionId>, frame: &Bytes, position: Position) {
        let Some(home) = self.homes.get(room.as_str()) else { return };
        for shard in home.route.shards() {
            let envelope = Envelope::RoomFrame { room: room.clone(), sender, frame: frame.clone() };
            if self.mesh.is_lossy(shard, room) || !self.mesh.offer(shard, envelope) {
                self.mesh.lost(shard, room, Some(position));
                self.cells.mesh_dropped.add(1);
            }
        }
    }

    pub(super) fn home_read(&mut self, read: Box<ReadHistory>, now: Now) {
        if let (true, Some(uplink)) = (self.is_linked(), &mut self.uplink) {
            return uplink.commands.send(UplinkCommand::ReadHistory(read));
        }
        let ReadHistory { room, asker, since, limit, reverse } = *read;
        let homes = &self.homes;
        let page = self.histories.as_mut().map(|histories| {
            let history = histories.open(&room, now.since_start_ms, |room| homes.get(room).is_some());
            let position = history.position();
            let frames = match since {
                Some(since) if since.epoch != position.epoch => Vec::new(),
                since => history.page(since.map(|since| since.offset), limit, reverse),
            };
            HistoryPage { position, frames }
        });
        self.mesh.send(asker.connection.shard, Envelope::History { room, asker, page });
    }

    /// Forgets what is too old; to be called every tick.
    pub(super) fn sweep_histories(&mut self, now: Now) {
        let homes = &self.homes;
        if let Some(histories) = &mut self.histories {
            histories.sweep(now.since_start_ms, |room| homes.get(room).is_some());
        }
    }
}
