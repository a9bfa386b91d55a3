//! Messages that clients have sent again, because they did not hear what became of the first one.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashMap;

use super::history::Epoch;

/// Milliseconds for which a message is known again: a part of the client protocol.
pub const REPETITION_MS: u64 = 5 * 60 * 1000;

/// A message's name. Two hashes of 64 bits with keys that no client knows: that two messages share one is less
/// likely than a fault of the memory.
type Name = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct First {
    offset: u64,
    at_ms: u64,
}

/// The offsets of named messages, for as long as they may be sent again.
#[derive(Debug)]
pub struct Repetitions {
    hashers: [RandomState; 2],
    firsts: HashMap<Name, First, foldhash::fast::RandomState>,
    /// Oldest first.
    order: VecDeque<(u64, Name)>,
    most: usize,
}

impl Repetitions {
    /// Knows no message, and of all that come the newest `most`.
    pub fn new(most: usize) -> Self {
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            firsts: HashMap::default(),
            order: VecDeque::new(),
            most,
        }
    }

    /// The offset that the user's message of this name got in the numbering `epoch` of `room` within the last
    /// [`REPETITION_MS`].
    pub fn find(&self, room: &str, epoch: Epoch, user: &str, message_id: &str, now_ms: u64) -> Option<u64> {
        let first = self.firsts.get(&self.name(room, epoch, user, message_id))?;
        (now_ms.saturating_sub(first.at_ms) < REPETITION_MS).then_some(first.offset)
    }

    /// The message has got its offset now.
    pub fn note(&mut self, room: &str, epoch: Epoch, user: &str, message_id: &str, offset: u64, now_ms: u64) {
        while self.order.front().is_some_and(|(at_ms, _)| {
            now_ms.saturating_sub(*at_ms) >= REPETITION_MS || self.order.len() >= self.most
        }) {
            self.forget_oldest();
        }
        let name = self.name(room, epoch, user, message_id);
        self.firsts.insert(name, First { offset, at_ms: now_ms });
        self.order.push_back((now_ms, name));
    }

    fn forget_oldest(&mut self) {
        let Some((at_ms, name)) = self.order.pop_front() else { return };
        // A name that was used anew after its time has a younger entry in the list.
        if self.firsts.get(&name).is_some_and(|first| first.at_ms == at_ms) {
            self.firsts.remove(&name);
        }
    }

    fn name(&self, room: &str, epoch: Epoch, user: &str, message_id: &str) -> Name {
        let [one, other] = &self.hashers;
        let name = (room, epoch, user, message_id);
        (one.hash_one(name), other.hash_one(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(1);

    #[test]
    fn a_message_is_known_again_for_five_minutes_in_its_room_epoch_and_user() {
        let mut repetitions = Repetitions::new(10);
        repetitions.note("r", EPOCH, "ann", "m", 7, 1000);
        let last = 1000 + REPETITION_MS - 1;
        assert_eq!(repetitions.find("r", EPOCH, "ann", "m", last), Some(7));
        assert_eq!(repetitions.find("r", EPOCH, "ann", "m", last + 1), None);
        assert_eq!(repetitions.find("q", EPOCH, "ann", "m", last), None);
        assert_eq!(repetitions.find("r", Epoch(2), "ann", "m", last), None);
        assert_eq!(repetitions.find("r", EPOCH, "annm", "", last), None);
        assert_eq!(repetitions.find("r", EPOCH, "ann", "n", last), None);
    }

    #[test]
    fn a_name_that_was_used_anew_is_kept_for_its_own_time() {
        let mut repetitions = Repetitions::new(10);
        repetitions.note("r", EPOCH, "ann", "m", 1, 0);
        repetitions.note("r", EPOCH, "ann", "m", 2, REPETITION_MS);
        repetitions.note("r", EPOCH, "ann", "n", 3, REPETITION_MS + 1);
        assert_eq!(repetitions.find("r", EPOCH, "ann", "m", 2 * REPETITION_MS - 1), Some(2));
        assert_eq!(repetitions.order.len(), 2, "what is too old is gone");
    }

    #[test]
    fn beyond_the_bound_the_oldest_is_forgotten() {
        let mut repetitions = Repetitions::new(2);
        for (id, offset) in [("a", 1), ("b", 2), ("c", 3)] {
            repetitions.note("r", EPOCH, "ann", id, offset, offset);
        }
        let found = ["a", "b", "c"].map(|id| repetitions.find("r", EPOCH, "ann", id, 4));
        assert_eq!(found, [None, Some(2), Some(3)]);
        assert_eq!((repetitions.firsts.len(), repetitions.order.len()), (2, 2));
    }
}
