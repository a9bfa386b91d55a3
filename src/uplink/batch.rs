//! The binary batch that instances exchange: many events of one channel in one Redis message.
//!
//! All numbers are little-endian. `docs/redis.md` describes the format for other programs.
//!
//! ```text
//!  0  3  magic F5 54 46: F5 begins no UTF-8 text, so a batch is never taken for JSON
//!  3  1  version, 1 or 2
//!  4  1  flags: 1 compressed · 2 numbering begins here · 4 written by a script · 8 with the dictionary (version 2)
//!  5  8  origin: random number of the sending process
//! 13  8  sequence: rises by one per batch of this origin for this room; 0 for not numbered
//! 21     records; if compressed: their length (4), then one zstd frame
//!        record: kind (1), length (4), body
//! ```

use smallvec::SmallVec;

use crate::identity::{ConnectionId, ShardId};
use crate::limits;
use crate::room::history::{Epoch, Position};

/// How a batch begins.
pub const MAGIC: [u8; 3] = [0xF5, b'T', b'F'];

/// The format's first version, which every receiver reads. A receiver drops what has a version that it does not know.
pub const VERSION: u8 = 1;

/// The version for receivers that are known to read it, those that listen to the sender's lane: batches of many
/// targets, and the dictionary.
pub const LANE_VERSION: u8 = 2;

/// Bytes in front of the records.
pub const HEADER_BYTES: usize = 21;

/// Bytes in front of a record's body.
pub const RECORD_HEADER_BYTES: usize = 5;

/// Bytes of a batch's records: what a receiver is ready to allocate for one compressed batch. Far
/// above the batch size that anyone would set, far below what would hurt.
pub const RECORDS_BYTES: usize = 16 << 20;

pub(super) const COMPRESSED: u8 = 1;
const NUMBERING_BEGINS: u8 = 2;
const FROM_SCRIPT: u8 = 4;
pub(super) const WITH_DICTIONARY: u8 = 8;

const KIND_EVENT: u8 = 1;
/// Written by `presence.lua` too.
const KIND_PRESENCE: u8 = 2;
const KIND_RESYNC: u8 = 3;
/// Written by `history.lua`.
const KIND_STORED: u8 = 4;
const KIND_QUIET: u8 = 5;
const KIND_ROOM: u8 = 6;
const KIND_USER: u8 = 7;
const KIND_EVERYONE: u8 = 8;
/// Written by `presence.lua`.
const KIND_CHANGE: u8 = 9;

/// Bytes in front of a section's room: flags, sequence.
const SEQUENCE_BYTES: usize = 9;
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
    /// The presence in front of it is the room's announcement of this number.
    Change(u64),
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

/// Whom the records behind it are for, in a batch of many targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section<'a> {
    /// Members of the room.
    Room {
        /// Its name.
        name: &'a str,
        /// The place of what follows among the sender's batches for this room.
        sequence: Sequence,
    },
    /// The connections of the user.
    User(&'a str),
    /// Everyone.
    Everyone,
}

/// Records of one target: mostly one.
pub type Records<'a> = SmallVec<[Record<'a>; 1]>;

/// Why bytes are not a batch.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Too short, or the magic bytes are others.
    #[error("not a batch")]
    NotABatch,
    /// A version that this program does not know.
    #[error("batch version {0}, expected {VERSION} or {LANE_VERSION}")]
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

