//! The binary batch that instances exchange: many events of one channel in one Redis message.
//!
//! All numbers are little-endian. `docs/redis.md` describes the format for other programs.
//!
//! ```text
//!  0  3  magic F5 54 46: F5 begins no UTF-8 text, so a batch is never taken for JSON
//!  3  1  version, 1
//!  4  1  flags: 1 compressed · 2 numbering begins here · 4 written by a script
//!  5  8  origin: random number of the sending process
//! 13  8  sequence: rises by one per batch of this origin on this channel; 0 for not numbered
//! 21     records; if compressed: their length (4), then one zstd frame
//!        record: kind (1), length (4), body
//! ```

use std::borrow::Cow;

use zstd::bulk::{Compressor, Decompressor};

use crate::identity::{ConnectionId, ShardId};
use crate::limits;
use crate::room::history::{Epoch, Position};

/// How a batch begins.
pub const MAGIC: [u8; 3] = [0xF5, b'T', b'F'];

/// The format's version; a receiver drops what has another one.
pub const VERSION: u8 = 1;

/// Bytes in front of the records.
pub const HEADER_BYTES: usize = 21;

/// Bytes in front of a record's body.
pub const RECORD_HEADER_BYTES: usize = 5;

/// Bytes of a batch's records: what a receiver is ready to allocate for one compressed batch. Far
/// above the batch size that anyone would set, far below what would hurt.
pub const RECORDS_BYTES: usize = 16 << 20;

/// zstd's fastest regular level: the uplink's core is shared, and a network rarely the bottleneck.
const COMPRESSION_LEVEL: i32 = 1;

const COMPRESSED: u8 = 1;
const NUMBERING_BEGINS: u8 = 2;
const FROM_SCRIPT: u8 = 4;

const KIND_EVENT: u8 = 1;
/// Written by `presence.lua` too.
const KIND_PRESENCE: u8 = 2;
const KIND_RESYNC: u8 = 3;
/// Written by `history.lua`.
const KIND_STORED: u8 = 4;
const KIND_QUIET: u8 = 5;
/// The numbers between are for other kinds of messages.
const KIND_COMPANION: u8 = 32;

/// Bytes in front of a stored event's text: epoch, offset, sender.
const STORED_HEADER_BYTES: usize = 24;

/// The shard of no connection.
const NO_SHARD: u8 = 0xFF;

/// The process that sent a batch: a random number drawn at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin(pub u64);

/// A batch's place among those of its origin on its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// Not counted: presence and resync records, user and global events.
    Unnumbered,
    /// The first of a new numbering: whatever came before says nothing about what is missing.
    Begins(u64),
    /// One more than the batch before.
    Follows(u64),
}

/// What stands in front of a batch's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who sent it.
    pub origin: Origin,
    /// Its number.
    pub sequence: Sequence,
    /// Whether a script in Redis wrote it: what it says the sender itself wants to hear too.
    pub from_script: bool,
}

/// One record of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// An event's JSON text, as clients receive it.
    Event(&'a str),
    /// A user came or left.
    Presence {
        /// Came (true) or left.
        joined: bool,
        /// Users in the room now, in the whole cluster.
        member_count: u32,
        /// The member as JSON (see [`super::presence`]).
        member: &'a [u8],
    },
    /// Members may have missed messages that the sender could not publish.
    Resync,
    /// An event that is stored, of a room with history.
    Stored {
        /// Its place in the room's history.
        position: Position,
        /// The connection of the batch's origin that sent it, if one did.
        sender: Option<ConnectionId>,
        /// The event's JSON text without its offset.
        event: &'a str,
    },
    /// The companion of a traced message that follows, in this batch or a later one of the room.
    Companion(&'a [u8]),
    /// Nothing new: the header repeats the last batch's sequence.
    Quiet {
        /// Milliseconds since that batch was sent.
        since_ms: u32,
    },
}

/// Why bytes are not a batch.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Too short, or the magic bytes are others.
    #[error("not a batch")]
    NotABatch,
    /// A version that this program does not know.
    #[error("batch version {0}, expected {VERSION}")]
    Version(u8),
    /// A compressed batch that does not unpack to the length it declares.
    #[error("the compressed records do not unpack to what they declare")]
    Compression,
    /// A record that does not fit its batch or its kind.
    #[error("a record is malformed")]
    Record,
}

/// Appends an event to `records`.
pub fn push_event(records: &mut Vec<u8>, event: &[u8]) {
    push(records, KIND_EVENT, event);
}

