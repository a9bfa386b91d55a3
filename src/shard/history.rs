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
use crate::permission::RoomRight;
use crate::room::archive::Appended;
use crate::room::history::{Epoch, NotRecovered, Position};

/// Part of an outbox that the messages missed since a reconnect may fill: the rest is for what comes meanwhile.
const RECOVERY_SHARE: usize = 2;

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
    ) -> Result<Outcome, Refused> {
        let to = home::of_room(room.as_str(), self.mesh.shards());
        let Some(identity) = self.session_of(id).and_then(|session| session.identity.as_ref()) else {
            return Ok(Outcome::Done);
        };
        let store = Box::new(Store {
            room,
            asker: Asker { connection: id, message_id: message_id.map(Into::into) },
            user: identity.user.clone(),
            sender: Some(id),
            event: frame::payload(frame),
        });
        self.submit(store, to)?;
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
        let Store { room, asker, user, sender, event } = store;
        let name = asker.message_id.as_deref().map(|message_id| (user.as_str(), message_id));
        let text = std::str::from_utf8(&event).expect("an event was made of text");
        let appended =
            self.archive.append(&room, name, now.since_start_ms, |offset| event::numbered(text, offset));
        let offset = match appended {
            Appended::New(offset, frame) => {
                self.hand_out(&room, sender, &frame);
                offset
            }
            Appended::Repeated(offset) => offset,
        };
        let outcome = StoreOutcome::Stored(offset);
        self.mesh.send(asker.connection.shard, Envelope::Stored { room, asker, outcome });
    }

    fn hand_out(&mut self, room: &RoomId, sender: Option<ConnectionId>, frame: &Bytes) {
        let Some(home) = self.homes.get(room.as_str()) else { return };
        for shard in home.route.shards() {
            let envelope = Envelope::RoomFrame { room: room.clone(), sender, frame: frame.clone() };
            if !self.mesh.offer(shard, envelope) {
                self.mesh.lost(shard, room);
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
                let message =
                    "whether the message was stored is not known: send it again with the same messageId";
                self.error(slot, ErrorCode::Timeout, message, message_id, Some(1000));
            }
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
        self.settings().outbox_bytes / RECOVERY_SHARE
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
        self.ask(Asked { room, asker, question, since: now.ms() });
        Ok(Outcome::Later)
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
        let most = self.recovery_bytes();
        let mut bytes = 0;
        // What does not fit into one reply is for the next page.
        let fitting = page.frames.iter().take_while(|frame| {
            bytes += frame.len();
            bytes <= most
        });
        let fitting = fitting.count();
        let epoch = page.position.epoch.to_string();
        let position = decode::Position { epoch: &epoch, offset: page.position.offset };
        let reply = event::room_history(room.as_str(), position, &page.frames[..fitting], message_id);
        self.outboxes.push(slot, &reply);
    }
}
