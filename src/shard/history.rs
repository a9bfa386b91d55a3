//! Rooms with history: their messages are stored before anyone hears of them, and their past can be read.

use bytes::Bytes;

use super::envelope::{
    Asker, Envelope, HistoryPage, LinkState, Publication, ReadHistory, Store, StoreOutcome, UplinkCommand,
};
use super::requests::{BUSY, Outcome, Refused};
use super::sweep::{Asked, Question};
use super::{Now, Shard, home};
use crate::codec::frame;
use crate::command::decode;
use crate::command::event;
use crate::command::rejection::ErrorCode;
use crate::identity::{ConnectionId, RoomId};
use crate::limits;
use crate::permission::RoomRight;
use crate::room::archive::Appended;
use crate::room::history::{Epoch, NotRecovered, Position};
use crate::trace::OpenSpan;

/// How many outboxes may be filled with the messages missed since a reconnect: whoever was closed because a full one
/// waited has missed that, and what came since.
const RECOVERY_OUTBOXES: usize = 2;

/// Part of an outbox that a page of history may fill: the rest is for what comes meanwhile.
const PAGE_SHARE: usize = 2;

/// Bytes of messages in the reply to one join at most, where outboxes hold `outbox_bytes`.
pub fn recovery_bytes(outbox_bytes: usize) -> usize {
    RECOVERY_OUTBOXES * outbox_bytes
}

/// Milliseconds, beyond the time that Redis may take, after which an ack is given up: it comes within a turn of the
/// room's home or a flush of the uplink, or not at all.
const ACK_MS: u32 = 5000;

const UNKNOWN: &str = "whether the message was stored is not known: send it again with the same messageId";

const NO_HISTORY: Refused = Refused(ErrorCode::Unavailable, "this room keeps no history", None);
const NO_LINK: Refused = Refused(
    ErrorCode::Unavailable,
    "the server cannot store messages now: nothing was done, try again",
    Some(1000),
);

/// What a client's position means here. An epoch that no server has made fits no history.
pub(super) fn position(given: decode::Position<'_>) -> Position {
    Position { epoch: Epoch::parse(given.epoch).unwrap_or(Epoch(0)), offset: given.offset }
}

/// A message with a `messageId` that waits to be stored.
#[derive(Debug)]
pub(super) struct Awaited {
    room: RoomId,
    message_id: Box<str>,
    since: u32,
}

/// A `room_history` request.
pub(super) struct Excerpt<'a> {
    pub(super) room: &'a str,
    pub(super) since: Option<decode::Position<'a>>,
    pub(super) limit: Option<u32>,
    pub(super) reverse: bool,
}

impl Shard {
    /// A message for a room with history, encoded without its offset. The ack follows once it is stored.
    pub(super) fn store(
        &mut self,
        id: ConnectionId,
        room: RoomId,
        frame: &Bytes,
        message_id: Option<&str>,
        span: Option<Box<OpenSpan>>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        let trace = span.map(|span| Box::new((span, self.request_id(id).into())));
        let to = home::of_room(room.as_str(), self.mesh.shards());
        let awaited = message_id.map(|message_id| Awaited {
            room: room.clone(),
            message_id: message_id.into(),
            since: now.ms(),
        });
        let waiting = self.session_of(id).and_then(|session| session.unsettled.as_ref());
        if waiting.is_some_and(|unsettled| unsettled.awaited.len() >= limits::AWAITED_ACKS) {
            return Err(BUSY);
        }
        let Some(identity) = self.session_of(id).and_then(|session| session.identity.as_ref()) else {
            return Ok(Outcome::Done);
        };
        let store = Box::new(Store {
            room,
            asker: Asker { connection: id, message_id: message_id.map(Into::into) },
            user: identity.user.clone(),
            sender: Some(id),
            event: frame::payload(frame),
            trace,
        });
        self.submit(store, to)?;
        if let (Some(session), Some(awaited)) = (self.session_of(id), awaited) {
            session.unsettled().awaited.push_back(awaited);
        }
        Ok(Outcome::Later)
    }

    /// Sends a message to where it is stored.
    pub(super) fn submit(
        &mut self,
        store: Box<Store>,
        home: crate::identity::ShardId,
    ) -> Result<(), Refused> {
        match &self.uplink {
            Some(uplink) if uplink.state == LinkState::Down => Err(NO_LINK),
            Some(uplink) => uplink.publications.try_send(Publication::Store(store)).map_err(|_| BUSY),
            None if self.mesh.is_congested(home) => Err(BUSY),
            None => {
                self.mesh.send(home, Envelope::Store(store));
                Ok(())
            }
        }
    }

