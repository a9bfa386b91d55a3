//! The histories of all rooms that a shard is home to, in a server that runs alone.
//!
//! A room's numbering outlives its members, so that who comes back finds it; what is kept is bounded in bytes over all
//! rooms and in rooms without members.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use bytes::Bytes;
use foldhash::quality::FixedState;
use hashbrown::HashMap;

use super::history::{Bounds, Epoch, History, Position};
use super::repetitions::{REPETITION_MS, Repetitions};
use crate::identity::{RoomId, UserId};

/// Milliseconds for which the numbering of a room without members is kept, at least: it is small, and a client that
/// comes back to it learns exactly whether it has missed anything.
const NUMBERING_MS: u64 = 60 * 60 * 1000;

/// Calls of [`Histories::sweep`] in which every room is looked at once.
const SWEEPS: usize = 100;

/// Rooms that are looked at to find one without members, when there are too many.
const LOOKED_AT: usize = 8;

/// What all rooms together may take.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Bytes of frames.
    pub bytes: usize,
    /// Rooms; more only while they have members.
    pub rooms: usize,
    /// Messages that are known again when they are repeated.
    pub repetitions: usize,
}

/// A message to be kept.
#[derive(Clone, Copy, Debug)]
pub struct NewMessage<'a> {
    /// The room.
    pub room: &'a RoomId,
    /// Who sent it.
    pub user: &'a UserId,
    /// The sender's name for it.
    pub message_id: Option<&'a str>,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is the newest of its room now: the frame that members get.
    New(Position, Bytes),
    /// It was sent before, and got this offset then.
    Repetition(u64),
}

#[derive(Debug)]
struct Room {
    history: History,
    /// When anyone last asked for it or added to it, in ms.
    used_ms: u64,
}

/// The histories of many rooms.
#[derive(Debug)]
pub struct Histories {
    rooms: HashMap<RoomId, Room, foldhash::fast::RandomState>,
    /// Every room once, in the order in which they are swept.
    turns: VecDeque<RoomId>,
    repetitions: Repetitions,
    bytes: usize,
    bounds: Bounds,
    totals: Totals,
    /// Makes this shard's epochs differ from those of others and of other runs.
    seed: u64,
    numberings: u64,
}

impl Histories {
    /// No room yet. `seed` must differ between shards and between runs of the server.
    pub fn new(bounds: Bounds, totals: Totals, seed: u64) -> Self {
        Self {
            rooms: HashMap::default(),
            turns: VecDeque::new(),
            repetitions: Repetitions::new(totals.repetitions),
            bytes: 0,
            bounds,
            totals,
            seed,
            numberings: 0,
        }
    }

    /// The room's history, with nothing in it that is too old; a new one if there was none. `is_occupied` says
    /// whether a room has members.
    pub fn open(&mut self, room: &RoomId, now_ms: u64, is_occupied: impl Fn(&str) -> bool) -> &History {
        if !self.rooms.contains_key(room) {
            self.insert(room, now_ms, is_occupied);
        }
        let found = self.rooms.get_mut(room).expect("it was there or has been inserted");
        found.used_ms = now_ms;
        let before = found.history.bytes();
        found.history.trim(now_ms, &self.bounds);
        self.bytes -= before - found.history.bytes();
        &found.history
    }

    fn insert(&mut self, room: &RoomId, now_ms: u64, is_occupied: impl Fn(&str) -> bool) {
        for _ in 0..LOOKED_AT {
            if self.rooms.len() < self.totals.rooms {
                break;
            }
            let Some(other) = self.turns.pop_front() else { break };
            if is_occupied(other.as_str()) {
                self.turns.push_back(other);
            } else if let Some(gone) = self.rooms.remove(&other) {
                self.bytes -= gone.history.bytes();
            }
        }
        self.numberings += 1;
        let epoch = FixedState::with_seed(self.seed).hash_one((room, now_ms, self.numberings));
        let start = Position { epoch: Epoch(epoch.max(1)), offset: 0 };
        self.rooms.insert(room.clone(), Room { history: History::after(start), used_ms: now_ms });
        self.turns.push_back(room.clone());
    }

    /// Numbers a message and keeps it, unless its user has sent one of that name to the room within the last
    /// [`REPETITION_MS`]. `numbered` makes the frame that members get.
    pub fn store(
        &mut self,
        message: NewMessage<'_>,
        now_ms: u64,
        is_occupied: impl Fn(&str) -> bool,
        numbered: impl FnOnce(u64) -> Bytes,
    ) -> Kept {
        let NewMessage { room, user, message_id } = message;
        let Position { epoch, offset } = self.open(room, now_ms, is_occupied).position();
        let offset = offset + 1;
        if let Some(id) = message_id {
            if let Some(first) = self.repetitions.find(room.as_str(), epoch, user.as_str(), id, now_ms) {
                return Kept::Repetition(first);
            }
            self.repetitions.note(room.as_str(), epoch, user.as_str(), id, offset, now_ms);
        }
        let frame = numbered(offset);
        let history = &mut self.rooms.get_mut(room).expect("it has just been opened").history;
        let before = history.bytes();
        history.append(frame.clone(), now_ms, &self.bounds);
        self.bytes = self.bytes + history.bytes() - before;
        if self.bytes > self.totals.bytes {
            self.halve(now_ms);
        }
        Kept::New(Position { epoch, offset }, frame)
    }

    /// Every room forgets the older half of what it has.
    fn halve(&mut self, now_ms: u64) {
        self.bytes = 0;
        for room in self.rooms.values_mut() {
            let bytes = room.history.bytes() / 2;
            room.history.trim(now_ms, &Bounds { bytes, ..self.bounds });
            self.bytes += room.history.bytes();
        }
    }

