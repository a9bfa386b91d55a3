//! Which messages of a room have been sent before: who sends a `messageId` again gets the first one's offset.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::limits::{REPETITION_MS, REPETITIONS};

/// Bytes that a remembered `messageId` takes besides its text: two places for it, its offset, its time, its length.
const ENTRY_BYTES: usize = 96;

/// The recent messages of one room that had a `messageId`.
#[derive(Debug, Default)]
pub struct Repetitions {
    bytes: usize,
    offsets: HashMap<Arc<str>, u64, crate::hashing::Hashing>,
    /// In the order in which they came, with the time.
    order: VecDeque<(Arc<str>, u64)>,
}

impl Repetitions {
    /// The offset of the message that `user` has sent with this `message_id` before, if that is not too long ago.
    pub fn find(&mut self, user: &str, message_id: &str, now_ms: u64) -> Option<u64> {
        self.forget(now_ms);
        self.offsets.get(key(user, message_id).as_str()).copied()
    }

    /// `user` has sent a message with this `message_id` that was not sent before.
    pub fn note(&mut self, user: &str, message_id: &str, offset: u64, now_ms: u64) {
        if self.order.len() == REPETITIONS {
            self.forget_oldest();
        }
        let key: Arc<str> = key(user, message_id).into();
        self.bytes += key.len() + ENTRY_BYTES;
        self.order.push_back((Arc::clone(&key), now_ms));
        self.offsets.insert(key, offset);
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Bytes of memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets what is too old.
    pub fn forget(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(_, at)| now_ms.saturating_sub(*at) >= REPETITION_MS) {
            self.forget_oldest();
        }
    }

    /// Forgets the oldest, whatever its age.
    pub fn forget_oldest(&mut self) {
        if let Some((oldest, _)) = self.order.pop_front() {
            self.bytes -= oldest.len() + ENTRY_BYTES;
            self.offsets.remove(&oldest);
        }
    }
}

/// The length in front keeps two pairs apart whose texts join to the same.
fn key(user: &str, message_id: &str) -> String {
    format!("{} {user}{message_id}", user.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repetition_has_the_first_offset_for_five_minutes() {
        let mut known = Repetitions::default();
        assert_eq!(known.find("alice", "m1", 0), None);
        known.note("alice", "m1", 7, 0);
        assert_eq!(known.find("alice", "m1", REPETITION_MS - 1), Some(7));
        assert_eq!(known.find("bob", "m1", 1), None, "another user's ids are others");
        assert_eq!(known.find("alicem", "1", 1), None);
        assert_eq!(known.find("alice", "m1", REPETITION_MS), None);
        assert!(known.is_empty());
    }

    #[test]
    fn beyond_the_bound_the_oldest_is_forgotten() {
        let mut known = Repetitions::default();
        (0..=REPETITIONS as u64).for_each(|n| known.note("a", &n.to_string(), n, 0));
        assert_eq!(known.find("a", "0", 0), None);
        assert_eq!(known.find("a", "1", 0), Some(1));
        assert_eq!(known.order.len(), REPETITIONS);
        known.forget(REPETITION_MS);
        assert_eq!((known.bytes(), known.is_empty()), (0, true));
    }
}
