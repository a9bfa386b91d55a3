//! The histories of the rooms that one shard is home to, when there is no cluster to keep them. A history
//! outlives its last member for as long as its messages are kept, so that members can come back.

use bytes::Bytes;
use hashbrown::HashMap;

use super::history::{Bounds, Epoch, History, NotRecovered, Position};
use super::repetitions::Repetitions;
use crate::identity::RoomId;

#[derive(Debug)]
struct Kept {
    history: History,
    repetitions: Repetitions,
    /// When the room was last stored to or asked about.
    used_ms: u64,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is new: its offset, and the frame that members get.
    New(u64, Bytes),
    /// It was sent before, and has this offset.
    Repeated(u64),
}

/// All those histories.
#[derive(Debug)]
pub struct Archive {
    rooms: HashMap<RoomId, Kept, crate::hashing::Hashing>,
    bounds: Bounds,
    /// Bytes of all kept frames.
    bytes: usize,
    most_bytes: usize,
    /// From which the next room's epoch is made.
    seed: u64,
}

impl Archive {
    /// An archive of nothing. `bounds` hold for each room, `most_bytes` for the frames of all; `seed` is a number
    /// that no other archive has had, also not in an earlier process.
    pub fn new(bounds: Bounds, most_bytes: usize, seed: u64) -> Self {
        Self { rooms: HashMap::default(), bounds, bytes: 0, most_bytes, seed }
    }

    fn open(&mut self, room: &RoomId, now_ms: u64) -> &mut Kept {
        let seed = &mut self.seed;
        let kept = self.rooms.entry(room.clone()).or_insert_with(|| Kept {
            history: History::after(Position { epoch: next_epoch(seed), offset: 0 }),
            repetitions: Repetitions::default(),
            used_ms: now_ms,
        });
        kept.used_ms = now_ms;
        let before = kept.history.bytes();
        kept.history.trim(now_ms, &self.bounds);
        self.bytes -= before - kept.history.bytes();
        kept
    }

    /// Adds a message. `name` is its sender and its `messageId`, if it has one; `encode` makes its frame once its
    /// offset is known.
    pub fn append(
        &mut self,
        room: &RoomId,
        name: Option<(&str, &str)>,
        now_ms: u64,
        encode: impl FnOnce(u64) -> Bytes,
    ) -> Appended {
        let (bounds, room_for) = (self.bounds, self.most_bytes.saturating_sub(self.bytes));
        let kept = self.open(room, now_ms);
        if let Some((user, message_id)) = name
            && let Some(offset) = kept.repetitions.find(user, message_id, now_ms)
        {
            return Appended::Repeated(offset);
        }
        let offset = kept.history.position().offset + 1;
        let frame = encode(offset);
        let before = kept.history.bytes();
        // When all rooms together have too much, the one that grows gives up its oldest messages.
        let bytes = bounds.bytes.min(before.saturating_add(room_for));
        kept.history.append(frame.clone(), now_ms, &Bounds { bytes, ..bounds });
        if let Some((user, message_id)) = name {
            kept.repetitions.note(user, message_id, offset, now_ms);
        }
        let after = kept.history.bytes();
        self.bytes = self.bytes + after - before;
        Appended::New(offset, frame)
    }

    /// Where the room stands; from now on it has an epoch.
    pub fn position(&mut self, room: &RoomId, now_ms: u64) -> Position {
        self.open(room, now_ms).history.position()
    }

    /// As [`History::recover`].
    ///
    /// # Errors
    /// As [`History::recover`].
    pub fn recover(
        &mut self,
        room: &RoomId,
        since: Position,
        most_bytes: usize,
        now_ms: u64,
    ) -> Result<Vec<Bytes>, NotRecovered> {
        Ok(self.open(room, now_ms).history.recover(since, most_bytes)?.cloned().collect())
    }

    /// As [`History::page`].
    pub fn page(
        &mut self,
        room: &RoomId,
        since: Option<u64>,
        limit: usize,
        reverse: bool,
        now_ms: u64,
    ) -> Vec<Bytes> {
        self.open(room, now_ms).history.page(since, limit, reverse)
    }

    /// Forgets what is too old, and rooms of which nothing is left unless they are `in_use`: members know the
    /// epoch and count on it.
    pub fn sweep(&mut self, now_ms: u64, in_use: impl Fn(&RoomId) -> bool) {
        let Self { rooms, bounds, bytes, .. } = self;
        rooms.retain(|room, kept| {
            let before = kept.history.bytes();
            kept.history.trim(now_ms, bounds);
            *bytes -= before - kept.history.bytes();
            kept.repetitions.forget(now_ms);
            let unused = now_ms.saturating_sub(kept.used_ms) >= bounds.ttl_ms;
            let empty = kept.history.is_empty() && kept.repetitions.is_empty();
            !(unused && empty) || in_use(room)
        });
    }

    /// Bytes of all kept frames.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// SplitMix64: the numbers of one seed do not repeat, and those of others are as good as random to them.
fn next_epoch(seed: &mut u64) -> Epoch {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Epoch(mixed ^ (mixed >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { size: 10, bytes: 100, ttl_ms: 1_000 };

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    fn add(archive: &mut Archive, name: &str, bytes: usize, now_ms: u64) -> u64 {
        match archive.append(&room(name), None, now_ms, |_| Bytes::from(vec![0; bytes])) {
            Appended::New(offset, _) => offset,
            Appended::Repeated(_) => panic!("nothing was repeated"),
        }
    }

    #[test]
    fn offsets_rise_by_one_and_a_repetition_has_the_first() {
        let mut archive = Archive::new(BOUNDS, 1_000, 1);
        assert_eq!((add(&mut archive, "r", 1, 0), add(&mut archive, "r", 1, 0)), (1, 2));
        let named = |archive: &mut Archive| {
            archive.append(&room("r"), Some(("u", "m")), 0, |offset| offset.to_string().into())
        };
        assert_eq!(named(&mut archive), Appended::New(3, Bytes::from_static(b"3")));
        assert_eq!(named(&mut archive), Appended::Repeated(3));
        assert_eq!(add(&mut archive, "r", 1, 0), 4);
        assert_eq!(add(&mut archive, "other", 1, 0), 1);
    }

    #[test]
    fn a_room_is_forgotten_with_its_last_message_unless_it_is_in_use() {
        let mut archive = Archive::new(BOUNDS, 1_000, 1);
        add(&mut archive, "r", 1, 0);
        let before = archive.position(&room("r"), 0);
        archive.sweep(999, |_| false);
        assert_eq!(archive.position(&room("r"), 0), before);
        archive.sweep(1_000, |_| true);
        assert_eq!(archive.bytes(), 0);
        assert_eq!(archive.position(&room("r"), 0), before);
        archive.sweep(1_000, |_| false);
        let after = archive.position(&room("r"), 1_000);
        assert_eq!(after.offset, 0);
        assert_ne!(after.epoch, before.epoch, "the numbering begins anew and must not look like the old one");
    }

    #[test]
    fn the_room_that_grows_pays_when_all_have_too_much() {
        let mut archive = Archive::new(BOUNDS, 150, 1);
        (0..10).for_each(|_| _ = add(&mut archive, "first", 10, 0));
        (0..10).for_each(|_| _ = add(&mut archive, "second", 10, 0));
        assert_eq!(archive.bytes(), 150);
        let kept = |archive: &mut Archive, name| archive.page(&room(name), None, 99, false, 0).len();
        assert_eq!((kept(&mut archive, "first"), kept(&mut archive, "second")), (10, 5));
        assert_eq!(archive.position(&room("second"), 0).offset, 10);
    }
}