    /// As the room's home: numbers the message, keeps it, and hands it to the members.
    pub(super) fn home_store(&mut self, store: Store, now: Now) {
        let Store { room, asker, user, sender, event, trace } = store;
        let name = asker.message_id.as_deref().map(|message_id| (user.as_str(), message_id));
        let text = std::str::from_utf8(&event).expect("an event was made of text");
        let appended =
            self.archive.append(&room, name, now.since_start_ms, |offset| event::numbered(text, offset));
        let offset = match appended {
            Appended::New(offset, frame) => {
                let position = self.archive.position(&room, now.since_start_ms);
                self.hand_out(&room, sender, &frame, position);
                offset
            }
            Appended::Repeated(offset) => offset,
        };
        if let Some(trace) = trace {
            trace.0.finish(None);
        }
        let outcome = StoreOutcome::Stored(offset);
        self.mesh.send(asker.connection.shard, Envelope::Stored { room, asker, outcome });
    }

    /// Sends a numbered message to the shards with members. One that has missed a message gets none until it has
    /// been told where the room stands, so that what comes after that has no gap.
    fn hand_out(&mut self, room: &RoomId, sender: Option<ConnectionId>, frame: &Bytes, position: Position) {
        let Some(home) = self.homes.get(room.as_str()) else { return };
        for shard in home.route.shards() {
            let envelope = Envelope::RoomFrame { room: room.clone(), sender, frame: frame.clone() };
            if self.mesh.is_lossy(shard, room) || !self.mesh.offer(shard, envelope) {
                self.mesh.lost(shard, room, Some(position));
                self.cells.mesh_dropped.add(1);
            }
        }
    }

    /// A message that a connection of this shard has sent is stored, or is not.
    pub(super) fn stored(&mut self, room: &RoomId, asker: &Asker, outcome: StoreOutcome) {
        let slot = asker.connection.slot;
        if self.session_of(asker.connection).is_none() {
            return;
        }
        let message_id = asker.message_id.as_deref();
        if message_id.is_some_and(|message_id| !self.take_awaited(asker.connection, room, message_id)) {
            return;
        }
        match (outcome, message_id) {
            (StoreOutcome::Stored(offset), Some(message_id)) => {
                let ack = event::message_ack(message_id, Some(room.as_str()), Some(offset));
                self.outboxes.push(slot, &ack);
            }
            (StoreOutcome::Stored(_), None) => {}
            (StoreOutcome::Unavailable, _) => {
                let Refused(code, message, retry) = NO_LINK;
                self.error(slot, code, message, message_id, retry);
            }
            (StoreOutcome::Timeout, _) => {
                self.error(slot, ErrorCode::Timeout, UNKNOWN, message_id, Some(1000));
            }
        }
    }

    /// Whether the connection still waits for this ack; it does so no more.
    fn take_awaited(&mut self, id: ConnectionId, room: &RoomId, message_id: &str) -> bool {
        let Some(session) = self.session_of(id) else { return false };
        let Some(unsettled) = &mut session.unsettled else { return false };
        let is_it = |awaited: &Awaited| &*awaited.message_id == message_id && awaited.room == *room;
        let Some(place) = unsettled.awaited.iter().position(is_it) else { return false };
        unsettled.awaited.remove(place);
        session.settle();
        true
    }

    /// Gives up the acks that the connection has waited for too long.
    pub(super) fn look_at_awaited(&mut self, id: ConnectionId, now: Now) {
        let redis = self.settings().redis.as_ref().map_or(0, |redis| redis.timeout.as_millis() as u32);
        let most = ACK_MS.saturating_add(redis);
        while let Some(session) = self.session_of(id)
            && let Some(unsettled) = &mut session.unsettled
            && let Some(oldest) = unsettled.awaited.front()
            && now.ms().wrapping_sub(oldest.since) >= most
        {
            let late = unsettled.awaited.pop_front();
            session.settle();
            let message_id = late.as_ref().map(|late| &*late.message_id);
            self.error(id.slot, ErrorCode::Timeout, UNKNOWN, message_id, Some(1000));
        }
    }

