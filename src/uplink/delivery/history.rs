//! Stored messages on their way to members: in the order of their offsets, without a gap.

use super::{Channel, Delivery, Envelope, reason};
use crate::command::event::numbered;
use crate::identity::{ConnectionId, RoomId};
use crate::room::history::Position;
use crate::shard::envelope::{HistoryPage, Joined, ReadHistory};
use crate::uplink::batch::Origin;
use crate::uplink::follower::{Heard, Missed};
use crate::uplink::following::Following;
use crate::uplink::history::{Kept, Read};

impl Delivery {
    /// The rooms with history.
    pub fn following(&mut self) -> &mut Following {
        &mut self.following
    }

    /// Whether any room has history.
    pub fn is_following(&self) -> bool {
        self.following.is_used()
    }

    /// A stored message was heard.
    pub(super) fn stored(
        &mut self,
        name: &str,
        (position, origin, sender): (Position, Origin, Option<ConnectionId>),
        event: &str,
    ) {
        let sender = self.own(origin, sender);
        match self.following.stored(name, position, event) {
            Some(Heard::Next(frame)) => self.room_frame(name, sender, frame),
            Some(Heard::Nothing) => {}
            Some(Heard::Gap(_)) => self.cells.gaps.add(1),
            Some(Heard::NewEpoch(before, frame)) => {
                self.resync_room(name, reason::NEW_EPOCH, Some(before));
                self.room_frame(name, sender, frame);
            }
            // Other instances keep this room's history and this one does not: a difference in settings.
            None => self.room_frame(name, sender, numbered(event, position.offset)),
        }
    }

    /// The connection that sent a message, if it is one of this process.
    fn own(&self, origin: Origin, sender: Option<ConnectionId>) -> Option<ConnectionId> {
        sender.filter(|_| origin == self.this)
    }

    /// A read was answered, or failed.
    pub fn history_read(&mut self, read: &Read, kept: Option<Kept>) {
        let (Missed { resync, messages }, joins) = self.following.answered(read, kept);
        let name = read.room.as_str();
        if let Some((reason, position)) = resync {
            self.resync_room(name, reason, Some(position));
        }
        self.cells.filled.add(messages.len() as u64);
        for (origin, sender, frame) in messages {
            let sender = self.own(origin, sender);
            self.room_frame(name, sender, frame);
        }
        for joined in joins {
            self.joined(joined);
        }
    }

    /// Answers a join.
    pub fn joined(&mut self, joined: Box<Joined>) {
        self.control(joined.asker.connection.shard, Envelope::Joined(joined));
    }

    /// Answers a request for a room's past.
    pub fn page(&mut self, request: ReadHistory, page: Option<HistoryPage>) {
        let ReadHistory { room, asker, .. } = request;
        self.control(asker.connection.shard, Envelope::History { room, asker, page });
    }

    /// The link is back: members of rooms whose messages cannot be made up for are told. Followers of rooms that
    /// nobody here is in any more go.
    pub fn resync_after_loss(&mut self) {
        if !self.following.is_used() {
            return self.resync_all(reason::LINK_LOST);
        }
        let rooms = &self.rooms;
        self.following.retain(|room| rooms.contains_key(room));
        let rooms: Vec<RoomId> = self.rooms.keys().cloned().collect();
        for room in rooms {
            let stale = self.following.is_presence_stale(room.as_str());
            let reason = match self.following.continues(room.as_str()) {
                false => reason::LINK_LOST,
                true if stale => reason::PRESENCE,
                true => continue,
            };
            let position = self.following.position(room.as_str());
            self.resync_room(room.as_str(), reason, position);
        }
    }

    /// Members of a room with history have heard of the join or leave of this number: if they have missed one before,
    /// they are told. Members of other rooms are told after every loss of the link.
    pub(super) fn change(&mut self, name: &str, number: u64) {
        if !self.following.changed(name, number) {
            self.tell_presence(name);
        }
    }

    /// The room was registered again. Members who hold the wrong users as present are told, at once when the link
    /// `is_up` and otherwise when it is.
    pub fn restored(&mut self, name: &str, numbers: (u64, u64), is_up: bool) {
        self.following.restored(name, numbers);
        if is_up && self.following.is_presence_stale(name) {
            self.tell_presence(name);
        }
    }

    fn tell_presence(&mut self, name: &str) {
        let position = self.following.position(name);
        self.resync_room(name, reason::PRESENCE, position);
    }

    fn room_frame(&mut self, name: &str, sender: Option<ConnectionId>, frame: bytes::Bytes) {
        self.cells.received.add(1);
        self.frame(Channel::Room(name), sender, frame);
    }
}