/// Appends a resync record to `records`.
pub fn push_resync(records: &mut Vec<u8>) {
    push(records, KIND_RESYNC, &[]);
}

/// Appends the companion of a traced message (see [`crate::trace::context::Carried`]) to `records`.
pub fn push_companion(records: &mut Vec<u8>, companion: &[u8]) {
    push(records, KIND_COMPANION, companion);
}

/// Appends to `records` that nothing has been sent for `since_ms` milliseconds.
pub fn push_quiet(records: &mut Vec<u8>, since_ms: u32) {
    push(records, KIND_QUIET, &since_ms.to_le_bytes());
}

/// A connection as a stored event carries it.
pub fn sender_bytes(sender: Option<ConnectionId>) -> [u8; 8] {
    let Some(ConnectionId { shard, slot, generation }) = sender else { return [NO_SHARD; 8] };
    let [s0, s1, s2, _] = slot.to_le_bytes();
    let [g0, g1, g2, g3] = generation.to_le_bytes();
    [shard.0, s0, s1, s2, g0, g1, g2, g3]
}

/// Reads what [`sender_bytes`] wrote.
pub fn sender_from(bytes: [u8; 8]) -> Option<ConnectionId> {
    let [shard, s0, s1, s2, g0, g1, g2, g3] = bytes;
    (usize::from(shard) < limits::SHARDS).then(|| ConnectionId {
        shard: ShardId(shard),
        slot: u32::from_le_bytes([s0, s1, s2, 0]),
        generation: u32::from_le_bytes([g0, g1, g2, g3]),
    })
}

fn push(records: &mut Vec<u8>, kind: u8, body: &[u8]) {
    records.push(kind);
    records.extend_from_slice(&(body.len() as u32).to_le_bytes());
    records.extend_from_slice(body);
}

/// The header of an uncompressed batch; records may follow it as they are.
pub fn header(header: Header) -> [u8; HEADER_BYTES] {
    let (number, begins) = match header.sequence {
        Sequence::Unnumbered => (0, 0),
        Sequence::Begins(number) => (number, NUMBERING_BEGINS),
        Sequence::Follows(number) => (number, 0),
    };
    let mut bytes = [0; HEADER_BYTES];
    bytes[..3].copy_from_slice(&MAGIC);
    bytes[3] = VERSION;
    bytes[4] = begins | if header.from_script { FROM_SCRIPT } else { 0 };
    bytes[5..13].copy_from_slice(&header.origin.0.to_le_bytes());
    bytes[13..21].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Packs batches, compressing them when that makes them smaller.
pub struct Packer {
    compressor: Compressor<'static>,
    compress_from: usize,
}

impl Packer {
    /// A packer that tries to compress records of `compress_from` bytes and more.
    ///
    /// # Errors
    /// When zstd cannot allocate its context.
    pub fn new(compress_from: usize) -> std::io::Result<Self> {
        Ok(Self { compressor: Compressor::new(COMPRESSION_LEVEL)?, compress_from })
    }

    /// The batch of `records` (see [`push_event`]).
    pub fn pack(&mut self, head: Header, records: &[u8]) -> Vec<u8> {
        let mut batch = Vec::with_capacity(HEADER_BYTES + records.len());
        batch.extend_from_slice(&header(head));
        if records.len() >= self.compress_from
            && let Ok(packed) = self.compressor.compress(records)
            && packed.len() + size_of::<u32>() < records.len()
        {
            batch[4] |= COMPRESSED;
            batch.extend_from_slice(&(records.len() as u32).to_le_bytes());
            batch.extend_from_slice(&packed);
        } else {
            batch.extend_from_slice(records);
        }
        batch
    }
}

/// Reads a batch's header without looking at its records.
///
/// # Errors
/// When `batch` does not begin like a batch of this version.
pub fn parse_header(batch: &[u8]) -> Result<Header, BatchError> {
    if batch.len() < HEADER_BYTES || batch[..3] != MAGIC {
        return Err(BatchError::NotABatch);
    }
    if batch[3] != VERSION {
        return Err(BatchError::Version(batch[3]));
    }
    let number = u64_at(batch, 13);
    let sequence = match number {
        0 => Sequence::Unnumbered,
        n if batch[4] & NUMBERING_BEGINS != 0 => Sequence::Begins(n),
        n => Sequence::Follows(n),
    };
    let from_script = batch[4] & FROM_SCRIPT != 0;
    Ok(Header { origin: Origin(u64_at(batch, 5)), sequence, from_script })
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// Unpacks batches.
pub struct Unpacker {
    decompressor: Decompressor<'static>,
}

impl Unpacker {
    /// An unpacker.
    ///
    /// # Errors
    /// When zstd cannot allocate its context.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { decompressor: Decompressor::new()? })
    }

    /// The bytes of `batch`'s records, for [`parse_records`].
    ///
    /// # Errors
    /// When the header or the compression is malformed. Nothing larger than [`RECORDS_BYTES`] is
    /// allocated.
    pub fn unpack<'a>(&mut self, batch: &'a [u8]) -> Result<Cow<'a, [u8]>, BatchError> {
        parse_header(batch)?;
        let body = &batch[HEADER_BYTES..];
        if batch[4] & COMPRESSED == 0 {
            return Ok(Cow::Borrowed(body));
        }
        let (length, packed) = body.split_first_chunk::<4>().ok_or(BatchError::Compression)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > RECORDS_BYTES {
            return Err(BatchError::Compression);
        }
        let mut records = Vec::with_capacity(length);
        match self.decompressor.decompress_to_buffer(packed, &mut records) {
            Ok(written) if written == length => Ok(Cow::Owned(records)),
            _ => Err(BatchError::Compression),
        }
    }
}

