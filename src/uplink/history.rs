//! Calls of `history.lua`, the script that numbers and stores messages, and their answers.

use bytes::Bytes;
use redis::{Cmd, Script, Value, cmd};

use super::batch::{self, Header, Origin, Sequence};
use super::presence::bytes_of;
use crate::command::event;
use crate::config::HistorySettings;
use crate::identity::{ConnectionId, RoomId};
use crate::room::history::{Epoch, Position};
use crate::shard::envelope::{ReadHistory, Store};

const TEXT: &str = include_str!("history.lua");

/// Which rooms have history, and what one reply may hold of it.
#[derive(Clone, Debug)]
pub struct HistoryRules {
    /// The rooms, and how much of each is kept.
    pub settings: HistorySettings,
    /// Bytes of messages in one reply to a client at most.
    pub reply_bytes: usize,
}

impl HistoryRules {
    /// No room has history.
    pub fn none() -> Self {
        Self { settings: HistorySettings::none(), reply_bytes: 0 }
    }
}

/// One operation of the script that reads.
#[derive(Debug)]
pub enum Call {
    /// Where a followed room stands, and what it keeps.
    Read(Read),
    /// A page for a client.
    Page(Box<ReadHistory>),
    /// Where rooms stand.
    Positions(Vec<RoomId>),
    /// Checks the rights of the connection's user; answered with the first that is missing.
    Probe,
}

/// A read of one followed room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The room.
    pub room: RoomId,
    /// Which follower of the room asks: it may have been given up before the answer comes.
    pub follower: u64,
    /// What is wanted.
    pub extent: Extent,
}

/// How much of a room is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The position alone.
    Position,
    /// Messages after this offset.
    After(u64),
    /// All that is kept.
    Whole,
}

/// The answer to [`Call::Read`].
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where the room stands.
    pub position: Position,
    /// Whether more would have been given if there were no bound of bytes.
    pub cut: bool,
    /// The messages up to `position` without a gap, oldest first.
    pub messages: Vec<KeptMessage>,
}

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptMessage {
    /// Milliseconds since it was stored.
    pub age_ms: u64,
    /// The process that stored it.
    pub origin: Origin,
    /// The connection of that process that sent it.
    pub sender: Option<ConnectionId>,
    /// The frame that members get.
    pub frame: Bytes,
}

/// Makes the script's commands for one process.
#[derive(Debug)]
pub struct HistoryCaller {
    script: Script,
    prefix: String,
    origin: Origin,
    rules: HistoryRules,
}

impl HistoryCaller {
    /// The caller for one process.
    pub fn new(prefix: &str, origin: Origin, rules: HistoryRules) -> Self {
        Self { script: Script::new(TEXT), prefix: prefix.to_owned(), origin, rules }
    }

    /// The rules that calls follow.
    pub fn rules(&self) -> &HistoryRules {
        &self.rules
    }

    fn begin(&self, operation: &str, with_text: bool) -> Cmd {
        let mut command = if with_text { cmd("EVAL") } else { cmd("EVALSHA") };
        command.arg(if with_text { TEXT } else { self.script.get_hash() });
        command.arg(0).arg(&self.prefix).arg(operation);
        command
    }

    fn ttl_ms(&self) -> u64 {
        self.rules.settings.ttl.as_millis() as u64
    }

    /// The Redis command of a reading call: EVAL with the script's text, which also loads it, or EVALSHA. `fresh`
    /// is a random number for a room that has no epoch.
    pub fn command(&self, call: &Call, fresh: Epoch, with_text: bool) -> Cmd {
        let fresh = &fresh.0.to_le_bytes()[..];
        match call {
            Call::Read(Read { room, extent, .. }) => {
                let (after, most) = match extent {
                    Extent::Position => (0, 0),
                    Extent::After(offset) => (*offset, crate::limits::HISTORY_BYTES),
                    Extent::Whole => (0, crate::limits::HISTORY_BYTES),
                };
                let mut command = self.begin("read", with_text);
                command.arg(room.as_str()).arg(self.ttl_ms()).arg(fresh).arg(after).arg(most);
                command
            }
            Call::Page(request) => {
                let ReadHistory { room, since, limit, reverse, .. } = &**request;
                let mut command = self.begin("page", with_text);
                command.arg(room.as_str()).arg(self.ttl_ms()).arg(fresh);
                match since {
                    Some(Position { epoch, offset }) => {
                        command.arg(&epoch.0.to_le_bytes()[..]).arg(offset.min(&LARGEST_OFFSET))
                    }
                    None => command.arg("").arg(""),
                };
                command.arg(*limit).arg(self.rules.reply_bytes).arg(u8::from(*reverse));
                command
            }
            Call::Positions(rooms) => {
                let mut command = self.begin("positions", with_text);
                rooms.iter().for_each(|room| {
                    command.arg(room.as_str());
                });
                command
            }
            Call::Probe => self.begin("probe", with_text),
        }
    }