/// Appends whom the records behind it are for.
pub fn push_section(records: &mut Vec<u8>, section: Section<'_>) {
    match section {
        Section::Room { name, sequence } => {
            let (number, begins) = sequence_parts(sequence);
            records.push(KIND_ROOM);
            records.extend_from_slice(&((SEQUENCE_BYTES + name.len()) as u32).to_le_bytes());
            records.push(begins);
            records.extend_from_slice(&number.to_le_bytes());
            records.extend_from_slice(name.as_bytes());
        }
        Section::User(name) => push(records, KIND_USER, name.as_bytes()),
        Section::Everyone => push(records, KIND_EVERYONE, &[]),
    }
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

fn sequence_parts(sequence: Sequence) -> (u64, u8) {
    match sequence {
        Sequence::Unnumbered => (0, 0),
        Sequence::Begins(number) => (number, NUMBERING_BEGINS),
        Sequence::Follows(number) => (number, 0),
    }
}

fn sequence_of(number: u64, flags: u8) -> Sequence {
    match number {
        0 => Sequence::Unnumbered,
        n if flags & NUMBERING_BEGINS != 0 => Sequence::Begins(n),
        n => Sequence::Follows(n),
    }
}

/// The header of an uncompressed batch; records may follow it as they are.
pub fn header(header: Header) -> [u8; HEADER_BYTES] {
    let (number, begins) = sequence_parts(header.sequence);
    let mut bytes = [0; HEADER_BYTES];
    bytes[..3].copy_from_slice(&MAGIC);
    bytes[3] = VERSION;
    bytes[4] = begins | if header.from_script { FROM_SCRIPT } else { 0 };
    bytes[5..13].copy_from_slice(&header.origin.0.to_le_bytes());
    bytes[13..21].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Reads a batch's header without looking at its records.
///
/// # Errors
/// When `batch` does not begin like a batch of this version.
pub fn parse_header(batch: &[u8]) -> Result<Header, BatchError> {
    if batch.len() < HEADER_BYTES || batch[..3] != MAGIC {
        return Err(BatchError::NotABatch);
    }
    if !(VERSION..=LANE_VERSION).contains(&batch[3]) {
        return Err(BatchError::Version(batch[3]));
    }
    let sequence = sequence_of(u64_at(batch, 13), batch[4]);
    let from_script = batch[4] & FROM_SCRIPT != 0;
    Ok(Header { origin: Origin(u64_at(batch, 5)), sequence, from_script })
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// Reads the records of a batch, in order. Records of an unknown kind are left out, so that a later
/// program can add kinds.
///
/// # Errors
/// When a record does not fit the rest of the bytes or its kind.
pub fn parse_records(mut rest: &[u8]) -> Result<Vec<Record<'_>>, BatchError> {
    let mut records = Vec::new();
    while let Some((kind, body)) = next_record(&mut rest)? {
        records.extend(record(kind, body)?);
    }
    Ok(records)
}

/// Reads the records of a batch of many targets. Those of sections that are not `wanted` are left out, and not
/// looked at beyond their lengths.
///
/// # Errors
/// When a record does not fit the rest of the bytes or its kind, or stands in front of the first section.
pub fn parse_sections<'a>(
    mut rest: &'a [u8],
    mut wanted: impl FnMut(&Section<'a>) -> bool,
) -> Result<Vec<(Section<'a>, Records<'a>)>, BatchError> {
    let mut sections: Vec<(Section<'a>, Records<'a>)> = Vec::new();
    // Nothing in front of the first section, false while its records are left out.
    let mut takes = None;
    while let Some((kind, body)) = next_record(&mut rest)? {
        if let Some(section) = section(kind, body)? {
            let takes = *takes.insert(wanted(&section));
            if takes {
                sections.push((section, Records::new()));
            }
            continue;
        }
        match (takes, sections.last_mut()) {
            (Some(true), Some((_, records))) => records.extend(record(kind, body)?),
            (None, _) => return Err(BatchError::Record),
            _ => {}
        }
    }
    Ok(sections)
}

/// Kind and body of the next record, which is taken off `rest`.
fn next_record<'a>(rest: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, BatchError> {
    let Some((&kind, after)) = rest.split_first() else { return Ok(None) };
    let (length, after) = after.split_first_chunk::<4>().ok_or(BatchError::Record)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (body, after) = after.split_at_checked(length).ok_or(BatchError::Record)?;
    *rest = after;
    Ok(Some((kind, body)))
}

fn text(bytes: &[u8]) -> Result<&str, BatchError> {
    std::str::from_utf8(bytes).map_err(|_| BatchError::Record)
}

/// The section that begins with this record, if one does.
fn section(kind: u8, body: &[u8]) -> Result<Option<Section<'_>>, BatchError> {
    Ok(Some(match kind {
        KIND_ROOM => {
            let (head, name) = body.split_first_chunk::<SEQUENCE_BYTES>().ok_or(BatchError::Record)?;
            Section::Room { name: text(name)?, sequence: sequence_of(u64_at(head, 1), head[0]) }
        }
        KIND_USER => Section::User(text(body)?),
        KIND_EVERYONE => Section::Everyone,
        _ => return Ok(None),
    }))
}

