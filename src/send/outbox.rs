//! What waits to be sent to each connection: bounded, and gathered into one batch per flush.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ring::{COPY_UP_TO, Segment, SendBatch};

/// Things kept for the next turn rather than freed, so that a busy shard does not allocate for each
/// receiver. What a whole period did not need is freed at its end, so that a burst's memory does not stay.
#[derive(Debug)]
struct Pool<T> {
    spare: Vec<T>,
    /// The fewest there were in this period.
    fewest: usize,
}

impl<T> Pool<T> {
    const fn new() -> Self {
        Self { spare: Vec::new(), fewest: 0 }
    }

    fn take(&mut self) -> Option<T> {
        let taken = self.spare.pop();
        self.fewest = self.fewest.min(self.spare.len());
        taken
    }

    fn put(&mut self, item: T) {
        self.spare.push(item);
    }

    fn end_period(&mut self) {
        self.spare.truncate(self.spare.len() - self.fewest);
        self.spare.shrink_to(2 * self.spare.len());
        self.fewest = self.spare.len();
    }
}

/// Bytes of a chunk that is worth keeping.
const POOLED_CHUNK_BYTES: usize = 64 * 1024;

/// Bytes of a new chunk: some small frames.
const CHUNK_BYTES: usize = 1024;

/// Milliseconds between two releases of frames that are in no hurry: short for a person, long enough to gather what a
/// storm of joins tells each member.
pub const PATIENCE_MS: u32 = 10;

/// One connection's outgoing bytes. 24 bytes when nothing waits.
#[derive(Debug, Default)]
struct Outbox {
    queue: Option<Box<SendBatch>>,
    /// Bytes of the batch that the ring has; 0 when it has none.
    in_flight: u32,
    /// When the ring got that batch, in ms.
    since: u32,
    open: bool,
    dirty: bool,
    /// Whether the slot is on the list of those that are in no hurry.
    patient: bool,
    /// What it may hold beyond the limit until it is empty, in units of [`SPARE_UNIT`].
    spare: u16,
}

const _: () = assert!(size_of::<Outbox>() <= 24, "there is one per connection");

/// Bytes in which room beyond the limit is counted.
const SPARE_UNIT: usize = 64 * 1024;

/// The outboxes of one shard, by connection slot.
#[derive(Debug)]
pub struct Outboxes {
    boxes: Vec<Outbox>,
    /// Slots with something to send since the last flush.
    dirty: Vec<u32>,
    /// Dirty slots that earlier flushes had no room for, and the members of rooms too large for one flush.
    late: VecDeque<u32>,
    /// Slots with frames that may wait for others.
    patient: Vec<u32>,
    /// When those were released last, in ms.
    released_at: u32,
    overflowed: Vec<u32>,
    /// Boxed, because the ring keeps a batch where it is while the kernel reads it.
    batches: Pool<Box<SendBatch>>,
    chunks: Pool<Vec<u8>>,
    limit: usize,
}

impl Outboxes {
    /// Outboxes that hold at most `limit` bytes each.
    pub fn new(limit: usize) -> Self {
        Self {
            boxes: Vec::new(),
            dirty: Vec::new(),
            late: VecDeque::new(),
            patient: Vec::new(),
            released_at: 0,
            overflowed: Vec::new(),
            batches: Pool::new(),
            chunks: Pool::new(),
            limit,
        }
    }

