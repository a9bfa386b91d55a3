//! The histories of the rooms that one shard is home to, when there is no cluster to keep them. A history
//! outlives its last member for as long as its messages are kept, so that members can come back.

use bytes::Bytes;
use hashbrown::HashMap;

use super::history::{Bounds, Epoch, History, NotRecovered, Position};
use super::repetitions::Repetitions;
use super::weights::Weights;
use crate::identity::RoomId;
use crate::limits::EMPTY_ROOMS;

/// Bytes that a room takes besides what it keeps: its name twice, its places in the tables.
const ROOM_BYTES: usize = 512;

/// Rooms looked at in one go, at least: a fraction of a millisecond.
const ROOMS_PER_SWEEP: usize = 500;

/// Sweeps in which all rooms are looked at once, if there are many.
const SWEEPS_PER_ROUND: usize = 100;

#[derive(Debug)]
struct Kept {
    room: RoomId,
    history: History,
    repetitions: Repetitions,
    /// When the room was last stored to or asked about.
    used_ms: u64,
    /// What it has been counted as.
    weight: usize,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.history.is_empty() && self.repetitions.is_empty()
    }

    /// Bytes that it takes; nothing for a position alone, as those are bounded by their number.
    fn weighed(&self) -> usize {
        if self.is_empty() { 0 } else { ROOM_BYTES + self.history.bytes() + self.repetitions.bytes() }
    }

    fn forget_oldest(&mut self) {
        if self.history.bytes() >= self.repetitions.bytes() && !self.history.is_empty() {
            self.history.forget_oldest();
        } else {
            self.repetitions.forget_oldest();
        }
    }
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
    /// The places of rooms in `kept`.
    rooms: HashMap<RoomId, u32, crate::hashing::Hashing>,
    kept: Vec<Option<Kept>>,
    free: Vec<u32>,
    weights: Weights,
    bounds: Bounds,
    /// The sum of all weights.
    bytes: usize,
    most_bytes: usize,
    /// Rooms of which there is nothing but a position.
    empty: usize,
    /// Where the next sweep begins.
    hand: usize,
    /// From which the next room's epoch is made.
    seed: u64,
}

impl Archive {
    /// An archive of nothing. `bounds` hold for each room, `most_bytes` for what is kept of all; `seed` is a number
    /// that no other archive has had, also not in an earlier process.
    pub fn new(bounds: Bounds, most_bytes: usize, seed: u64) -> Self {
        Self {
            rooms: HashMap::default(),
            kept: Vec::new(),
            free: Vec::new(),
            weights: Weights::default(),
            bounds,
            bytes: 0,
            most_bytes,
            empty: 0,
            hand: 0,
            seed,
        }
    }

