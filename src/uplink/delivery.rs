//! Payloads from Redis become envelopes for the shards that have receivers.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};

use super::arrivals::Arrivals;
use super::batch::{self, BatchError, Header, Origin, Record, Section, Sequence};
use super::channel::Channel;
use super::following::Following;
use super::packing::Unpacker;
use super::presence::decode_member;
use crate::codec::frame;
use crate::command::decode::{Scratch, decode_publication};
use crate::command::event::{self, RoomMessage};
use crate::hashing::Hashing;
use crate::identity::{ConnectionId, RoomId, ShardId, UserId};
use crate::metrics::UplinkCells;
use crate::room::history::Position;
use crate::room::route::RoomRoute;
use crate::shard::envelope::{Envelope, LinkState, Presence};
use crate::shard::home;
use crate::shard::outlet::Outlet;
use crate::trace::Tracer;

mod history;
mod senders;

use senders::{Arrival, PastSenders, Senders};

/// Rooms that are named one by one when a shard's queue overflows; above it the shard is told once that
/// all its rooms are meant.
const OVERFLOWED_ROOMS: usize = 1_024;

/// Messages waiting for a full queue from which on presence is dropped too, and all rooms of the shard
/// are told to resync: some MB per shard, and seconds of what a cluster says about presence.
const PRESENCE_WAITING: usize = 16_384;

/// Milliseconds after which a subscription is certainly active.
const SUBSCRIBING_MS: u64 = 2_000;

/// Milliseconds between two log lines about garbage: whoever publishes it must not fill the log.
const GARBAGE_LOG_MS: u64 = 60_000;

/// Bytes of one publication of another program: as large as anyone would want to send to browsers.
const PAYLOAD_BYTES: usize = 1 << 20;

/// The `senderId` of what no client has sent.
const SENDER: &str = "server";

/// Reasons of a `room_resync`, as clients are told.
pub mod reason {
    /// A batch of another instance did not arrive.
    pub const GAP: &str = "gap";
    /// The room's numbering has ended: messages may have been lost with Redis's data.
    pub const NEW_EPOCH: &str = "new_epoch";
    /// The link to Redis was lost for a while.
    pub const LINK_LOST: &str = "redis_link_lost";
    /// Another instance's link was lost for a while: what its members sent did not arrive.
    pub const PEER_LINK_LOST: &str = "peer_link_lost";
    /// Joins and leaves were missed while the link was lost; of the messages none was.
    pub const PRESENCE: &str = "presence";
    /// A shard could not take messages as fast as they came.
    pub const OVERFLOW: &str = "overflow";
}

/// A subscribed room.
struct Room {
    id: RoomId,
    route: Arc<RoomRoute>,
    senders: Senders,
    /// When the subscription was asked for, by the followers' clock.
    since_ms: u64,
}

/// Rooms of a shard that missed something because its queue was full. Their members are told once the
/// queue has room: not before, or what is lost meanwhile would lie behind the telling.
#[derive(Default)]
struct Overflow {
    rooms: HashSet<RoomId, Hashing>,
    all: bool,
}

impl Overflow {
    fn add(&mut self, room: &RoomId) {
        if self.all || self.rooms.contains(room) {
            return;
        }
        self.all = self.rooms.len() == OVERFLOWED_ROOMS;
        self.rooms.insert(room.clone());
    }

    /// Tells the shard as far as its queue has room.
    fn tell(&mut self, shard: &mut Outlet<Envelope>) {
        let resync = |room| Envelope::RoomResync { room, reason: reason::OVERFLOW, position: None };
        if !self.all {
            self.rooms.retain(|room| shard.offer(resync(Some(room.clone()))).is_err());
        } else if shard.offer(resync(None)).is_ok() {
            *self = Self::default();
        }
    }

    /// Tells the shard of this room, if its queue has room now; whether there was nothing to tell, or it is told.
    fn is_told(&mut self, shard: &mut Outlet<Envelope>, room: &RoomId) -> bool {
        if self.all {
            self.tell(shard);
            return !self.all;
        }
        if !self.rooms.contains(room) {
            return true;
        }
        let resync =
            Envelope::RoomResync { room: Some(room.clone()), reason: reason::OVERFLOW, position: None };
        shard.offer(resync).is_ok() && self.rooms.remove(room)
    }

    fn is_empty(&self) -> bool {
        !self.all && self.rooms.is_empty()
    }
}

/// The way from the uplink to the shards.
pub struct Delivery {
    this: Origin,
    shards: Vec<Outlet<Envelope>>,
    overflows: Vec<Overflow>,
    rooms: HashMap<RoomId, Room, Hashing>,
    past: PastSenders,
    users: HashSet<UserId, Hashing>,
    following: Following,
    unpacker: Unpacker,
    scratch: Scratch,
    garbage_logged: u64,
    arrivals: Arrivals,
    cells: Arc<UplinkCells>,
}