    /// From now on outboxes hold at most `limit` bytes each.
    pub fn adopt(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// A new connection has the slot.
    pub fn open(&mut self, slot: u32) {
        let index = slot as usize;
        if index >= self.boxes.len() {
            self.boxes.resize_with(index + 1, Outbox::default);
        }
        self.discard(slot);
        self.boxes[index] = Outbox { open: true, ..Outbox::default() };
    }

    /// Takes nothing more for the slot; what waits is still sent.
    pub fn shut(&mut self, slot: u32) {
        self.boxes[slot as usize].open = false;
    }

    /// Drops what waits; a batch that the ring has is not touched.
    pub fn discard(&mut self, slot: u32) {
        if let Some(batch) = self.boxes[slot as usize].queue.take() {
            self.recycle(batch);
        }
    }

    /// Adds a frame that other connections may share. One that does not fit closes the outbox and
    /// puts the slot on the list of [`Self::take_overflowed`].
    #[inline]
    pub fn push(&mut self, slot: u32, frame: &Bytes) {
        if let Some(outbox) = self.put(slot, frame)
            && !std::mem::replace(&mut outbox.dirty, true)
        {
            self.dirty.push(slot);
        }
    }

    /// As [`Self::push`], for one of so many receivers that a flush cannot serve them all: they are served behind those
    /// of smaller rooms, as [`Self::flush`] has it.
    #[inline]
    pub fn push_in_bulk(&mut self, slot: u32, frame: &Bytes) {
        if let Some(outbox) = self.put(slot, frame)
            && !std::mem::replace(&mut outbox.dirty, true)
        {
            self.late.push_back(slot);
        }
    }

    /// As [`Self::push`], for what is in no hurry: it goes out with the next frame that is, or within [`PATIENCE_MS`],
    /// so that many of them share a send. At once where none has gone out for as long.
    pub fn push_patiently(&mut self, slot: u32, frame: &Bytes) {
        if let Some(outbox) = self.put(slot, frame)
            && !outbox.dirty
            && !std::mem::replace(&mut outbox.patient, true)
        {
            self.patient.push(slot);
        }
    }

    /// Puts a frame into the slot's batch, if that takes it.
    #[inline]
    fn put(&mut self, slot: u32, frame: &Bytes) -> Option<&mut Outbox> {
        let outbox = self.boxes.get_mut(slot as usize)?;
        if !outbox.open {
            return None;
        }
        #[cfg(feature = "frame-for-each")]
        let frame = &Bytes::copy_from_slice(frame);
        let batch = outbox.queue.get_or_insert_with(|| self.batches.take().unwrap_or_default());
        let limit = self.limit + usize::from(outbox.spare) * SPARE_UNIT;
        if batch.bytes() + outbox.in_flight as usize + frame.len() > limit {
            outbox.open = false;
            self.overflowed.push(slot);
            return None;
        }
        if batch.is_empty() || (frame.len() > COPY_UP_TO && batch.len() < SendBatch::SEGMENTS) {
            batch.push(Segment::Shared(frame.clone()));
        } else {
            let chunks = &mut self.chunks;
            batch.push_copied(frame, || chunks.take().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES)));
        }
        Some(outbox)
    }

    /// As [`Self::push`], for what the connection has asked for and cannot get in parts: it may be beyond the limit, if no
    /// more than that waits or all together is twice the limit at most. Until the peer has taken everything there is
    /// half an outbox of room behind it.
    pub fn push_replay(&mut self, slot: u32, frame: &Bytes) {
        let waiting = self.bytes(slot);
        if waiting > self.limit && waiting + frame.len() > 2 * self.limit {
            return self.push(slot, frame);
        }
        let needed = waiting + frame.len() + self.limit / 2;
        let beyond = needed.saturating_sub(self.limit).div_ceil(SPARE_UNIT);
        let outbox = &mut self.boxes[slot as usize];
        outbox.spare = outbox.spare.max(u16::try_from(beyond).unwrap_or(u16::MAX));
        self.push(slot, frame);
    }

    /// Sends `frame`, bounded or not, as the last thing for the slot; `discard` drops what waits before it.
    pub fn finish(&mut self, slot: u32, frame: &Bytes, discard: bool) {
        if discard {
            self.discard(slot);
        }
        let outbox = &mut self.boxes[slot as usize];
        outbox.open = false;
        let batch = outbox.queue.get_or_insert_with(|| self.batches.take().unwrap_or_default());
        batch.push_copied(frame, || self.chunks.take().unwrap_or_default());
        if !outbox.dirty {
            outbox.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Has the next flush look at the slot though nothing waits: what seals its batches has something to send.
    pub fn touch(&mut self, slot: u32) {
        let outbox = &mut self.boxes[slot as usize];
        outbox.queue.get_or_insert_with(|| self.batches.take().unwrap_or_default());
        if !outbox.dirty {
            outbox.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Whether anything is to be flushed at `now`, in ms.
    pub fn is_dirty(&self, now: u32) -> bool {
        !(self.dirty.is_empty() && self.late.is_empty()) || self.patience(now) == Some(0)
    }

    /// Milliseconds from `now` after which what is in no hurry has waited long enough, if there is any.
    pub fn patience(&self, now: u32) -> Option<u32> {
        let waited = now.wrapping_sub(self.released_at);
        (!self.patient.is_empty()).then(|| PATIENCE_MS.saturating_sub(waited))
    }

    /// Marks those that have waited long enough.
    fn release_patient(&mut self, now: u32) {
        if self.patience(now) != Some(0) {
            return;
        }
        self.released_at = now;
        for slot in self.patient.drain(..) {
            let outbox = &mut self.boxes[slot as usize];
            outbox.patient = false;
            if outbox.queue.is_some() && !std::mem::replace(&mut outbox.dirty, true) {
                self.dirty.push(slot);
            }
        }
    }

    /// Slots whose outbox has overflowed since the last call.
    pub fn take_overflowed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.overflowed)
    }

    /// Hands the batches of up to `most` dirty connections to `send`, which returns a batch that it cannot
    /// take. `now` in ms.
    ///
    /// Connections that became dirty since the last flush come first, those that had to wait then get what is left,
    /// and half of it for certain: a room of thousands delays the others by a part of its sends, not by all of them.
    pub fn flush(
        &mut self,
        now: u32,
        most: usize,
        send: impl FnMut(u32, Box<SendBatch>) -> Result<(), Box<SendBatch>>,
    ) {
        self.flush_sealed(now, most, |_, _, _| {}, send);
    }

    /// As [`Self::flush`]; before it is sent each batch goes through `seal`, which may put something else in its
    /// place, in a chunk of memory that the function it is given provides.
    pub fn flush_sealed(
        &mut self,
        now: u32,
        most: usize,
        mut seal: impl FnMut(u32, &mut SendBatch, &mut dyn FnMut() -> Vec<u8>),
        mut send: impl FnMut(u32, Box<SendBatch>) -> Result<(), Box<SendBatch>>,
    ) {
        self.release_patient(now);
        let mut dirty = std::mem::take(&mut self.dirty);
        let reserved = self.late.len().min(most / 2);
        let new = dirty.len().min(most - reserved);
        let late = self.late.len().min(most - new);
        dirty[..new].iter().for_each(|slot| self.flush_one(*slot, now, &mut seal, &mut send));
        for _ in 0..late {
            let Some(slot) = self.late.pop_front() else { break };
            self.flush_one(slot, now, &mut seal, &mut send);
        }
        self.late.extend(dirty.drain(..).skip(new));
        self.dirty = dirty;
    }

    #[inline]
    fn flush_one(
        &mut self,
        slot: u32,
        now: u32,
        seal: &mut impl FnMut(u32, &mut SendBatch, &mut dyn FnMut() -> Vec<u8>),
        send: &mut impl FnMut(u32, Box<SendBatch>) -> Result<(), Box<SendBatch>>,
    ) {
        let outbox = &mut self.boxes[slot as usize];
        outbox.dirty = false;
        if outbox.in_flight > 0 {
            return;
        }
        let Some(mut batch) = outbox.queue.take() else { return };
        let chunks = &mut self.chunks;
        seal(slot, &mut batch, &mut || chunks.take().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES)));
        // An outbox holds at most some times OUTBOX_BYTES, which is far below 4 GiB.
        (outbox.in_flight, outbox.since) = (u32::try_from(batch.bytes()).unwrap_or(u32::MAX), now);
        if let Err(batch) = send(slot, batch) {
            self.boxes[slot as usize].in_flight = 0;
            self.recycle(batch);
        }
    }

    /// The ring has finished with a batch of the slot.
    pub fn sent(&mut self, slot: u32, batch: Box<SendBatch>) {
        let outbox = &mut self.boxes[slot as usize];
        outbox.in_flight = 0;
        if outbox.queue.is_none() {
            outbox.spare = 0;
        } else if !outbox.dirty {
            outbox.dirty = true;
            self.dirty.push(slot);
        }
        self.recycle(batch);
    }

    /// Bytes that wait or are under way.
    pub fn bytes(&self, slot: u32) -> usize {
        let outbox = &self.boxes[slot as usize];
        outbox.queue.as_ref().map_or(0, |batch| batch.bytes()) + outbox.in_flight as usize
    }

    /// Whether nothing waits and nothing is under way.
    pub fn is_empty(&self, slot: u32) -> bool {
        let outbox = &self.boxes[slot as usize];
        outbox.queue.is_none() && outbox.in_flight == 0
    }

    /// Milliseconds for which the batch under way has been waiting for the peer.
    pub fn stalled_for(&self, slot: u32, now: u32) -> Option<u32> {
        let outbox = &self.boxes[slot as usize];
        (outbox.in_flight > 0).then(|| now.wrapping_sub(outbox.since))
    }

    /// Frees pooled memory that was not needed since the last call; to be called about once a second.
    pub fn trim(&mut self) {
        self.batches.end_period();
        self.chunks.end_period();
    }

    fn recycle(&mut self, mut batch: Box<SendBatch>) {
        for segment in batch.drain() {
            if let Segment::Copied(mut chunk) = segment
                && chunk.capacity() <= POOLED_CHUNK_BYTES
            {
                chunk.clear();
                self.chunks.put(chunk);
            }
        }
        self.batches.put(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outboxes(limit: usize) -> Outboxes {
        let mut outboxes = Outboxes::new(limit);
        outboxes.open(0);
        outboxes.open(1);
        outboxes
    }

    fn flushed(outboxes: &mut Outboxes) -> Vec<(u32, Vec<u8>, Box<SendBatch>)> {
        let mut sends = Vec::new();
        outboxes.flush(0, usize::MAX, |slot, mut batch| {
            let segments: Vec<_> = batch.drain().collect();
            let bytes = segments.iter().flat_map(|segment| segment.as_slice().to_vec()).collect();
            segments.into_iter().for_each(|segment| batch.push(segment));
            sends.push((slot, bytes, batch));
            Ok(())
        });
        sends
    }

    #[test]
    fn a_connection_gets_one_batch_per_flush_in_order() {
        let mut outboxes = outboxes(10_000);
        let large = Bytes::from(vec![b'L'; COPY_UP_TO + 1]);
        for frame in [&Bytes::from_static(b"a"), &Bytes::from_static(b"b"), &large, &Bytes::from_static(b"c")]
        {
            outboxes.push(0, frame);
        }
        outboxes.push(1, &Bytes::from_static(b"z"));
        let sends = flushed(&mut outboxes);
        let expected = [b"ab".as_slice(), &large, b"c"].concat();
        assert_eq!(
            sends.iter().map(|(slot, bytes, _)| (*slot, bytes)).collect::<Vec<_>>(),
            [(0, &expected), (1, &b"z".to_vec())]
        );
        assert!(!outboxes.is_dirty(0));
    }

    #[test]
    fn a_replay_may_be_beyond_the_limit_until_it_is_taken() {
        let mut outboxes = outboxes(200_000);
        let bytes = |count: usize| Bytes::from(vec![b'x'; count]);
        outboxes.push_replay(0, &bytes(350_000));
        outboxes.push(0, &bytes(100_000));
        assert!(outboxes.take_overflowed().is_empty(), "half an outbox of what is new fits behind it");
        for (slot, _, batch) in flushed(&mut outboxes) {
            outboxes.sent(slot, batch);
        }
        outboxes.push(0, &bytes(200_001));
        assert_eq!(outboxes.take_overflowed(), [0], "afterwards the limit holds as before");
    }

    #[test]
    fn a_flush_serves_newcomers_first_and_keeps_half_for_those_who_wait() {
        let mut outboxes = Outboxes::new(100);
        (0..12).for_each(|slot| outboxes.open(slot));
        let mark = |outboxes: &mut Outboxes, slots: std::ops::Range<u32>| {
            slots.for_each(|slot| outboxes.push(slot, &Bytes::from_static(b"x")));
        };
        let flush = |outboxes: &mut Outboxes| {
            let mut slots = Vec::new();
            outboxes.flush(0, 4, |slot, batch| {
                slots.push(slot);
                drop(batch);
                Ok(())
            });
            slots
        };
        mark(&mut outboxes, 0..8);
        assert_eq!(flush(&mut outboxes), [0, 1, 2, 3]);
        mark(&mut outboxes, 8..9);
        assert_eq!(flush(&mut outboxes), [8, 4, 5, 6]);
        mark(&mut outboxes, 9..12);
        assert_eq!(flush(&mut outboxes), [9, 10, 11, 7]);
        assert!(!outboxes.is_dirty(0));
    }

    #[test]
    fn newcomers_without_end_do_not_starve_those_who_wait() {
        let mut outboxes = Outboxes::new(100);
        (0..80).for_each(|slot| outboxes.open(slot));
        let mut served = Vec::new();
        for round in 0..10 {
            // Twice what a flush takes, each time.
            (round * 8..round * 8 + 8).for_each(|slot| outboxes.push(slot, &Bytes::from_static(b"x")));
            outboxes.flush(0, 4, |slot, _| {
                served.push(slot);
                Ok(())
            });
        }
        let late: Vec<u32> = served.iter().copied().filter(|slot| slot % 8 >= 4).collect();
        assert_eq!(served.len(), 40);
        assert_eq!(late[..4], [4, 5, 6, 7], "the oldest first");
    }

    #[test]
    fn a_room_too_large_for_one_flush_waits_behind_others() {
        let mut outboxes = Outboxes::new(100);
        (0..20).for_each(|slot| outboxes.open(slot));
        (0..16).for_each(|slot| outboxes.push_in_bulk(slot, &Bytes::from_static(b"x")));
        (16..18).for_each(|slot| outboxes.push(slot, &Bytes::from_static(b"x")));
        assert!(outboxes.is_dirty(0));
        let mut slots = Vec::new();
        outboxes.flush(0, 4, |slot, _| {
            slots.push(slot);
            Ok(())
        });
        assert_eq!(slots, [16, 17, 0, 1]);
    }

    #[test]
    fn what_is_in_no_hurry_gathers_or_goes_with_what_is() {
        let mut outboxes = outboxes(100);
        let sends = |outboxes: &mut Outboxes, now| {
            let mut sends = Vec::new();
            let dirty = outboxes.is_dirty(now);
            outboxes.flush(now, usize::MAX, |slot, batch| {
                sends.push((slot, batch.bytes()));
                Err(batch)
            });
            assert_eq!(dirty, !sends.is_empty());
            sends
        };
        let push = |outboxes: &mut Outboxes, slot| outboxes.push_patiently(slot, &Bytes::from_static(b"x"));
        push(&mut outboxes, 0);
        assert_eq!(sends(&mut outboxes, 100), [(0, 1)], "none has gone out for long");
        push(&mut outboxes, 0);
        push(&mut outboxes, 0);
        push(&mut outboxes, 1);
        assert_eq!(outboxes.patience(101), Some(PATIENCE_MS - 1));
        assert_eq!(sends(&mut outboxes, 101), []);
        outboxes.push(1, &Bytes::from_static(b"now"));
        assert_eq!(sends(&mut outboxes, 102), [(1, 4)], "in the order of the pushes, in one send");
        assert_eq!(sends(&mut outboxes, 100 + PATIENCE_MS), [(0, 2)]);
        assert_eq!(outboxes.patience(200), None);
    }

    #[test]
    fn what_comes_while_a_batch_is_under_way_follows_it() {
        let mut outboxes = outboxes(100);
        outboxes.push(0, &Bytes::from_static(b"first"));
        let (_, _, batch) = flushed(&mut outboxes).remove(0);
        outboxes.push(0, &Bytes::from_static(b"second"));
        assert!(flushed(&mut outboxes).is_empty());
        outboxes.sent(0, batch);
        assert_eq!(flushed(&mut outboxes)[0].1, b"second");
    }

    #[test]
    fn overflow_counts_what_waits_and_what_is_under_way_and_is_told_once() {
        let mut outboxes = outboxes(10);
        outboxes.push(0, &Bytes::from_static(b"123456"));
        let (_, _, batch) = flushed(&mut outboxes).remove(0);
        outboxes.push(0, &Bytes::from_static(b"1234"));
        assert!(outboxes.take_overflowed().is_empty());
        outboxes.push(0, &Bytes::from_static(b"5"));
        outboxes.push(0, &Bytes::from_static(b"6"));
        assert_eq!(outboxes.take_overflowed(), [0]);
        outboxes.sent(0, batch);
        assert_eq!(flushed(&mut outboxes)[0].1, b"1234", "what was accepted is still sent");
    }

    #[test]
    fn the_last_frame_goes_out_over_the_bound_and_nothing_after_it() {
        let mut outboxes = outboxes(4);
        outboxes.push(0, &Bytes::from_static(b"1234"));
        outboxes.finish(0, &Bytes::from_static(b"bye"), true);
        outboxes.push(0, &Bytes::from_static(b"x"));
        assert_eq!(flushed(&mut outboxes)[0].1, b"bye");
    }

    #[test]
    fn a_pool_keeps_what_a_period_needed_and_frees_the_rest() {
        let mut pool = Pool::new();
        (0..10).for_each(|item| pool.put(item));
        pool.end_period();
        assert_eq!(pool.spare.len(), 10, "put in this period: not known to be superfluous");
        let taken: Vec<_> = (0..4).filter_map(|_| pool.take()).collect();
        taken.into_iter().for_each(|item| pool.put(item));
        pool.end_period();
        assert_eq!(pool.spare.len(), 4);
        pool.end_period();
        assert_eq!(pool.spare.len(), 0);
    }

    #[test]
    fn a_reused_slot_starts_empty() {
        let mut outboxes = outboxes(10);
        outboxes.push(0, &Bytes::from_static(b"old"));
        outboxes.open(0);
        assert!(flushed(&mut outboxes).is_empty());
        assert!(outboxes.is_empty(0));
    }
}
