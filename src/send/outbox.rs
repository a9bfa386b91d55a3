//! What waits to be sent to each connection: bounded, and gathered into one batch per flush.

use std::collections::VecDeque;

use bytes::Bytes;

use super::pool::Pool;
use super::room_logs::RoomLogs;
use crate::ring::{COPY_UP_TO, Segment, SendBatch, Stretch};

/// Bytes of a chunk that is worth keeping.
const POOLED_CHUNK_BYTES: usize = 64 * 1024;

/// Bytes of a new chunk: some small frames.
const CHUNK_BYTES: usize = 1024;

/// Milliseconds between two releases of frames that are in no hurry: short for a person, long enough to gather what a
/// storm of joins tells each member.
pub const PATIENCE_MS: u32 = 10;

/// A frame to be put into outboxes.
#[derive(Clone, Copy, Debug)]
pub enum Outgoing<'a> {
    /// One by itself.
    Alone(&'a Bytes),
    /// One behind others of its room, as [`Outboxes::log`] gives it.
    Logged(&'a Stretch),
}

impl<'a> From<&'a Bytes> for Outgoing<'a> {
    #[inline]
    fn from(frame: &'a Bytes) -> Self {
        Self::Alone(frame)
    }
}

impl Outgoing<'_> {
    #[inline]
    fn to_segment(self) -> Segment {
        match self {
            Self::Alone(frame) => Segment::Shared(frame.clone()),
            Self::Logged(stretch) => Segment::Logged(stretch.clone()),
        }
    }

    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Alone(frame) => frame.len(),
            Self::Logged(stretch) => stretch.len(),
        }
    }
}

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

/// Adds a frame that does not follow what is in the batch.
#[inline(never)]
fn put_behind(batch: &mut SendBatch, frame: Outgoing<'_>, chunks: &mut Pool<Vec<u8>>) {
    let chunk = || chunks.take().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES));
    match frame {
        Outgoing::Logged(stretch) => batch.push_stretch(stretch, chunk),
        Outgoing::Alone(frame) if frame.len() > COPY_UP_TO && batch.len() < SendBatch::SEGMENTS => {
            batch.push(Outgoing::Alone(frame).to_segment());
        }
        Outgoing::Alone(frame) => batch.push_copied(frame, chunk),
    }
}

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
    logs: RoomLogs,
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
            batches: Pool::default(),
            chunks: Pool::default(),
            logs: RoomLogs::default(),
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

    /// Puts a frame into the log called `number`, for outboxes to refer to it there: those that get one such frame after the
    /// other need no copies. Nothing if it is too large for that.
    pub fn log(&mut self, number: u32, frame: &[u8]) -> Option<Stretch> {
        // For benches/choices: what a log holds was written once.
        if cfg!(feature = "encode-for-each") { None } else { self.logs.append(number, frame) }
    }

    /// Adds a frame that other connections may share. One that does not fit closes the outbox and
    /// puts the slot on the list of [`Self::take_overflowed`].
    #[inline]
    pub fn push<'a>(&mut self, slot: u32, frame: impl Into<Outgoing<'a>>) {
        if let Some(outbox) = self.put(slot, frame.into())
            && !std::mem::replace(&mut outbox.dirty, true)
        {
            self.dirty.push(slot);
        }
    }

    /// As [`Self::push`], for one of so many receivers that a flush cannot serve them all: they are served behind those
    /// of smaller rooms, as [`Self::flush`] has it.
    #[inline]
    pub fn push_in_bulk<'a>(&mut self, slot: u32, frame: impl Into<Outgoing<'a>>) {
        if let Some(outbox) = self.put(slot, frame.into())
            && !std::mem::replace(&mut outbox.dirty, true)
        {
            self.late.push_back(slot);
        }
    }

    /// As [`Self::push`], for what is in no hurry: it goes out with the next frame that is, or within [`PATIENCE_MS`],
    /// so that many of them share a send. At once where none has gone out for as long.
    pub fn push_patiently(&mut self, slot: u32, frame: &Bytes) {
        if let Some(outbox) = self.put(slot, frame.into())
            && !outbox.dirty
            && !std::mem::replace(&mut outbox.patient, true)
        {
            self.patient.push(slot);
        }
    }

    /// Puts a frame into the slot's batch, if that takes it.
    #[inline]
    fn put(&mut self, slot: u32, frame: Outgoing<'_>) -> Option<&mut Outbox> {
        let outbox = self.boxes.get_mut(slot as usize)?;
        if !outbox.open {
            return None;
        }
        let batch = outbox.queue.get_or_insert_with(|| self.batches.take().unwrap_or_default());
        let limit = self.limit + usize::from(outbox.spare) * SPARE_UNIT;
        if batch.bytes() + outbox.in_flight as usize + frame.len() > limit {
            outbox.open = false;
            self.overflowed.push(slot);
            return None;
        }
        match frame {
            Outgoing::Logged(stretch) if batch.lengthen(stretch) => {}
            _ if batch.is_empty() => batch.push(frame.to_segment()),
            _ => put_behind(batch, frame, &mut self.chunks),
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
        self.flush_sealed(now, most, |_, _, _| None, send);
    }

    /// As [`Self::flush`]; before it is sent `seal` looks at each batch, and may give something else that goes out in its
    /// place, in a chunk of memory that the function it is given provides.
    pub fn flush_sealed(
        &mut self,
        now: u32,
        most: usize,
        mut seal: impl FnMut(u32, &SendBatch, &mut dyn FnMut() -> Vec<u8>) -> Option<Vec<u8>>,
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
        self.logs.end_flush();
    }

    #[inline]
    fn flush_one(
        &mut self,
        slot: u32,
        now: u32,
        seal: &mut impl FnMut(u32, &SendBatch, &mut dyn FnMut() -> Vec<u8>) -> Option<Vec<u8>>,
        send: &mut impl FnMut(u32, Box<SendBatch>) -> Result<(), Box<SendBatch>>,
    ) {
        let outbox = &mut self.boxes[slot as usize];
        outbox.dirty = false;
        if outbox.in_flight > 0 {
            return;
        }
        let Some(mut batch) = outbox.queue.take() else { return };
        let chunks = &mut self.chunks;
        let mut chunk = || chunks.take().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES));
        if let Some(sealed) = seal(slot, &batch, &mut chunk) {
            self.empty(&mut batch);
            if !sealed.is_empty() {
                batch.push(Segment::Copied(sealed));
            }
        }
        let outbox = &mut self.boxes[slot as usize];
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
        self.logs.trim();
    }

    fn recycle(&mut self, mut batch: Box<SendBatch>) {
        self.empty(&mut batch);
        self.batches.put(batch);
    }

    /// Takes everything out of a batch and keeps the memory.
    fn empty(&mut self, batch: &mut SendBatch) {
        for segment in batch.drain() {
            match segment {
                Segment::Copied(mut chunk) if chunk.capacity() <= POOLED_CHUNK_BYTES => {
                    chunk.clear();
                    self.chunks.put(chunk);
                }
                Segment::Logged(stretch) => self.logs.put_back(stretch),
                Segment::Copied(_) | Segment::Shared(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