impl Delivery {
    /// A delivery to `shards`; `this` is this process's origin.
    ///
    /// # Errors
    /// When zstd cannot allocate its context.
    pub fn new(
        this: Origin,
        shards: Vec<Outlet<Envelope>>,
        following: Following,
        cells: Arc<UplinkCells>,
    ) -> std::io::Result<Self> {
        let overflows = shards.iter().map(|_| Overflow::default()).collect();
        Ok(Self {
            this,
            shards,
            overflows,
            rooms: HashMap::default(),
            past: PastSenders::default(),
            users: HashSet::default(),
            following,
            unpacker: Unpacker::new()?,
            scratch: Scratch::default(),
            garbage_logged: 0,
            arrivals: Arrivals::default(),
            cells,
        })
    }

    /// The same, which records the deliveries of traced messages.
    #[must_use]
    pub fn traced(mut self, tracer: Option<Arc<Tracer>>) -> Self {
        self.arrivals = Arrivals::new(tracer);
        self
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// From now on the room's messages go to `route`. True when the room is new here.
    pub fn add_room(&mut self, id: &RoomId, route: Arc<RoomRoute>) -> bool {
        if let Some(room) = self.rooms.get_mut(id) {
            room.route = route;
            return false;
        }
        let now_ms = self.following.now_ms();
        let senders = self.past.take(id, now_ms);
        let room = Room { id: id.clone(), route, senders, since_ms: now_ms };
        self.rooms.insert(id.clone(), room);
        true
    }

    /// The room's messages are no longer wanted.
    pub fn remove_room(&mut self, id: &RoomId) {
        if let Some(room) = self.rooms.remove(id) {
            self.past.keep(room.id, room.senders, self.following.now_ms());
        }
        self.following.leave(id);
    }

    /// Whether the room's messages are wanted.
    pub fn has_room(&self, name: &str) -> bool {
        self.rooms.contains_key(name)
    }

    /// Messages for the user are wanted from now on. True when that is new.
    pub fn add_user(&mut self, user: UserId) -> bool {
        self.users.insert(user)
    }

    /// Messages for the user are no longer wanted.
    pub fn remove_user(&mut self, user: &UserId) {
        self.users.remove(user);
    }

    /// No room's and no user's messages are wanted any more.
    pub fn remove_all(&mut self) {
        let now_ms = self.following.now_ms();
        self.rooms.drain().for_each(|(id, room)| self.past.keep(id, room.senders, now_ms));
        self.users.clear();
    }

    /// Sends a control envelope to one shard: in order, and never lost.
    pub fn control(&mut self, shard: ShardId, envelope: Envelope) {
        self.shards[shard.index()].send(envelope);
    }

    /// Tells all shards the link's state.
    pub fn link(&mut self, state: LinkState) {
        self.shards.iter_mut().for_each(|shard| shard.send(Envelope::Link(state)));
    }

    /// Tells all shards that members of all rooms may have missed messages.
    pub fn resync_all(&mut self, reason: &'static str) {
        self.shards
            .iter_mut()
            .for_each(|shard| shard.send(Envelope::RoomResync { room: None, reason, position: None }));
    }

    /// Moves what waits into the shards' queues and wakes them. True when something still waits.
    pub fn flush(&mut self) -> bool {
        let mut waits = false;
        for (shard, overflow) in self.shards.iter_mut().zip(&mut self.overflows) {
            overflow.tell(shard);
            shard.flush();
            waits |= shard.backlog() > 0 || !overflow.is_empty();
        }
        waits
    }

    /// Delivers what was published to a room's, a user's or the global channel. `timestamp` is the
    /// time in milliseconds since 1970, for publications of other programs.
    pub fn deliver(&mut self, channel: Channel<'_>, payload: &[u8], timestamp: u64) {
        if payload.first() == Some(&b'{') {
            self.deliver_foreign(channel, payload, timestamp);
        } else if self.deliver_batch(channel, payload, timestamp).is_err() {
            self.garbage(payload, timestamp);
        }
    }

    /// Delivers what another instance has sent over its lane: what there are members or connections here for.
    pub fn deliver_lane(&mut self, payload: &[u8], timestamp: u64) {
        if self.deliver_sections(payload, timestamp).is_err() {
            self.garbage(payload, timestamp);
        }
    }

    fn deliver_sections(&mut self, payload: &[u8], timestamp: u64) -> Result<(), BatchError> {
        let header = batch::parse_header(payload)?;
        let bytes = self.unpacker.unpack(payload)?;
        let (rooms, users) = (&self.rooms, &self.users);
        let sections = batch::parse_sections(&bytes, |section| match section {
            Section::Room { name, .. } => rooms.contains_key(*name),
            Section::User(name) => users.contains(*name),
            Section::Everyone => true,
        })?;
        self.cells.batches_in.add(1);
        self.cells.lane_batches_in.add(1);
        if let Some((_, records)) = sections.first() {
            self.measure(records, timestamp);
        }
        for (section, records) in &sections {
            let (channel, sequence) = match *section {
                Section::Room { name, sequence } => (Channel::Room(name), sequence),
                Section::User(name) => (Channel::User(name), Sequence::Unnumbered),
                Section::Everyone => (Channel::Global, Sequence::Unnumbered),
            };
            self.deliver_records(channel, Header { sequence, ..header }, records);
        }
        Ok(())
    }

    /// Counts a payload that is of no use, and logs it unless one was logged just before.
    pub fn garbage(&mut self, payload: &[u8], timestamp: u64) {
        self.cells.garbage_in.add(1);
        if timestamp >= self.garbage_logged + GARBAGE_LOG_MS {
            self.garbage_logged = timestamp;
            let (bytes, dropped) = (payload.len(), self.cells.garbage_in.get());
            tracing::warn!(
                bytes,
                dropped,
                "dropped a publication that is neither a batch nor JSON with data"
            );
        }
    }

    fn deliver_foreign(&mut self, channel: Channel<'_>, payload: &[u8], timestamp: u64) {
        match foreign_frame(channel, payload, timestamp, &mut self.scratch) {
            Some(frame) => {
                self.cells.foreign_in.add(1);
                self.frame(channel, None, frame);
            }
            None => self.garbage(payload, timestamp),
        }
    }

    fn deliver_batch(
        &mut self,
        channel: Channel<'_>,
        payload: &[u8],
        timestamp: u64,
    ) -> Result<(), BatchError> {
        let header = batch::parse_header(payload)?;
        if header.origin == self.this && !header.from_script {
            return Ok(());
        }
        let bytes = self.unpacker.unpack(payload)?;
        let records = batch::parse_records(&bytes)?;
        self.cells.batches_in.add(1);
        if header.origin != self.this {
            self.measure(&records, timestamp);
        }
        self.deliver_records(channel, header, &records);
        Ok(())
    }

    /// Counts how long the first event of a batch was on its way, by the clocks of both ends.
    fn measure(&self, records: &[Record<'_>], now_ms: u64) {
        let first = records.iter().find_map(|record| match record {
            Record::Event(text) | Record::Stored { event: text, .. } => Some(*text),
            _ => None,
        });
        let Some(sent_ms) = first.and_then(event::timestamp) else { return };
        self.cells.delivery_ms.observe(now_ms.saturating_sub(sent_ms));
        self.cells.from_the_future.add((sent_ms > now_ms).into());
    }

    fn deliver_records(&mut self, channel: Channel<'_>, header: Header, records: &[Record<'_>]) {
        if let Channel::Room(name) = channel {
            let quiet = records.iter().find_map(|record| match record {
                Record::Quiet { since_ms } => Some(u64::from(*since_ms)),
                _ => None,
            });
            if !self.check_sequence(name, header, quiet) {
                self.cells.late_batches.add(1);
                return;
            }
        }
        let now_ms = self.following.now_ms();
        for record in records {
            match (record, channel) {
                (Record::Event(text), _) => {
                    self.cells.received.add(1);
                    self.frame(channel, None, frame::text(text));
                    self.arrivals.delivered(channel, text, now_ms);
                }
                (Record::Stored { position, sender, event }, Channel::Room(name)) => {
                    self.stored(name, (*position, header.origin, *sender), event);
                    self.arrivals.delivered(channel, event, now_ms);
                }
                (Record::Presence { joined, member_count, member }, Channel::Room(name)) => {
                    self.presence(name, *joined, *member_count, member);
                }
                (Record::Change(number), Channel::Room(name)) => self.change(name, *number),
                (Record::Companion(body), _) => self.arrivals.announce(body, now_ms),
                (Record::Resync, Channel::Room(name)) => self.resync_room(name, reason::PEER_LINK_LOST, None),
                _ => {}
            }
        }
    }

    /// Notices missing batches, and says whether the batch may be delivered: not when later ones of its sender have
    /// been. It was on its way over a connection that the sender gave up, and the room's members were told that it is
    /// missing; now it would only come out of order. `quiet` is the age in milliseconds of the sender's last batch,
    /// whose sequence the header repeats.
    fn check_sequence(&mut self, name: &str, header: Header, quiet: Option<u64>) -> bool {
        let now_ms = self.following.now_ms();
        let Some(room) = self.rooms.get_mut(name) else { return true };
        let (number, follows) = match header.sequence {
            Sequence::Unnumbered => return true,
            Sequence::Begins(number) => (number, false),
            Sequence::Follows(number) => (number, true),
        };
        // Whether the batch that is repeated was sent when this instance had subscribed.
        let repeats = quiet.map(|age| now_ms.saturating_sub(age) > room.since_ms + SUBSCRIBING_MS);
        let arrival = room.senders.note(header.origin, (number, follows), repeats);
        if arrival == Arrival::BehindGap {
            self.cells.gaps.add(1);
            self.resync_room(name, reason::GAP, None);
        }
        arrival != Arrival::Late
    }

    fn frame(&mut self, channel: Channel<'_>, sender: Option<ConnectionId>, frame: Bytes) {
        match channel {
            Channel::Room(name) => {
                let Some(room) = self.rooms.get(name) else { return };
                let (id, route) = (room.id.clone(), room.route.shards());
                for shard in route {
                    let envelope = Envelope::RoomFrame { room: id.clone(), sender, frame: frame.clone() };
                    self.offer(shard, envelope, Some(&id));
                }
            }
            Channel::User(name) => {
                let Some(user) = UserId::parse(name) else { return };
                let home = home::of_user(name, self.shards.len());
                self.offer(home, Envelope::ToUser { user, frame }, None);
            }
            Channel::Global => {
                for shard in 0..self.shards.len() {
                    self.offer(ShardId(shard as u8), Envelope::GlobalFrame { frame: frame.clone() }, None);
                }
            }
            Channel::Instances | Channel::Lane(_) => {}
        }
    }

    /// Sends an event if the shard's queue has room; if not, the room's members will be told to resync, in front of
    /// whatever they are sent next.
    fn offer(&mut self, shard: ShardId, envelope: Envelope, room: Option<&RoomId>) {
        let (outlet, overflow) = (&mut self.shards[shard.index()], &mut self.overflows[shard.index()]);
        let told = room.is_none_or(|room| overflow.is_told(outlet, room));
        if told && outlet.offer(envelope).is_ok() {
            return;
        }
        self.cells.deliveries_dropped.add(1);
        if let Some(room) = room {
            overflow.add(room);
        }
    }

    /// Sends what a room's members are to know, now or once the queue has room. When too much waits
    /// already, the members of all the shard's rooms will be told to resync instead.
    fn send(&mut self, shard: ShardId, envelope: Envelope) {
        let outlet = &mut self.shards[shard.index()];
        if outlet.backlog() < PRESENCE_WAITING {
            outlet.send(envelope);
        } else {
            self.cells.deliveries_dropped.add(1);
            self.overflows[shard.index()].all = true;
        }
    }

    fn presence(&mut self, name: &str, joined: bool, member_count: u32, member: &[u8]) {
        let (Some(room), Some(member)) = (self.rooms.get(name), decode_member(member)) else { return };
        self.following.presence(name, joined, member_count, &member);
        let presence = Presence { room: room.id.clone(), joined, member, member_count };
        for shard in room.route.shards() {
            self.send(shard, Envelope::Presence(Box::new(presence.clone())));
        }
    }

    fn resync_room(&mut self, name: &str, reason: &'static str, position: Option<Position>) {
        let Some(room) = self.rooms.get(name) else { return };
        let (id, route) = (room.id.clone(), room.route.shards());
        for shard in route {
            self.send(shard, Envelope::RoomResync { room: Some(id.clone()), reason, position });
        }
    }
}

/// The event of another program's publication; nothing if it is not an object as documented.
fn foreign_frame(
    channel: Channel<'_>,
    payload: &[u8],
    timestamp_ms: u64,
    scratch: &mut Scratch,
) -> Option<Bytes> {
    if payload.len() > PAYLOAD_BYTES {
        return None;
    }
    let publication = decode_publication(std::str::from_utf8(payload).ok()?, scratch).ok()?;
    let (message_id, data) = (publication.message_id, publication.data);
    match channel {
        Channel::Room(room) => Some(event::room_message(&RoomMessage {
            room,
            sender: SENDER,
            sender_socket: None,
            timestamp_ms,
            message_id,
            offset: None,
            data,
        })),
        Channel::User(_) => Some(event::user_message(SENDER, timestamp_ms, message_id, data)),
        Channel::Global => Some(event::global_message(SENDER, timestamp_ms, data)),
        Channel::Instances | Channel::Lane(_) => None,
    }
}

#[cfg(test)]
mod tests;
