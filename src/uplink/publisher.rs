//! What this instance publishes: events gather per channel and go out as batches, pipelined.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use redis::{ServerError, Value};

use super::batch::{self, Header, Origin, Packer, Sequence};
use super::channel::{Channel, Channels};
use super::link::{Link, LinkError};
use super::store_queue::{StoreCall, StoreQueue};
use crate::hashing::Hashing;
use crate::identity::RoomId;
use crate::metrics::UplinkCells;
use crate::shard::envelope::{Publication, Target};

/// Time after which an unused room's numbering is forgotten. That the last batch before it was lost is
/// then never noticed, so this is far longer than any conversation pauses.
const NUMBERING_KEPT: Duration = Duration::from_secs(600);

/// Rooms that are remembered as having missed something, to be told once the link is back. Beyond it
/// only the numbering shows the gap.
const MISSED_ROOMS: usize = 65_536;

/// Time after a room's last batch when its sequence is sent once more, so that a receiver which missed that batch
/// notices.
const QUIET: Duration = Duration::from_secs(3);

/// What a command on the publisher's connection was.
#[derive(Debug)]
pub enum Sent {
    /// A batch for this target.
    Batch(Target),
    /// Messages to be stored.
    Stores(StoreCall),
    /// A heartbeat.
    Heartbeat,
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
    cells: Arc<UplinkCells>,
}

/// How large batches become.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Bytes at which everything is sent at once.
    pub size: usize,
    /// Bytes from which a batch is compressed if that pays.
    pub compress_from: usize,
}

impl Publisher {
    /// A publisher with nothing to send.
    ///
    /// # Errors
    /// When zstd cannot allocate its context.
    pub fn new(
        channels: Channels,
        origin: Origin,
        batching: Batching,
        stores: StoreQueue,
        cells: Arc<UplinkCells>,
    ) -> std::io::Result<Self> {
        Ok(Self {
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
            cells,
        })
    }

    /// Takes one event.
    pub fn add(&mut self, publication: Publication) {
        self.cells.published.add(1);
        let (target, event) = match publication {
            Publication::Event { target, event } => (target, event),
            Publication::Store(store) => {
                self.bytes += store.event.len() + batch::RECORD_HEADER_BYTES;
                return self.stores.add(*store);
            }
        };
        self.bytes += event.len() + batch::RECORD_HEADER_BYTES;
        let gathering = self.gathering.entry(target).or_insert_with_key(|target| {
            self.order.push(target.clone());
            Gathering::default()
        });
        batch::push_event(&mut gathering.records, &event);
        gathering.events += 1;
    }