/// Reads the records of a batch, in order. Records of an unknown kind are left out, so that a later
/// program can add kinds.
///
/// # Errors
/// When a record does not fit the rest of the bytes or its kind.
pub fn parse_records(mut rest: &[u8]) -> Result<Vec<Record<'_>>, BatchError> {
    let mut records = Vec::new();
    while let Some((&kind, after)) = rest.split_first() {
        let (length, after) = after.split_first_chunk::<4>().ok_or(BatchError::Record)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (body, after) = after.split_at_checked(length).ok_or(BatchError::Record)?;
        rest = after;
        match kind {
            KIND_EVENT => {
                let text = std::str::from_utf8(body).map_err(|_| BatchError::Record)?;
                records.push(Record::Event(text));
            }
            KIND_PRESENCE => {
                let (&joined, body) = body.split_first().ok_or(BatchError::Record)?;
                let (count, member) = body.split_first_chunk::<4>().ok_or(BatchError::Record)?;
                let member_count = u32::from_le_bytes(*count);
                records.push(Record::Presence { joined: joined != 0, member_count, member });
            }
            KIND_RESYNC => records.push(Record::Resync),
            KIND_STORED => records.push(stored(body)?),
            KIND_COMPANION => records.push(Record::Companion(body)),
            KIND_QUIET => {
                let since = body.first_chunk::<4>().ok_or(BatchError::Record)?;
                records.push(Record::Quiet { since_ms: u32::from_le_bytes(*since) });
            }
            _ => {}
        }
    }
    Ok(records)
}

