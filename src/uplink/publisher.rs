//! What this instance publishes: events gather per target and go out as batches, pipelined.
//!
//! While the instance's lane is open (see [`super::lane`]) and a flush has more batches than there are other
//! instances, one batch over the lane carries them all: Redis' work for it is a command and a push to each other
//! instance, instead of a command for each target and a push to each of its listeners.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use redis::{ServerError, Value};

use super::batch::{self, Header, Origin, Section, Sequence};
use super::channel::{Channel, Channels};
use super::lane::{Gate, Grant};
use super::link::{Link, LinkError};
use super::packing::{Packer, Readers};
use super::store_queue::{StoreCall, StoreQueue};
use crate::config::RedisSettings;
use crate::hashing::Hashing;
use crate::identity::{InstanceId, RoomId};
use crate::metrics::UplinkCells;
use crate::shard::envelope::{Publication, Target, TracedEvent};
use crate::trace::OpenSpan;
use crate::trace::context::{Carried, fingerprint};

/// Time after which an unused room's numbering is forgotten. That the last batch before it was lost is
/// then never noticed, so this is far longer than any conversation pauses.
const NUMBERING_KEPT: Duration = Duration::from_secs(600);

/// Rooms that are remembered as having missed something, to be told once the link is back. Beyond it
/// only the numbering shows the gap.
const MISSED_ROOMS: usize = 65_536;

/// Time after a room's last batch when its sequence is sent once more, so that a receiver which missed that batch
/// notices.
const QUIET: Duration = Duration::from_secs(3);

/// Time for which the lane is left alone when a batch has reached fewer instances than are registered: one has just
/// lost its connection, or died.
const DOUBT: Duration = Duration::from_secs(1);

/// What a command on the publisher's connection was.
#[derive(Debug)]
pub enum Sent {
    /// A batch for this target.
    Batch(Target),
    /// A batch over the lane.
    Lane(SentLane),
    /// Messages to be stored.
    Stores(StoreCall),
    /// A heartbeat.
    Heartbeat,
    /// The companion of a traced message.
    Companion,
}

/// A batch over the lane that is not answered yet.
#[derive(Debug)]
pub struct SentLane {
    /// The grant's term and peers.
    term: u64,
    peers: usize,
    /// The rooms in it.
    rooms: Vec<RoomId>,
}

/// A batch that gathers.
#[derive(Default)]
struct Gathering {
    records: Vec<u8>,
    events: u64,
}

struct Numbering {
    /// The number with which it began.
    first: u64,
    last: u64,
    used: Instant,
    /// Whether the room stands in the list of those that may have gone quiet.
    watched: bool,
}

/// Gathers publications and numbers the batches.
pub struct Publisher {
    channels: Channels,
    origin: Origin,
    size: usize,
    packer: Packer,
    gathering: HashMap<Target, Gathering, Hashing>,
    /// In the order in which the targets' first events came.
    order: Vec<Target>,
    bytes: usize,
    numbering: HashMap<RoomId, Numbering, Hashing>,
    /// The highest number of a room whose numbering was forgotten. Another one begins behind it: a room's numbers
    /// never fall, so that receivers know what comes too late.
    forgotten: u64,
    forget_at: Option<Instant>,
    /// Rooms with a batch whose sequence is to be repeated, and when to look, in that order.
    watched: VecDeque<(RoomId, Instant)>,
    stores: StoreQueue,
    missed: HashSet<RoomId, Hashing>,
    gate: Gate,
    lane: String,
    batches_per_peer: usize,
    doubted_until: Option<Instant>,
    /// The spans of what gathers.
    spans: Vec<OpenSpan>,
    /// Companions of traced messages that are to be stored: they go out before them.
    companions: Vec<(RoomId, Vec<u8>)>,
    /// When the oldest heartbeat without an answer was sent.
    heartbeat_sent: Option<Instant>,
    cells: Arc<UplinkCells>,
}

/// What goes to Redis in one flush: a target, its number, its records.
type Outgoing = (Target, Sequence, Vec<u8>);

/// How large batches become.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Bytes at which everything is sent at once.
    pub size: usize,
    /// Bytes from which a batch is compressed if that pays.
    pub compress_from: usize,
    /// Batches of one flush for each other instance, above which they share a batch over the lane.
    pub batches_per_peer: usize,
}

impl Batching {
    /// As the settings have it.
    pub fn of(settings: &RedisSettings) -> Self {
        let (size, compress_from) = (settings.batch_bytes, settings.batch_compress_bytes);
        Self { size, compress_from, batches_per_peer: BATCHES_PER_PEER }
    }
}

