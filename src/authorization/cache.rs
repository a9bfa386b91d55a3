//! Answers of the application that still hold.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::Verdict;
use crate::identity::{RoomId, UserId};

type Asked = (UserId, RoomId);

/// Answers by user and room, for a time and up to a number; the oldest go first. Times are ms of any clock that
/// does not go back.
#[derive(Debug)]
pub(super) struct Cache {
    answers: HashMap<Asked, (Verdict, u64)>,
    /// In the order in which they end, which is the order in which they came.
    ends: VecDeque<(u64, Asked)>,
    ttl_ms: u64,
    most: usize,
}

impl Cache {
    /// An empty one, whose answers hold for `ttl_ms` and are `most` at most.
    pub(super) fn new(ttl_ms: u64, most: usize) -> Self {
        Self { answers: HashMap::new(), ends: VecDeque::new(), ttl_ms, most }
    }

    /// The answer, if there is one that still holds.
    pub(super) fn get(&mut self, user: &UserId, room: &RoomId, now_ms: u64) -> Option<Verdict> {
        self.drop_while(|end_ms, _| end_ms <= now_ms);
        self.answers.get(&(user.clone(), room.clone())).map(|(verdict, _)| *verdict)
    }

    /// Remembers an answer.
    pub(super) fn put(&mut self, user: UserId, room: RoomId, verdict: Verdict, now_ms: u64) {
        if self.ttl_ms == 0 {
            return;
        }
        let end_ms = now_ms + self.ttl_ms;
        self.answers.insert((user.clone(), room.clone()), (verdict, end_ms));
        self.ends.push_back((end_ms, (user, room)));
        let most = self.most;
        self.drop_while(|_, kept| kept > most);
    }

    fn drop_while(&mut self, over: impl Fn(u64, usize) -> bool) {
        while let Some((end_ms, _)) = self.ends.front()
            && over(*end_ms, self.ends.len())
        {
            let Some((end_ms, asked)) = self.ends.pop_front() else { return };
            // A newer answer to the same question has a later end of its own.
            if self.answers.get(&asked).is_some_and(|(_, newest)| *newest == end_ms) {
                self.answers.remove(&asked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cache: &mut Cache, room: &str, verdict: Verdict, now_ms: u64) {
        cache.put(UserId::parse("ann").unwrap(), RoomId::parse(room).unwrap(), verdict, now_ms);
    }

    fn get(cache: &mut Cache, user: &str, room: &str, now_ms: u64) -> Option<Verdict> {
        cache.get(&UserId::parse(user).unwrap(), &RoomId::parse(room).unwrap(), now_ms)
    }

    #[test]
    fn an_answer_holds_for_its_user_and_room_and_time() {
        let mut cache = Cache::new(100, 10);
        put(&mut cache, "r", Verdict::Forbidden, 0);
        assert_eq!(get(&mut cache, "ann", "r", 99), Some(Verdict::Forbidden));
        assert_eq!(get(&mut cache, "bob", "r", 99), None);
        assert_eq!(get(&mut cache, "ann", "q", 99), None);
        put(&mut cache, "r", Verdict::Unavailable { retry_after_ms: 1 }, 50);
        assert_eq!(get(&mut cache, "ann", "r", 100), Some(Verdict::Unavailable { retry_after_ms: 1 }));
        assert_eq!(get(&mut cache, "ann", "r", 150), None);
        assert!(cache.answers.is_empty() && cache.ends.is_empty());
    }

    #[test]
    fn it_is_bounded_and_may_be_off() {
        let mut cache = Cache::new(100, 2);
        for room in ["a", "b", "c"] {
            put(&mut cache, room, Verdict::Forbidden, 0);
        }
        assert_eq!(get(&mut cache, "ann", "a", 1), None);
        assert!(get(&mut cache, "ann", "b", 1).is_some() && get(&mut cache, "ann", "c", 1).is_some());
        let mut off = Cache::new(0, 2);
        put(&mut off, "a", Verdict::Forbidden, 0);
        assert_eq!(get(&mut off, "ann", "a", 0), None);
    }
}