    /// What a joining connection is told of a room's history when there is no cluster to ask.
    pub(super) fn home_recovery(
        &mut self,
        room: &RoomId,
        since: Option<Position>,
        now: Now,
    ) -> (Option<Position>, Result<Vec<Bytes>, NotRecovered>) {
        if !self.settings().history.covers(room.as_str()) {
            return (None, Err(NotRecovered::NoHistory));
        }
        if self.uplink.is_some() {
            return (None, Err(NotRecovered::Unavailable));
        }
        let now_ms = now.since_start_ms;
        let most = self.recovery_bytes();
        let standing = self.archive.position(room, now_ms);
        let recovery = match since {
            Some(since) => self.archive.recover(room, since, most, now_ms),
            None => Ok(Vec::new()),
        };
        (Some(standing), recovery)
    }

    fn recovery_bytes(&self) -> usize {
        recovery_bytes(self.settings().outbox_bytes)
    }

    /// Bytes of past messages that the reply to a join may have now.
    fn replay_bytes(&self, slot: u32) -> usize {
        self.recovery_bytes().saturating_sub(self.outboxes.bytes(slot))
    }

    /// Bytes that a page may have now: a client that reads is not closed for what it is given.
    fn page_bytes(&self, slot: u32) -> usize {
        (self.settings().outbox_bytes / PAGE_SHARE).saturating_sub(self.outboxes.bytes(slot))
    }

    /// What was missed, unless it is more than the connection can take now.
    pub(super) fn fitting(&self, slot: u32, frames: Vec<Bytes>) -> Result<Vec<Bytes>, NotRecovered> {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        if bytes > 0 && bytes > self.replay_bytes(slot) { Err(NotRecovered::TooMuch) } else { Ok(frames) }
    }

    /// `room_history`: whoever has the right may read, member or not.
    pub(super) fn read_history(
        &mut self,
        id: ConnectionId,
        excerpt: &Excerpt<'_>,
        message_id: Option<&str>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        self.may(id, RoomRight::History, excerpt.room)?;
        let history = &self.settings().history;
        if !history.covers(excerpt.room) {
            return Err(NO_HISTORY);
        }
        let limit = excerpt.limit.map_or(history.page, |limit| (limit as usize).min(history.page));
        let room = RoomId::parse(excerpt.room).ok_or(NO_HISTORY)?;
        let (since, reverse) = (excerpt.since.map(position), excerpt.reverse);
        let asker = Asker { connection: id, message_id: message_id.map(Into::into) };
        let question = Question::History { since, limit, reverse };
        self.ask(Asked { room, asker, question, since: now.ms() })
    }

    /// As the room's home: reads, or has the uplink read.
    pub(super) fn home_read(&mut self, request: Box<ReadHistory>, now: Now) {
        let linked = self.is_linked();
        let page = match &mut self.uplink {
            Some(uplink) if linked => {
                return uplink.commands.send(UplinkCommand::ReadHistory(request));
            }
            Some(_) => None,
            None => {
                let now_ms = now.since_start_ms;
                let position = self.archive.position(&request.room, now_ms);
                let fits = request.since.is_none_or(|since| since.epoch == position.epoch);
                let since = request.since.map(|since| since.offset);
                let frames = if fits {
                    self.archive.page(&request.room, since, request.limit, request.reverse, now_ms)
                } else {
                    Vec::new()
                };
                Some(HistoryPage { position, frames })
            }
        };
        let ReadHistory { room, asker, .. } = *request;
        self.mesh.send(asker.connection.shard, Envelope::History { room, asker, page });
    }

    /// The answer to a `room_history` of a connection of this shard.
    pub(super) fn history_read(&mut self, room: &RoomId, asker: &Asker, page: Option<HistoryPage>) {
        if !self.answered(room, asker) || self.session_of(asker.connection).is_none() {
            return;
        }
        let (slot, message_id) = (asker.connection.slot, asker.message_id.as_deref());
        let Some(page) = page else {
            let message = "the history cannot be read now: try again";
            return self.error(slot, ErrorCode::Unavailable, message, message_id, Some(1000));
        };
        let most = self.page_bytes(slot);
        let mut bytes = 0;
        // What does not fit into one reply is for the next page.
        let fitting = page.frames.iter().take_while(|frame| {
            bytes += frame.len();
            bytes <= most
        });
        let fitting = fitting.count();
        if fitting == 0 && !page.frames.is_empty() {
            // An empty page would say that there is nothing more.
            let Refused(code, message, retry) = BUSY;
            return self.error(slot, code, message, message_id, retry);
        }
        let epoch = page.position.epoch.to_string();
        let position = decode::Position { epoch: &epoch, offset: page.position.offset };
        let reply = event::room_history(room.as_str(), position, &page.frames[..fitting], message_id);
        self.outboxes.push(slot, &reply);
    }
}