    /// The command that stores `rooms`, the process's call of this number. With the script's text it may follow
    /// any earlier call, without it only the one before.
    pub fn publish(&self, rooms: &[StoredRoom], number: u64, fresh: Epoch, with_text: bool) -> Cmd {
        let head = Header { origin: self.origin, sequence: Sequence::Unnumbered, from_script: true };
        let mut command = self.begin("publish", with_text);
        command.arg(number).arg(u8::from(with_text)).arg(format!("{:016x}", self.origin.0));
        command.arg(&batch::header(head)[..]).arg(self.rules.settings.size).arg(self.ttl_ms());
        command.arg(&fresh.0.to_le_bytes()[..]);
        for StoredRoom { room, stores } in rooms {
            command.arg(room.as_str()).arg(stores.len());
            for store in stores {
                command.arg(repetition_name(store)).arg(&batch::sender_bytes(store.sender)[..]);
                command.arg(&store.event[..]);
            }
        }
        command
    }
}

/// The largest offset that the script's numbers (doubles) tell from its neighbours; no room comes this far.
const LARGEST_OFFSET: u64 = (1 << 53) - 1;

/// Messages of one room in a call, in their order.
#[derive(Debug)]
pub struct StoredRoom {
    /// The room.
    pub room: RoomId,
    /// The messages.
    pub stores: Vec<Store>,
}

/// By what a repetition is known: the user, and the `messageId`. The length in front keeps users from writing
/// names that are another user's. Empty for what cannot be repeated.
fn repetition_name(store: &Store) -> String {
    let user = store.user.as_str();
    store.asker.message_id.as_ref().map_or(String::new(), |id| format!("{}:{user}{id}", user.len()))
}

/// Reads the answer to a publishing call: each message's offset.
pub fn decode_offsets(value: &Value) -> Option<Vec<u64>> {
    let Value::Array(offsets) = value else { return None };
    let offset = |value: &Value| if let Value::Int(n) = value { u64::try_from(*n).ok() } else { None };
    offsets.iter().map(offset).collect()
}

/// Reads the answer to [`Call::Read`].
pub fn decode_kept(value: &Value) -> Option<Kept> {
    let Value::Array(parts) = value else { return None };
    let [epoch, offset, Value::Int(cut), messages @ ..] = &parts[..] else { return None };
    let position = decode_position(epoch, offset)?;
    let mut kept = Vec::with_capacity(messages.len() / 3);
    for (message, offset) in messages.chunks_exact(3).zip((1..=position.offset).rev()) {
        let [Value::Int(age), sender, text] = message else { return None };
        let (origin, sender) = bytes_of(sender)?.split_first_chunk::<8>()?;
        kept.push(KeptMessage {
            age_ms: u64::try_from(*age).unwrap_or(0),
            origin: Origin(u64::from_le_bytes(*origin)),
            sender: batch::sender_from(*sender.first_chunk()?),
            frame: frame(text, offset)?,
        });
    }
    kept.reverse();
    Some(Kept { position, cut: *cut == 1, messages: kept })
}

/// Reads the answer to [`Call::Page`]: the room's position and the frames.
pub fn decode_page(value: &Value) -> Option<(Position, Vec<Bytes>)> {
    let Value::Array(parts) = value else { return None };
    let [epoch, offset, messages @ ..] = &parts[..] else { return None };
    let frame = |message: &[Value]| frame(&message[1], number(&message[0])?);
    Some((decode_position(epoch, offset)?, messages.chunks_exact(2).map(frame).collect::<Option<_>>()?))
}

/// The frame of a stored event, if it is an object as this program stores it.
fn frame(event: &Value, offset: u64) -> Option<Bytes> {
    let event = std::str::from_utf8(bytes_of(event)?).ok()?;
    event.ends_with('}').then(|| event::numbered(event, offset))
}

/// Reads the answer to [`Call::Positions`]: nothing for a room without one.
pub fn decode_positions(value: &Value) -> Option<Vec<Option<Position>>> {
    let Value::Array(parts) = value else { return None };
    Some(parts.chunks_exact(2).map(|pair| decode_position(&pair[0], &pair[1])).collect())
}

fn decode_position(epoch: &Value, offset: &Value) -> Option<Position> {
    let epoch = Epoch(u64::from_le_bytes(bytes_of(epoch)?.try_into().ok()?));
    Some(Position { epoch, offset: number(offset)? })
}

fn number(value: &Value) -> Option<u64> {
    std::str::from_utf8(bytes_of(value)?).ok()?.parse().ok()
}

/// Random numbers for epochs to begin with: no two processes and no two calls give the same.
#[derive(Debug)]
pub struct Epochs(u64);

impl Epochs {
    /// Numbers that follow from a random `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one (Steele, Lea and Flood's SplitMix64).
    pub fn draw(&mut self) -> Epoch {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Epoch(mixed ^ (mixed >> 31))
    }
}