    /// Whether enough has gathered to send it before its time.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.size
    }

    /// Sends all that has gathered, one PUBLISH per channel; drops it when the link is not up. The
    /// numbering goes on in both cases, so that receivers notice.
    pub fn flush(&mut self, link: &mut Link<Sent>, now: Instant) {
        self.bytes = 0;
        for target in std::mem::take(&mut self.order) {
            let Some(gathering) = self.gathering.remove(&target) else { continue };
            let sequence = self.number(&target, now);
            if link.is_up() {
                self.publish(link, target, sequence, &gathering.records, now);
            } else {
                self.cells.publications_dropped.add(gathering.events);
                self.remember_missed(target);
            }
        }
        self.stores.flush(link, now);
        self.repeat_quiet(link, now);
        self.forget_unused(now);
    }

    /// Repeats the sequence of rooms that have gone quiet: the header of their last batch, without events.
    fn repeat_quiet(&mut self, link: &mut Link<Sent>, now: Instant) {
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
            if link.is_up() {
                let mut records = Vec::new();
                batch::push_quiet(&mut records, since.as_millis() as u32);
                self.publish(link, Target::Room(room), Sequence::Follows(last), &records, now);
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
        let head = Header { origin: self.origin, sequence, from_script: false };
        let batch = self.packer.pack(head, records);
        self.cells.batches_out.add(1);
        self.cells.batch_bytes_out.add(batch.len() as u64);
        link.publish(&self.channels.of(&target), &batch, Sent::Batch(target), now);
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
        let mut calls = Vec::new();
        for sent in unanswered {
            match sent {
                Sent::Batch(target) => self.remember_missed(target),
                Sent::Stores(call) => calls.push(call),
                Sent::Heartbeat => {}
            }
        }
        self.stores.link_lost(calls.into_iter());
    }

    /// The connection is back: the members of rooms that missed something are told.
    pub fn link_up(&mut self, link: &mut Link<Sent>, now: Instant) {
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

    /// Sends a heartbeat.
    pub fn heartbeat(&self, link: &mut Link<Sent>, heartbeat: Vec<u8>, now: Instant) {
        link.publish(&self.channels.name(Channel::Instances), &heartbeat, Sent::Heartbeat, now);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::uplink::batch::{HEADER_BYTES, Record, parse_header, parse_records};
    use crate::uplink::history::{Epochs, HistoryCaller, HistoryRules};
    use crate::uplink::link::Handshake;

    fn publisher() -> Publisher {
        let batching = Batching { size: 1_000, compress_from: usize::MAX };
        let caller = HistoryCaller::new("t:", Origin(7), HistoryRules::none());
        let stores = StoreQueue::new(caller, Epochs::new(1), Vec::new());
        Publisher::new(Channels::new("t:"), Origin(7), batching, stores, Arc::default()).unwrap()
    }

    fn down(now: Instant) -> Link<Sent> {
        let handshake = Handshake { username: None, password: None, db: 0, name: "t".into() };
        Link::new(handshake, Duration::from_secs(1), 1, now)
    }

    fn connect(link: &mut Link<Sent>, now: Instant) {
        link.connected(now);
        link.receive(b"+OK\r\n+OK\r\n+OK\r\n", now, &mut Vec::new()).unwrap();
        link.wrote(link.output().len());
    }

    fn up(now: Instant) -> Link<Sent> {
        let mut link = down(now);
        connect(&mut link, now);
        link
    }

    fn room(name: &str) -> Target {
        Target::Room(RoomId::parse(name).unwrap())
    }

    fn add(publisher: &mut Publisher, target: Target, event: &'static str) {
        publisher.add(Publication::Event { target, event: Bytes::from_static(event.as_bytes()) });
    }

    /// Channel and payload of each PUBLISH that waits to be written.
    fn published(link: &mut Link<Sent>) -> Vec<(String, Vec<u8>)> {
        let (mut out, mut decoder) = (Vec::new(), super::super::wire::Decoder::default());
        decoder
            .feed(link.output(), |inbound| {
                let super::super::wire::Inbound::Reply(Ok(redis::Value::Array(parts))) = inbound else {
                    panic!("commands are arrays")
                };
                let [_, redis::Value::BulkString(channel), redis::Value::BulkString(payload)] = &parts[..]
                else {
                    panic!("PUBLISH has two arguments: {parts:?}")
                };
                out.push((String::from_utf8(channel.clone()).unwrap(), payload.clone()));
            })
            .unwrap();
        link.wrote(link.output().len());
        out
    }

    #[test]
    fn events_of_one_channel_share_a_batch_in_order() {
        let now = Instant::now();
        let (mut publisher, mut link) = (publisher(), up(now));
        add(&mut publisher, room("a"), "1");
        add(&mut publisher, Target::Global, "g");
        add(&mut publisher, room("a"), "2");
        publisher.flush(&mut link, now);
        let sent = published(&mut link);
        assert_eq!(sent.iter().map(|(c, _)| c.as_str()).collect::<Vec<_>>(), ["t:rooms:a", "t:global"]);
        let records = parse_records(&sent[0].1[HEADER_BYTES..]).unwrap();
        assert_eq!(records, [Record::Event("1"), Record::Event("2")]);
        assert_eq!(link.awaited(), 2);
        publisher.flush(&mut link, now);
        assert!(published(&mut link).is_empty(), "sent once");
    }

    #[test]
    fn size_sends_before_the_time() {
        let mut publisher = publisher();
        add(&mut publisher, room("a"), "x");
        assert!(!publisher.is_full());
        let long: &'static str = "y".repeat(1_000).leak();
        add(&mut publisher, room("b"), long);
        assert!(publisher.is_full());
    }

    #[test]
    fn numbers_rise_per_room_also_for_what_was_dropped() {
        let now = Instant::now();
        let (mut publisher, mut link) = (publisher(), up(now));
        let mut sequences = Vec::new();
        for step in 0..4 {
            add(&mut publisher, room("a"), "1");
            if step == 2 {
                publisher.flush(&mut down(now), now);
            } else {
                publisher.flush(&mut link, now);
                let sent = published(&mut link);
                sequences.push(parse_header(&sent[0].1).unwrap().sequence);
            }
        }
        assert_eq!(sequences, [Sequence::Begins(1), Sequence::Follows(2), Sequence::Follows(4)]);
        assert_eq!(publisher.cells.publications_dropped.get(), 1);
    }

    #[test]
    fn rooms_that_missed_something_are_told_when_the_link_is_back() {
        let now = Instant::now();
        let (mut publisher, mut link) = (publisher(), up(now));
        add(&mut publisher, room("unanswered"), "1");
        publisher.flush(&mut link, now);
        publisher.link_lost(link.lost(now));
        add(&mut publisher, room("dropped"), "1");
        publisher.flush(&mut link, now);
        connect(&mut link, now);
        publisher.link_up(&mut link, now);
        let mut sent = published(&mut link);
        sent.sort();
        assert_eq!(
            sent.iter().map(|(c, _)| c.as_str()).collect::<Vec<_>>(),
            ["t:rooms:dropped", "t:rooms:unanswered"]
        );
        for (_, batch) in &sent {
            assert_eq!(parse_records(&batch[HEADER_BYTES..]).unwrap(), [Record::Resync]);
            assert_eq!(parse_header(batch).unwrap().sequence, Sequence::Begins(2));
        }
        publisher.link_up(&mut link, now);
        assert!(published(&mut link).is_empty(), "told once");
    }

    #[test]
    fn a_room_that_goes_quiet_repeats_its_sequence_once() {
        let now = Instant::now();
        let (mut publisher, mut link) = (publisher(), up(now));
        add(&mut publisher, room("a"), "1");
        publisher.flush(&mut link, now);
        let later = now + QUIET / 2;
        add(&mut publisher, room("a"), "2");
        publisher.flush(&mut link, later);
        published(&mut link);
        publisher.flush(&mut link, now + QUIET);
        assert!(published(&mut link).is_empty(), "it was not quiet for long enough");
        assert_eq!(publisher.deadline(), Some(later + QUIET));
        publisher.flush(&mut link, later + QUIET);
        let sent = published(&mut link);
        assert_eq!(parse_header(&sent[0].1).unwrap().sequence, Sequence::Follows(2));
        let records = parse_records(&sent[0].1[HEADER_BYTES..]).unwrap();
        assert_eq!(records, [Record::Quiet { since_ms: QUIET.as_millis() as u32 }]);
        publisher.flush(&mut link, later + 9 * QUIET);
        assert!(published(&mut link).is_empty(), "once");
    }

    #[test]
    fn unused_numberings_are_forgotten() {
        let now = Instant::now();
        let (mut publisher, mut link) = (publisher(), up(now));
        add(&mut publisher, room("a"), "1");
        publisher.flush(&mut link, now);
        publisher.flush(&mut link, now + NUMBERING_KEPT);
        assert!(publisher.numbering.is_empty());
    }
}