/// A push costs Redis about as much as a command: more batches than peers, and the lane is cheaper.
pub const BATCHES_PER_PEER: usize = 1;

impl Publisher {
    /// A publisher of the instance `this` with nothing to send. `gate` says when its lane may be used.
    ///
    /// # Errors
    /// When zstd cannot allocate its contexts.
    pub fn new(
        channels: Channels,
        (this, origin): (&InstanceId, Origin),
        batching: Batching,
        stores: StoreQueue,
        gate: Gate,
        cells: Arc<UplinkCells>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            lane: channels.name(Channel::Lane(this.as_str())),
            channels,
            origin,
            size: batching.size.min(batch::RECORDS_BYTES / 2),
            packer: Packer::new(batching.compress_from)?,
            gathering: HashMap::default(),
            order: Vec::new(),
            bytes: 0,
            numbering: HashMap::default(),
            forgotten: 0,
            forget_at: None,
            watched: VecDeque::new(),
            stores,
            missed: HashSet::default(),
            gate,
            batches_per_peer: batching.batches_per_peer,
            doubted_until: None,
            spans: Vec::new(),
            companions: Vec::new(),
            heartbeat_sent: None,
            cells,
        })
    }

    /// Takes one event.
    pub fn add(&mut self, publication: Publication) {
        self.cells.published.add(1);
        let (target, event, companion) = match publication {
            Publication::Event { target, event } => (target, event, None),
            Publication::Traced(traced) => {
                let TracedEvent { span, request, target, event } = *traced;
                let message = fingerprint(&event);
                let companion = Carried { context: span.context(), message, request }.encode();
                self.spans.push(*span);
                (target, event, Some(companion))
            }
            Publication::Store(store) => {
                if let Some((span, request)) = store.trace.as_deref() {
                    let (context, message) = (span.context(), fingerprint(&store.event));
                    let companion = Carried { context, message, request: request.clone() };
                    self.companions.push((store.room.clone(), companion.encode()));
                }
                self.bytes += store.event.len() + batch::RECORD_HEADER_BYTES;
                return self.stores.add(*store);
            }
        };
        self.bytes += event.len() + batch::RECORD_HEADER_BYTES;
        let gathering = self.gathering.entry(target).or_insert_with_key(|target| {
            self.order.push(target.clone());
            Gathering::default()
        });
        if let Some(companion) = companion {
            batch::push_companion(&mut gathering.records, &companion);
        }
        batch::push_event(&mut gathering.records, &event);
        gathering.events += 1;
    }

    /// Whether enough has gathered to send it before its time.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.size
    }

    /// Sends all that has gathered, over the lane or one PUBLISH per channel; drops it when the link is not up. The
    /// numbering goes on in both cases, so that receivers notice.
    pub fn flush(&mut self, link: &mut Link<Sent>, now: Instant) {
        self.bytes = 0;
        let mut outgoing = Vec::with_capacity(self.order.len());
        let mut events = Vec::with_capacity(self.order.len());
        for target in std::mem::take(&mut self.order) {
            let Some(gathering) = self.gathering.remove(&target) else { continue };
            let sequence = self.number(&target, now);
            if link.is_up() {
                events.push(gathering.events);
                outgoing.push((target, sequence, gathering.records));
            } else {
                self.cells.publications_dropped.add(gathering.events);
                self.remember_missed(target);
            }
        }
        let error = (!link.is_up()).then_some("there is no link to Redis");
        self.repeat_quiet(link.is_up(), &mut outgoing, now);
        let over_lane = self.send(link, outgoing, now);
        self.note_events(&events, over_lane);
        self.spans.drain(..).for_each(|span| span.finish(error));
        self.send_companions(link, now);
        self.stores.flush(link, now);
        self.forget_unused(now);
    }

    /// Announces traced messages that a script will publish: on the same connection, so before them.
    fn send_companions(&mut self, link: &mut Link<Sent>, now: Instant) {
        for (room, companion) in std::mem::take(&mut self.companions) {
            if link.is_up() {
                let mut records = Vec::new();
                batch::push_companion(&mut records, &companion);
                let head = Header { origin: self.origin, sequence: Sequence::Unnumbered, from_script: false };
                let batch = self.packer.pack(head, &records, Readers::Anyone);
                link.publish(&self.channels.of(&Target::Room(room)), &batch, Sent::Companion, now);
            }
        }
    }

    /// Counts how many messages each command carries.
    fn note_events(&self, events: &[u64], over_lane: bool) {
        let histogram = &self.cells.batch_events;
        if over_lane && !events.is_empty() {
            histogram.observe(events.iter().sum());
        } else {
            events.iter().for_each(|events| histogram.observe(*events));
        }
    }

    /// Repeats the sequence of rooms that have gone quiet: the number of their last batch, without events.
    fn repeat_quiet(&mut self, is_up: bool, outgoing: &mut Vec<Outgoing>, now: Instant) {
        while let Some((_, at)) = self.watched.front()
            && *at <= now
            && let Some((room, _)) = self.watched.pop_front()
        {
            let Some(numbering) = self.numbering.get_mut(&room) else { continue };
            let (last, since) = (numbering.last, now.saturating_duration_since(numbering.used));
            if since < QUIET {
                let at = numbering.used + QUIET;
                self.watched.push_back((room, at));
                continue;
            }
            numbering.watched = false;
            // Without a link nothing is repeated: once it is back, the rooms that missed something are told.
            if is_up {
                let mut records = Vec::new();
                batch::push_quiet(&mut records, since.as_millis() as u32);
                outgoing.push((Target::Room(room), Sequence::Follows(last), records));
            }
        }
    }

    /// True when everything went over the lane, in one batch.
    fn send(&mut self, link: &mut Link<Sent>, outgoing: Vec<Outgoing>, now: Instant) -> bool {
        let grant = **self.gate.load();
        let open = grant.is_open(now) && self.doubted_until.is_none_or(|until| now >= until);
        if open && outgoing.len() > grant.peers * self.batches_per_peer {
            self.send_over_lane(link, outgoing, grant, now);
            return true;
        }
        for (target, sequence, records) in outgoing {
            self.publish(link, target, sequence, &records, now);
        }
        false
    }

    fn send_over_lane(
        &mut self,
        link: &mut Link<Sent>,
        outgoing: Vec<Outgoing>,
        Grant { term, peers, .. }: Grant,
        now: Instant,
    ) {
        let (mut all, mut rooms) = (Vec::new(), Vec::with_capacity(outgoing.len()));
        for (target, sequence, records) in outgoing {
            batch::push_section(
                &mut all,
                match &target {
                    Target::Room(room) => Section::Room { name: room.as_str(), sequence },
                    Target::User(user) => Section::User(user.as_str()),
                    Target::Global => Section::Everyone,
                },
            );
            all.extend_from_slice(&records);
            if let Target::Room(room) = target {
                rooms.push(room);
            }
        }
        let batch = self.pack(Sequence::Unnumbered, &all, Readers::Peers);
        self.cells.lane_batches_out.add(1);
        link.publish(&self.lane, &batch, Sent::Lane(SentLane { term, peers, rooms }), now);
    }

    /// A batch over the lane was answered. Its rooms' members are told to resync if it may not have come to all
    /// who are registered (see [`super::lane`]).
    pub fn lane_answered(&mut self, sent: SentLane, answer: &Value, link: &mut Link<Sent>, now: Instant) {
        let SentLane { term, peers, rooms } = sent;
        if !matches!(answer, Value::Int(reached) if usize::try_from(*reached).is_ok_and(|n| n >= peers)) {
            self.doubted_until = Some(now + DOUBT);
        }
        if !self.gate.load().covers(term, now) {
            rooms.into_iter().for_each(|room| self.remember_missed(Target::Room(room)));
            if link.is_up() {
                self.tell_missed(link, now);
            }
        }
    }

    /// When a room may have gone quiet, if there is such a room.
    pub fn deadline(&self) -> Option<Instant> {
        self.watched.front().map(|(_, at)| *at)
    }

    /// A call that stores messages was answered.
    ///
    /// # Errors
    /// When Redis refuses what the uplink cannot do without.
    pub fn stored(
        &mut self,
        call: StoreCall,
        answer: Result<Value, ServerError>,
        link: &mut Link<Sent>,
        now: Instant,
    ) -> Result<(), LinkError> {
        self.cells.store_messages.observe(call.messages() as u64);
        self.stores.answered(call, answer, link, now)
    }

    /// Calls that wait for others to be answered.
    pub fn waiting(&self) -> usize {
        self.stores.waiting()
    }

    /// Whether someone waits for a message to be stored.
    pub fn is_storing(&self) -> bool {
        self.stores.is_storing()
    }

    /// Moves answers into the shards' queues. True when some still wait.
    pub fn flush_answers(&mut self) -> bool {
        self.stores.flush_answers()
    }

    fn publish(
        &mut self,
        link: &mut Link<Sent>,
        target: Target,
        sequence: Sequence,
        records: &[u8],
        now: Instant,
    ) {
        // Other programs may read these channels; they do not have the dictionary.
        let batch = self.pack(sequence, records, Readers::Anyone);
        link.publish(&self.channels.of(&target), &batch, Sent::Batch(target), now);
    }

    fn pack(&mut self, sequence: Sequence, records: &[u8], readers: Readers) -> Vec<u8> {
        let head = Header { origin: self.origin, sequence, from_script: false };
        let batch = self.packer.pack(head, records, readers);
        self.cells.batches_out.add(1);
        self.cells.batch_bytes_out.add(batch.len() as u64);
        self.cells.batch_sizes.observe(batch.len() as u64);
        batch
    }

    fn number(&mut self, target: &Target, now: Instant) -> Sequence {
        let Target::Room(room) = target else { return Sequence::Unnumbered };
        let numbering = self.numbering.entry(room.clone()).or_insert(Numbering {
            first: self.forgotten + 1,
            last: self.forgotten,
            used: now,
            watched: false,
        });
        numbering.last += 1;
        numbering.used = now;
        if !std::mem::replace(&mut numbering.watched, true) {
            self.watched.push_back((room.clone(), now + QUIET));
        }
        let Numbering { first, last, .. } = *numbering;
        if last == first { Sequence::Begins(last) } else { Sequence::Follows(last) }
    }

    fn forget_unused(&mut self, now: Instant) {
        let at = *self.forget_at.get_or_insert(now + NUMBERING_KEPT);
        if now >= at {
            let forgotten = &mut self.forgotten;
            self.numbering.retain(|_, numbering| {
                let is_used = now < numbering.used + NUMBERING_KEPT;
                if !is_used {
                    *forgotten = numbering.last.max(*forgotten);
                }
                is_used
            });
            self.forget_at = Some(now + NUMBERING_KEPT);
        }
    }

    fn remember_missed(&mut self, target: Target) {
        if let Target::Room(room) = target
            && self.missed.len() < MISSED_ROOMS
        {
            self.missed.insert(room);
        }
    }

    /// The connection is gone. What was sent and not answered may or may not have arrived.
    pub fn link_lost(&mut self, unanswered: Vec<Sent>) {
        self.heartbeat_sent = None;
        let mut calls = Vec::new();
        for sent in unanswered {
            match sent {
                Sent::Batch(target) => self.remember_missed(target),
                Sent::Lane(SentLane { rooms, .. }) => {
                    rooms.into_iter().for_each(|room| self.remember_missed(Target::Room(room)));
                }
                Sent::Stores(call) => calls.push(call),
                Sent::Heartbeat | Sent::Companion => {}
            }
        }
        self.stores.link_lost(calls.into_iter());
    }

    /// The connection is back: the members of rooms that missed something are told.
    pub fn link_up(&mut self, link: &mut Link<Sent>, now: Instant) {
        self.doubted_until = None;
        self.tell_missed(link, now);
    }

    fn tell_missed(&mut self, link: &mut Link<Sent>, now: Instant) {
        let mut resync = Vec::new();
        batch::push_resync(&mut resync);
        for room in std::mem::take(&mut self.missed) {
            let target = Target::Room(room);
            // A new beginning: the resync already says what the gap would say.
            let sequence = match self.number(&target, now) {
                Sequence::Follows(number) => Sequence::Begins(number),
                other => other,
            };
            self.publish(link, target, sequence, &resync, now);
        }
    }

    /// Notes what waits: `publications` in the queue, and what the link has not written or heard of.
    pub fn note_waiting(&self, publications: usize, link: &Link<Sent>) {
        self.cells.publications_waiting.set(publications as u64);
        self.cells.unwritten_bytes.set(link.output().len() as u64);
        self.cells.unanswered.set(link.awaited() as u64);
    }

    /// Notes that Redis has answered a heartbeat.
    pub fn note_reply(&mut self, now: Instant) {
        if let Some(sent) = self.heartbeat_sent.take() {
            self.cells.reply_us.observe(now.saturating_duration_since(sent).as_micros() as u64);
        }
    }

    /// Sends a heartbeat.
    pub fn heartbeat(&mut self, link: &mut Link<Sent>, heartbeat: Vec<u8>, now: Instant) {
        self.heartbeat_sent.get_or_insert(now);
        link.publish(&self.channels.name(Channel::Instances), &heartbeat, Sent::Heartbeat, now);
    }
}

#[cfg(test)]
mod tests;
