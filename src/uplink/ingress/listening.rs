//! Other instances: their heartbeats, who listens to whose lane, and what they have to be told.

use std::time::Instant;

use redis::cmd;

use super::{Expect, Ingress, PUBLISHED_ALONE};
use crate::identity::{InstanceId, RoomId};
use crate::uplink::batch::{self, Header, Sequence};
use crate::uplink::channel::Channel;
use crate::uplink::registry::{self, Said};

impl Ingress {
    /// The others have missed messages of these rooms.
    pub(super) fn note_published_alone(&mut self, rooms: Vec<RoomId>) {
        let free = PUBLISHED_ALONE.saturating_sub(self.published_alone.len());
        self.published_alone.extend(rooms.into_iter().take(free));
    }

    /// This instance is registered together with `instances`: from here on it listens to their lanes, before anything
    /// that it asks of Redis later is carried out.
    pub(super) fn listen(&mut self, registered: (Instant, bool), instances: &[InstanceId], now: Instant) {
        let changes = self.lanes.registered(registered, instances, now);
        for instance in &changes.subscribe {
            self.subscribe(Channel::Lane(instance.as_str()), None, now);
        }
        for instance in &changes.unsubscribe {
            self.unsubscribe(Channel::Lane(instance.as_str()), now);
        }
        self.ask_for_listeners(now);
    }

    fn ask_for_listeners(&mut self, now: Instant) {
        if let Some(question) = self.lanes.question() {
            self.say(&registry::question(&self.this, &question), now);
        }
    }

    fn say(&mut self, message: &[u8], now: Instant) {
        let channel = self.channels.name(Channel::Instances);
        self.link.send(cmd("PUBLISH").arg(channel).arg(message), Expect::Nothing, now);
    }

    /// An instance has said something to all of them.
    pub(super) fn of_instances(&mut self, payload: &[u8], timestamp: u64, now: Instant) {
        let Some((instance, said)) = self.registry.message(payload, now) else {
            return self.delivery.garbage(payload, timestamp);
        };
        self.cells.instances.set(self.registry.alive() as u64);
        if said == Said::Leaving {
            return self.lanes.gone(instance.as_str());
        }
        // One that was not there yet when it was asked has come up with its first heartbeat.
        let is_news = self.lanes.heard_of(&instance);
        if is_news || (said == Said::Alive && self.lanes.waits_for(&instance)) {
            self.ask_for_listeners(now);
        }
        match said {
            Said::Asks(question) if instance != self.this => {
                if self.lanes.asked_by(&instance) {
                    self.subscribe(Channel::Lane(instance.as_str()), None, now);
                }
                // Carried out behind the subscription.
                self.say(&registry::answer(&self.this, &question), now);
            }
            Said::Hears(question) => self.lanes.answered_by(&instance, &question),
            _ => {}
        }
    }

    /// Tells members elsewhere of rooms in which this instance has published unheard.
    pub(super) fn tell_others_to_resync(&mut self, now: Instant) {
        let head = Header { origin: self.origin, sequence: Sequence::Unnumbered, from_script: false };
        let mut resync = batch::header(head).to_vec();
        batch::push_resync(&mut resync);
        for room in &self.published_alone {
            let channel = self.channels.name(Channel::Room(room.as_str()));
            self.link.send(cmd("PUBLISH").arg(channel).arg(&resync), Expect::Nothing, now);
        }
    }
}