/// What the record says; nothing if its kind is unknown.
fn record(kind: u8, body: &[u8]) -> Result<Option<Record<'_>>, BatchError> {
    Ok(Some(match kind {
        KIND_EVENT => Record::Event(text(body)?),
        KIND_PRESENCE => {
            let (&joined, body) = body.split_first().ok_or(BatchError::Record)?;
            let (count, member) = body.split_first_chunk::<4>().ok_or(BatchError::Record)?;
            let member_count = u32::from_le_bytes(*count);
            Record::Presence { joined: joined != 0, member_count, member }
        }
        KIND_CHANGE => Record::Change(u64::from_le_bytes(*body.first_chunk().ok_or(BatchError::Record)?)),
        KIND_RESYNC => Record::Resync,
        KIND_STORED => stored(body)?,
        KIND_COMPANION => Record::Companion(body),
        KIND_QUIET => {
            let since = body.first_chunk::<4>().ok_or(BatchError::Record)?;
            Record::Quiet { since_ms: u32::from_le_bytes(*since) }
        }
        _ => return Ok(None),
    }))
}

fn stored(body: &[u8]) -> Result<Record<'_>, BatchError> {
    let (head, event) = body.split_first_chunk::<STORED_HEADER_BYTES>().ok_or(BatchError::Record)?;
    let mut sender = [0; 8];
    sender.copy_from_slice(&head[16..]);
    let position = Position { epoch: Epoch(u64_at(head, 0)), offset: u64_at(head, 8) };
    let event = text(event)?;
    // Offsets begin at 1, and one more than any of them is still a number.
    let valid = (1..u64::MAX).contains(&position.offset) && event.ends_with('}');
    valid.then_some(Record::Stored { position, sender: sender_from(sender), event }).ok_or(BatchError::Record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(sequence: Sequence) -> Header {
        Header { origin: Origin(0x0102_0304_0506_0708), sequence, from_script: false }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut batch = header(head(Sequence::Begins(9))).to_vec();
        push_event(&mut batch, b"{}");
        let expected = [
            0xF5, b'T', b'F', 1, 2, 8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, b'{', b'}',
        ];
        assert_eq!(batch, expected);
        let mut records = Vec::new();
        push_section(&mut records, Section::Room { name: "r", sequence: Sequence::Begins(9) });
        push_section(&mut records, Section::User("u"));
        push_section(&mut records, Section::Everyone);
        let expected = [6, 10, 0, 0, 0, 2, 9, 0, 0, 0, 0, 0, 0, 0, b'r', 7, 1, 0, 0, 0, b'u', 8, 0, 0, 0, 0];
        assert_eq!(records, expected);
    }

    #[test]
    fn unknown_kinds_are_left_out() {
        let mut records = Vec::new();
        push(&mut records, 99, b"later");
        push_resync(&mut records);
        assert_eq!(parse_records(&records).unwrap(), [Record::Resync]);
    }

    #[test]
    fn sections_that_are_not_wanted_are_left_out() {
        let mut records = Vec::new();
        let of = |name, number| Section::Room { name, sequence: Sequence::Follows(number) };
        push_section(&mut records, of("a", 1));
        push_event(&mut records, b"1");
        push_quiet(&mut records, 7);
        push_section(&mut records, of("b", 2));
        push_event(&mut records, b"\xff is no text, and nobody looks");
        push_section(&mut records, Section::User("u"));
        push_event(&mut records, b"2");
        let wanted = |section: &Section<'_>| *section != of("b", 2);
        let sections = parse_sections(&records, wanted).unwrap();
        let first = [Record::Event("1"), Record::Quiet { since_ms: 7 }];
        assert_eq!(sections.len(), 2);
        assert_eq!((sections[0].0, &sections[0].1[..]), (of("a", 1), &first[..]));
        assert_eq!((sections[1].0, &sections[1].1[..]), (Section::User("u"), &[Record::Event("2")][..]));
        assert_eq!(parse_sections(&records, |_| true), Err(BatchError::Record));
        let mut headless = Vec::new();
        push_event(&mut headless, b"1");
        assert_eq!(parse_sections(&headless, |_| true), Err(BatchError::Record));
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
    fn another_version_is_named() {
        let mut batch = header(head(Sequence::Unnumbered));
        batch[3] = 7;
        assert_eq!(parse_header(&batch), Err(BatchError::Version(7)));
    }
}
