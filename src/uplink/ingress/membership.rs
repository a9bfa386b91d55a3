//! Joins and leaves of this instance's members, also while Redis is being told who they are.

use std::sync::Arc;
use std::time::Instant;

use super::{Ingress, Stage};
use crate::identity::{RoomId, UserId};
use crate::room::route::RoomRoute;
use crate::shard::envelope::{Join, Member};
use crate::shard::home;
use crate::uplink::channel::Channel;
use crate::uplink::presence::Call;

impl Ingress {
    pub(super) fn join(&mut self, join: Box<Join>, enters: bool, route: Arc<RoomRoute>, now: Instant) {
        let is_new = !self.delivery.has_room(join.room.as_str());
        self.subscribe_room(&join.room, Arc::clone(&route), now);
        if is_new && self.has_restored(&join.room) {
            self.empty(join.room.clone(), now);
        }
        if self.delivery.following().covers(join.room.as_str()) {
            self.delivery.following().prepare(&join.room, join.since);
            self.send_reads(now);
        }
        self.call(Call::Join { join, enters, route }, now);
    }

    pub(super) fn leave_room(&mut self, room: RoomId, user: UserId, last: bool, now: Instant) {
        if last {
            self.unsubscribe(Channel::Room(room.as_str()), now);
            self.delivery.remove_room(&room);
        }
        if last && self.is_restoring() {
            return self.empty(room, now);
        }
        self.call(Call::Leave { room, user, last }, now);
    }

    fn is_restoring(&self) -> bool {
        matches!(self.stage, Stage::Restoring { .. } | Stage::Sweeping)
    }

    /// Whether the room would have been restored already if anyone here had been in it. The sweep of rooms that nobody
    /// here is in has not been made yet, and will pass it over once someone is.
    fn has_restored(&self, room: &RoomId) -> bool {
        match self.stage {
            Stage::Restoring { restored } => {
                let home = home::of_room(room.as_str(), self.delivery.shards());
                restored & (1 << home.0) != 0
            }
            Stage::Sweeping => true,
            _ => false,
        }
    }

    /// This instance has no members in the room: whom Redis holds as one has left while nobody could say so, or came
    /// back with data of before.
    fn empty(&mut self, room: RoomId, now: Instant) {
        self.restore(room, Vec::new(), Vec::new(), now);
    }

    pub(super) fn restore(
        &mut self,
        room: RoomId,
        mut held: Vec<Member>,
        mut newcomers: Vec<Member>,
        now: Instant,
    ) {
        if !self.held {
            newcomers.append(&mut held);
        }
        self.call(Call::Restore { room, held, newcomers }, now);
    }

    /// Rooms in which Redis holds members of this instance: nobody is in those that were not restored.
    pub(super) fn sweep(&mut self, occupied: Vec<String>, now: Instant) {
        for name in occupied {
            if !self.delivery.has_room(&name)
                && let Some(room) = RoomId::parse(&name)
            {
                self.empty(room, now);
            }
        }
    }
}