    /// The place of the room, which is made if it is new.
    fn place(&mut self, room: &RoomId, now_ms: u64) -> u32 {
        if let Some(place) = self.rooms.get(room) {
            return *place;
        }
        let kept = Kept {
            room: room.clone(),
            history: History::after(Position { epoch: next_epoch(&mut self.seed), offset: 0 }),
            repetitions: Repetitions::default(),
            used_ms: now_ms,
            weight: 0,
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.kept.push(None);
            self.kept.len() as u32 - 1
        });
        self.kept[place as usize] = Some(kept);
        self.empty += 1;
        self.rooms.insert(room.clone(), place);
        place
    }

    /// Does something with what is kept at `place`, and counts anew what it takes.
    fn change<T>(&mut self, place: u32, act: impl FnOnce(&mut Kept, &Bounds) -> T) -> T {
        let kept = self.kept[place as usize].as_mut().expect("a room's place is taken");
        let (before, was_empty) = (kept.weight, kept.weight == 0);
        let outcome = act(kept, &self.bounds);
        kept.weight = kept.weighed();
        let (weight, is_empty) = (kept.weight, kept.weight == 0);
        self.bytes = self.bytes - before + weight;
        self.empty = self.empty + usize::from(is_empty) - usize::from(was_empty);
        self.weights.set(place, weight);
        outcome
    }

    fn open<T>(&mut self, room: &RoomId, now_ms: u64, act: impl FnOnce(&mut Kept, &Bounds) -> T) -> T {
        let place = self.place(room, now_ms);
        self.change(place, |kept, bounds| {
            kept.used_ms = now_ms;
            kept.history.trim(now_ms, bounds);
            act(kept, bounds)
        })
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
        let place = self.place(room, now_ms);
        let appended = self.open(room, now_ms, |kept, bounds| {
            if let Some((user, message_id)) = name
                && let Some(offset) = kept.repetitions.find(user, message_id, now_ms)
            {
                return Appended::Repeated(offset);
            }
            let offset = kept.history.position().offset + 1;
            let frame = encode(offset);
            kept.history.append(frame.clone(), now_ms, bounds);
            if let Some((user, message_id)) = name {
                kept.repetitions.note(user, message_id, offset, now_ms);
            }
            Appended::New(offset, frame)
        });
        self.fit(place);
        appended
    }

    /// While all rooms together have too much, one of those that have most gives up its oldest: a room that floods pays
    /// for itself, and a new one has its place. `grown` is the one that something has just been added to.
    fn fit(&mut self, grown: u32) {
        while self.bytes > self.most_bytes
            && let Some(place) = self.weights.heaviest(grown)
        {
            self.change(place, |kept, _| kept.forget_oldest());
        }
    }

    /// Where the room stands; from now on it has an epoch.
    pub fn position(&mut self, room: &RoomId, now_ms: u64) -> Position {
        self.open(room, now_ms, |kept, _| kept.history.position())
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
        self.open(room, now_ms, |kept, _| Ok(kept.history.recover(since, most_bytes)?.cloned().collect()))
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
        self.open(room, now_ms, |kept, _| kept.history.page(since, limit, reverse))
    }

    /// Forgets what is too old, and rooms of which nothing is left unless they are `in_use`: members know the
    /// epoch and count on it. Looks at some of the rooms, and at others the next time. When there are too many rooms
    /// of which nothing is kept, those that are not in use are forgotten before their time.
    pub fn sweep(&mut self, now_ms: u64, in_use: impl Fn(&RoomId) -> bool) {
        let crowded = self.empty.saturating_sub(EMPTY_ROOMS);
        let some =
            (self.kept.len() / SWEEPS_PER_ROUND).max(ROOMS_PER_SWEEP).max(crowded.min(10 * ROOMS_PER_SWEEP));
        for _ in 0..some.min(self.kept.len()) {
            if self.kept.is_empty() {
                return;
            }
            self.hand = if self.hand + 1 < self.kept.len() { self.hand + 1 } else { 0 };
            let place = self.hand as u32;
            if self.kept[self.hand].is_none() {
                continue;
            }
            let unused_ms = self.change(place, |kept, bounds| {
                kept.history.trim(now_ms, bounds);
                kept.repetitions.forget(now_ms);
                now_ms.saturating_sub(kept.used_ms)
            });
            let done = unused_ms >= self.bounds.ttl_ms || self.empty > EMPTY_ROOMS;
            let kept = self.kept[self.hand].as_ref().filter(|kept| done && kept.is_empty());
            if kept.is_some_and(|kept| !in_use(&kept.room)) {
                self.remove(place);
            }
        }
    }

    /// Forgets a room of which nothing is kept.
    fn remove(&mut self, place: u32) {
        if let Some(kept) = self.kept[place as usize].take() {
            self.rooms.remove(&kept.room);
            self.free.push(place);
            self.empty -= 1;
        }
        if self.rooms.is_empty() {
            // What a crowd of rooms has taken is given back.
            (self.kept, self.free, self.weights, self.hand) = (Vec::new(), Vec::new(), Weights::default(), 0);
        }
    }

    /// Bytes of all that is kept.
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

    fn kept(archive: &mut Archive, name: &str) -> usize {
        archive.page(&room(name), None, 99, false, 0).len()
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
    fn the_room_with_most_pays_when_all_have_too_much() {
        let mut archive = Archive::new(Bounds { bytes: usize::MAX, ..BOUNDS }, 2 * ROOM_BYTES + 3_000, 1);
        (0..10).for_each(|_| _ = add(&mut archive, "large", 300, 0));
        for round in 0..20 {
            add(&mut archive, "small", 10, 0);
            add(&mut archive, "large", 300, 0);
            assert!(archive.bytes() <= 2 * ROOM_BYTES + 3_000);
            assert_eq!(kept(&mut archive, "small"), (round + 1).min(10));
        }
        assert!((8..10).contains(&kept(&mut archive, "large")));
        assert_eq!(archive.position(&room("large"), 0).offset, 30);
    }

    #[test]
    fn a_new_room_has_its_place_when_memory_is_full() {
        let mut archive = Archive::new(Bounds { bytes: usize::MAX, ..BOUNDS }, 100_000, 1);
        for number in 0..1_000 {
            let name = format!("r{number}");
            add(&mut archive, &name, 600, 0);
            assert_eq!(kept(&mut archive, &name), 1);
            assert!(archive.bytes() <= 100_000);
        }
    }

    #[test]
    fn remembered_message_ids_count_and_are_forgotten_when_they_are_too_many() {
        let mut archive = Archive::new(BOUNDS, 50_000, 1);
        let mut send = |room_name: &str, id: usize| {
            let name = id.to_string();
            let appended =
                archive.append(&room(room_name), Some(("u", &name)), 0, |_| Bytes::from_static(b"x"));
            assert!(archive.bytes() <= 50_000);
            matches!(appended, Appended::Repeated(_))
        };
        for id in 0..10_000 {
            assert!(!send("flood", id));
        }
        assert!(send("flood", 9_999) && send("flood", 9_800) && !send("flood", 0));
        assert!(!send("other", 1) && send("other", 1));
    }

    #[test]
    fn rooms_of_which_nothing_is_kept_are_bounded_and_members_keep_theirs() {
        let mut archive = Archive::new(BOUNDS, 100_000, 1);
        let with_members = archive.position(&room("with-members"), 0);
        add(&mut archive, "with-a-message", 10, 0);
        for number in 0..3 * EMPTY_ROOMS {
            archive.position(&room(&format!("r{number}")), 0);
            if number % 100 == 0 {
                archive.sweep(0, |room| room.as_str() == "with-members");
            }
        }
        for _ in 0..SWEEPS_PER_ROUND {
            archive.sweep(0, |room| room.as_str() == "with-members");
        }
        assert!(archive.rooms.len() <= EMPTY_ROOMS + 1, "{}", archive.rooms.len());
        assert_eq!(archive.position(&room("with-members"), 0), with_members);
        assert_eq!(kept(&mut archive, "with-a-message"), 1);
        for _ in 0..SWEEPS_PER_ROUND {
            archive.sweep(1_000, |_| false);
        }
        assert_eq!((archive.rooms.len(), archive.kept.len(), archive.bytes(), archive.empty), (0, 0, 0, 0));
    }
}