    /// Looks at some of the rooms, in turn: what is too old is forgotten, and with it rooms that nobody has used for
    /// long.
    pub fn sweep(&mut self, now_ms: u64, is_occupied: impl Fn(&str) -> bool) {
        let kept_ms = self.bounds.ttl_ms.max(REPETITION_MS).max(NUMBERING_MS);
        for _ in 0..self.turns.len().div_ceil(SWEEPS) {
            let Some(name) = self.turns.pop_front() else { return };
            let Some(room) = self.rooms.get_mut(&name) else { continue };
            let before = room.history.bytes();
            room.history.trim(now_ms, &self.bounds);
            self.bytes -= before - room.history.bytes();
            let is_over = room.history.is_empty() && now_ms.saturating_sub(room.used_ms) >= kept_ms;
            if is_over && !is_occupied(name.as_str()) {
                self.rooms.remove(&name);
            } else {
                self.turns.push_back(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::history::NotRecovered;

    const BOUNDS: Bounds = Bounds { size: 100, bytes: 1 << 20, ttl_ms: 1000 };
    const TOTALS: Totals = Totals { bytes: 1000, rooms: 3, repetitions: 100 };

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    fn nobody(_: &str) -> bool {
        false
    }

    fn store(histories: &mut Histories, name: &str, id: Option<&str>, bytes: usize, now_ms: u64) -> Kept {
        let user = UserId::parse("ann").unwrap();
        let message = NewMessage { room: &room(name), user: &user, message_id: id };
        histories.store(message, now_ms, nobody, |_| Bytes::from(vec![0; bytes]))
    }

    fn offset(kept: Kept) -> Option<u64> {
        match kept {
            Kept::New(position, _) => Some(position.offset),
            Kept::Repetition(_) => None,
        }
    }

    #[test]
    fn numbers_rise_by_one_in_each_room_and_repetitions_get_the_first_one() {
        let mut histories = Histories::new(BOUNDS, TOTALS, 1);
        assert_eq!(offset(store(&mut histories, "a", Some("x"), 10, 0)), Some(1));
        assert_eq!(offset(store(&mut histories, "a", None, 10, 0)), Some(2));
        assert_eq!(offset(store(&mut histories, "b", Some("x"), 10, 0)), Some(1));
        assert_eq!(store(&mut histories, "a", Some("x"), 10, 5), Kept::Repetition(1));
        assert_eq!(offset(store(&mut histories, "a", Some("y"), 10, 5)), Some(3));
    }

    #[test]
    fn epochs_differ_between_rooms_and_runs() {
        let epoch = |seed, name: &str| {
            Histories::new(BOUNDS, TOTALS, seed).open(&room(name), 0, nobody).position().epoch
        };
        assert_ne!(epoch(1, "a"), epoch(1, "b"));
        assert_ne!(epoch(1, "a"), epoch(2, "a"));
        assert_ne!(epoch(1, "a"), Epoch::NONE);
    }

    #[test]
    fn a_reader_never_gets_what_is_too_old_but_the_numbering_goes_on() {
        let mut histories = Histories::new(BOUNDS, TOTALS, 1);
        store(&mut histories, "a", None, 10, 0);
        let before = histories.open(&room("a"), 999, nobody).position();
        let seen = Position { offset: 0, ..before };
        assert!(histories.open(&room("a"), 999, nobody).recover(seen, 100).is_ok());
        let later = histories.open(&room("a"), 1000, nobody);
        assert_eq!(later.position(), before);
        assert_eq!(later.recover(seen, 100).err(), Some(NotRecovered::Expired));
        assert_eq!(histories.bytes, 0);
    }

    #[test]
    fn rooms_that_nobody_has_used_for_long_are_swept_unless_they_have_members() {
        let mut histories = Histories::new(BOUNDS, TOTALS, 1);
        store(&mut histories, "a", None, 10, 0);
        store(&mut histories, "b", None, 10, 0);
        let sweep_all = |histories: &mut Histories, now_ms| {
            (0..2).for_each(|_| histories.sweep(now_ms, |name| name == "b"));
            histories.rooms.len()
        };
        assert_eq!(sweep_all(&mut histories, 1000), 2);
        assert_eq!(histories.bytes, 0, "messages go when their time is up");
        assert_eq!(sweep_all(&mut histories, NUMBERING_MS - 1), 2);
        assert_eq!(sweep_all(&mut histories, NUMBERING_MS), 1);
        assert_eq!((histories.turns.len(), histories.rooms.contains_key("b")), (1, true));
    }

    #[test]
    fn all_rooms_together_stay_within_their_bytes() {
        let mut histories = Histories::new(BOUNDS, TOTALS, 1);
        for number in 0..200 {
            store(&mut histories, ["a", "b"][number % 2], None, 50, 0);
            assert!(histories.bytes <= TOTALS.bytes);
        }
        let kept: usize = histories.rooms.values().map(|room| room.history.bytes()).sum();
        assert_eq!(kept, histories.bytes);
        assert!(kept >= TOTALS.bytes / 2 - 100, "no more is forgotten than must be: {kept}");
        assert_eq!(histories.open(&room("a"), 0, nobody).position().offset, 100);
    }

    #[test]
    fn new_rooms_take_the_place_of_those_without_members() {
        let mut histories = Histories::new(BOUNDS, TOTALS, 1);
        for name in ["a", "b", "c", "d", "e"] {
            histories.open(&room(name), 0, |other| other == "a");
        }
        let mut names: Vec<_> = histories.rooms.keys().map(RoomId::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "d", "e"]);
    }
}