fn stored(body: &[u8]) -> Result<Record<'_>, BatchError> {
    let (head, event) = body.split_first_chunk::<STORED_HEADER_BYTES>().ok_or(BatchError::Record)?;
    let mut sender = [0; 8];
    sender.copy_from_slice(&head[16..]);
    let position = Position { epoch: Epoch(u64_at(head, 0)), offset: u64_at(head, 8) };
    let event = std::str::from_utf8(event).map_err(|_| BatchError::Record)?;
    // Offsets begin at 1, and one more than any of them is still a number.
    let valid = (1..u64::MAX).contains(&position.offset) && event.ends_with('}');
    valid.then_some(Record::Stored { position, sender: sender_from(sender), event }).ok_or(BatchError::Record)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(sequence: Sequence) -> Header {
        Header { origin: Origin(0x0102_0304_0506_0708), sequence, from_script: false }
    }

    fn events(texts: &[String]) -> Vec<u8> {
        let mut records = Vec::new();
        for text in texts {
            push_event(&mut records, text.as_bytes());
        }
        records
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut records = Vec::new();
        push_event(&mut records, b"{}");
        let batch = Packer::new(usize::MAX).unwrap().pack(head(Sequence::Begins(9)), &records);
        let expected = [
            0xF5, b'T', b'F', 1, 2, 8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, b'{', b'}',
        ];
        assert_eq!(batch, expected);
    }

    #[test]
    fn unknown_kinds_are_left_out() {
        let mut records = Vec::new();
        push(&mut records, 99, b"later");
        push_resync(&mut records);
        let batch = Packer::new(usize::MAX).unwrap().pack(head(Sequence::Unnumbered), &records);
        assert_eq!(parse_records(&batch[HEADER_BYTES..]).unwrap(), [Record::Resync]);
    }

    #[test]
    fn a_stored_event_is_read_as_the_script_writes_it() {
        let sender = ConnectionId { shard: ShardId(3), slot: 0x12_3456, generation: 0x789A_BCDE };
        for sender in [Some(sender), None] {
            let mut body = [&7_u64.to_le_bytes()[..], &9_u64.to_le_bytes(), &sender_bytes(sender)].concat();
            body.extend_from_slice(b"{}");
            let mut records = Vec::new();
            push(&mut records, KIND_STORED, &body);
            let position = Position { epoch: Epoch(7), offset: 9 };
            assert_eq!(parse_records(&records).unwrap(), [Record::Stored { position, sender, event: "{}" }]);
            for end in 0..records.len() - 1 {
                assert!(end == 0 || parse_records(&records[..end]).is_err());
            }
        }
    }

    #[test]
    fn a_batch_that_declares_too_much_is_refused() {
        let mut batch = header(head(Sequence::Unnumbered)).to_vec();
        batch[4] |= COMPRESSED;
        batch.extend_from_slice(&(RECORDS_BYTES as u32 + 1).to_le_bytes());
        batch.extend_from_slice(&Compressor::new(1).unwrap().compress(&vec![0; RECORDS_BYTES + 1]).unwrap());
        assert_eq!(Unpacker::new().unwrap().unpack(&batch), Err(BatchError::Compression));
    }

    #[test]
    fn a_batch_that_inflates_beyond_what_it_declares_is_refused() {
        let records = events(&vec!["a".repeat(1_000); 100]);
        let mut batch = Packer::new(0).unwrap().pack(head(Sequence::Follows(1)), &records);
        assert!(batch.len() < records.len());
        batch[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&1_000u32.to_le_bytes());
        assert_eq!(Unpacker::new().unwrap().unpack(&batch), Err(BatchError::Compression));
    }

    #[test]
    fn another_version_is_named() {
        let mut batch = header(head(Sequence::Unnumbered));
        batch[3] = 7;
        assert_eq!(parse_header(&batch), Err(BatchError::Version(7)));
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_out(
            texts in proptest::collection::vec(any::<String>(), 0..40),
            compress_from in prop_oneof![Just(0usize), Just(200), Just(usize::MAX)],
            number in 0u64..5, begins: bool, from_script: bool,
        ) {
            let sequence = match (number, begins) {
                (0, _) => Sequence::Unnumbered,
                (n, true) => Sequence::Begins(n),
                (n, false) => Sequence::Follows(n),
            };
            let head = Header { origin: Origin(77), sequence, from_script };
            let batch = Packer::new(compress_from).unwrap().pack(head, &events(&texts));
            prop_assert_eq!(parse_header(&batch), Ok(head));
            let records = Unpacker::new().unwrap().unpack(&batch).unwrap();
            let expected: Vec<Record> = texts.iter().map(|t| Record::Event(t)).collect();
            prop_assert_eq!(parse_records(&records).unwrap(), expected);
        }

        #[test]
        fn any_bytes_give_records_or_an_error(
            body in proptest::collection::vec(any::<u8>(), 0..200), flags: u8, valid_head: bool,
        ) {
            let mut bytes = if valid_head { header(head(Sequence::Follows(1))).to_vec() } else { Vec::new() };
            if valid_head {
                bytes[4] = flags;
            }
            bytes.extend_from_slice(&body);
            if let Ok(records) = Unpacker::new().unwrap().unpack(&bytes) {
                prop_assert!(records.len() <= RECORDS_BYTES);
                let _ = parse_records(&records);
            }
        }

        #[test]
        fn garbled_and_truncated_batches_never_panic(
            texts in proptest::collection::vec("[a-z]{0,300}", 1..10),
            compress: bool, at in any::<prop::sample::Index>(), with: u8, cut in any::<prop::sample::Index>(),
        ) {
            let from = if compress { 0 } else { usize::MAX };
            let mut batch = Packer::new(from).unwrap().pack(head(Sequence::Follows(3)), &events(&texts));
            let place = at.index(batch.len());
            batch[place] ^= with;
            batch.truncate(cut.index(batch.len() + 1));
            if let Ok(records) = Unpacker::new().unwrap().unpack(&batch) {
                let _ = parse_records(&records);
            }
        }
    }
}
