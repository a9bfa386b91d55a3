//! The past of one room: its messages in their one order, as far back as size, bytes and age allow.
//!
//! Alone, the room's home shard keeps the history. In a cluster Redis does, and the uplink follows each room
//! with a [`History`] of its own, from which members that return are served.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

/// Names one unbroken numbering of a room's messages. When messages may have been lost for good, the room gets
/// another epoch, so that an offset of before is never taken for one of now. Clients see 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that `text` names; nothing if no server can have written it.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 16 && digits).then(|| u64::from_str_radix(text, 16).ok()).flatten().map(Self)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A place in a room's history: everything up to and including the message with this offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The numbering.
    pub epoch: Epoch,
    /// The last message's number; 0 before the first.
    pub offset: u64,
}

/// How much of a room's past is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Messages.
    pub size: usize,
    /// Bytes of their frames.
    pub bytes: usize,
    /// Milliseconds for which a message is kept.
    pub ttl_ms: u64,
}

/// Why a member that asked to resume was not given what it missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRecovered {
    /// The room keeps no history.
    NoHistory,
    /// The numbering that the client knows has ended.
    Epoch,
    /// Some of what was missed is not kept any more.
    Expired,
    /// The client claims to have seen what has not been said yet.
    Future,
    /// What was missed is more than one reply may hold: `room_history` gives it in pages.
    TooMuch,
    /// The history cannot be read now.
    Unavailable,
}

impl NotRecovered {
    /// As the client is told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHistory => "no_history",
            Self::Epoch => "epoch",
            Self::Expired => "expired",
            Self::Future => "future",
            Self::TooMuch => "too_much",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Debug)]
struct Entry {
    frame: Bytes,
    /// When it was appended, in milliseconds of the caller's clock.
    at_ms: u64,
}

/// A room's kept messages: always the newest ones, without a gap.
#[derive(Debug)]
pub struct History {
    epoch: Epoch,
    /// The number of the newest message, kept or not.
    last: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl History {
    /// A history of nothing, whose next message comes after `position`.
    pub fn after(position: Position) -> Self {
        Self { epoch: position.epoch, last: position.offset, entries: VecDeque::new(), bytes: 0 }
    }

    /// Where the room stands.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.last }
    }

    /// The offset of the oldest kept message; one above the newest if none is kept.
    pub fn first(&self) -> u64 {
        self.last + 1 - self.entries.len() as u64
    }

    /// Whether no message is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of the kept frames.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the message with the next offset, as the complete frame that members get.
    pub fn append(&mut self, frame: Bytes, now_ms: u64, bounds: &Bounds) {
        self.last += 1;
        self.bytes += frame.len();
        self.entries.push_back(Entry { frame, at_ms: now_ms });
        self.trim(now_ms, bounds);
    }

    /// Forgets the oldest message.
    pub fn forget_oldest(&mut self) {
        if let Some(oldest) = self.entries.pop_front() {
            self.bytes -= oldest.frame.len();
        }
    }

    /// Forgets what is beyond the bounds.
    pub fn trim(&mut self, now_ms: u64, bounds: &Bounds) {
        while let Some(oldest) = self.entries.front() {
            let expired = now_ms.saturating_sub(oldest.at_ms) >= bounds.ttl_ms;
            if !expired && self.entries.len() <= bounds.size && self.bytes <= bounds.bytes {
                break;
            }
            self.forget_oldest();
        }
    }

    /// The frames of all messages after `since`, oldest first, if they are kept without a gap and have together
    /// no more than `most_bytes`.
    ///
    /// # Errors
    /// Why the client cannot be given all that it missed: then it is given nothing.
    pub fn recover(
        &self,
        since: Position,
        most_bytes: usize,
    ) -> Result<impl Iterator<Item = &Bytes>, NotRecovered> {
        if since.epoch != self.epoch {
            return Err(NotRecovered::Epoch);
        }
        if since.offset > self.last {
            return Err(NotRecovered::Future);
        }
        if since.offset + 1 < self.first() {
            return Err(NotRecovered::Expired);
        }
        let skipped = (since.offset + 1 - self.first()) as usize;
        let missed = self.entries.range(skipped..).map(|entry| &entry.frame);
        if missed.clone().map(Bytes::len).sum::<usize>() > most_bytes {
            return Err(NotRecovered::TooMuch);
        }
        Ok(missed)
    }

    /// The frames of up to `limit` kept messages: the oldest ones after `since`, oldest first, or in reverse the
    /// newest ones before `since`, newest first. Without `since` from the respective end.
    pub fn page(&self, since: Option<u64>, limit: usize, reverse: bool) -> Vec<Bytes> {
        let place = |offset: u64| (offset.max(self.first()) - self.first()) as usize;
        let frames = |range| self.entries.range(range).map(|entry: &Entry| entry.frame.clone());
        let all = self.entries.len();
        if reverse {
            let end = since.map_or(all, |since| place(since).min(all));
            frames(0..end).rev().take(limit).collect()
        } else {
            let start = since.map_or(0, |since| place(since.saturating_add(1)).min(all));
            frames(start..all).take(limit).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: Epoch = Epoch(7);
    const BOUNDS: Bounds = Bounds { size: 5, bytes: 1_000, ttl_ms: 100 };

    fn frame(offset: u64) -> Bytes {
        Bytes::from(offset.to_string())
    }

    /// A history of messages 1 to `last`, one per millisecond.
    fn history(last: u64, bounds: &Bounds) -> History {
        let mut history = History::after(Position { epoch: EPOCH, offset: 0 });
        (1..=last).for_each(|offset| history.append(frame(offset), offset, bounds));
        history
    }

    fn recovered(history: &History, epoch: u64, offset: u64) -> Result<Vec<Bytes>, NotRecovered> {
        let since = Position { epoch: Epoch(epoch), offset };
        history.recover(since, 1_000).map(|frames| frames.cloned().collect())
    }

    #[test]
    fn recovery_is_exact_at_both_edges_of_the_window() {
        let history = history(8, &BOUNDS);
        assert_eq!(history.first(), 4);
        assert_eq!(recovered(&history, 7, 2), Err(NotRecovered::Expired));
        assert_eq!(recovered(&history, 7, 3).unwrap(), (4..=8).map(frame).collect::<Vec<_>>());
        assert_eq!(recovered(&history, 7, 7).unwrap(), [frame(8)]);
        assert!(recovered(&history, 7, 8).unwrap().is_empty());
        assert_eq!(recovered(&history, 7, 9), Err(NotRecovered::Future));
        assert_eq!(recovered(&history, 8, 8), Err(NotRecovered::Epoch));
    }

    #[test]
    fn more_than_a_reply_may_hold_is_not_given_in_part() {
        let history = history(8, &BOUNDS);
        let since = Position { epoch: EPOCH, offset: 6 };
        assert_eq!(history.recover(since, 1).err(), Some(NotRecovered::TooMuch));
        assert_eq!(history.recover(since, 2).unwrap().count(), 2);
    }

    #[test]
    fn age_bytes_and_size_bound_what_is_kept() {
        let mut history = history(3, &BOUNDS);
        history.trim(101, &BOUNDS);
        assert_eq!(history.first(), 2, "the first message was 100 ms old");
        history.trim(1_000, &BOUNDS);
        assert!(history.is_empty());
        assert_eq!((history.bytes(), history.position().offset, history.first()), (0, 3, 4));
        assert!(recovered(&history, 7, 3).unwrap().is_empty(), "who has seen all has missed nothing");
        history.append(Bytes::from(vec![0; 999]), 1_000, &BOUNDS);
        history.append(Bytes::from(vec![0; 2]), 1_000, &BOUNDS);
        assert_eq!((history.first(), history.bytes()), (5, 2));
    }

    #[test]
    fn pages_go_both_ways() {
        let history = history(8, &BOUNDS);
        let page = |since, limit, reverse| -> Vec<u64> {
            let text = |frame: Bytes| String::from_utf8(frame.to_vec()).unwrap().parse().unwrap();
            history.page(since, limit, reverse).into_iter().map(text).collect()
        };
        assert_eq!(page(None, 2, false), [4, 5]);
        assert_eq!(page(Some(5), 2, false), [6, 7]);
        assert_eq!(page(Some(0), 9, false), [4, 5, 6, 7, 8]);
        assert_eq!(page(None, 2, true), [8, 7]);
        assert_eq!(page(Some(7), 2, true), [6, 5]);
        assert_eq!(page(Some(u64::MAX), 9, true), [8, 7, 6, 5, 4]);
        assert_eq!(page(Some(u64::MAX), 9, false), [0; 0]);
        assert_eq!(page(Some(2), 9, true), [0; 0]);
    }

    #[test]
    fn an_epoch_survives_its_text() {
        for epoch in [Epoch(0), EPOCH, Epoch(u64::MAX)] {
            assert_eq!(Epoch::parse(&epoch.to_string()), Some(epoch));
        }
        for text in ["", "7", "000000000000000G", "+000000000000007", "00000000000000007", "ABCDEFABCDEFABCD"]
        {
            assert_eq!(Epoch::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_recovered_continues_what_was_seen(last in 0_u64..40, seen in 0_u64..45, size in 1_usize..12) {
            let bounds = Bounds { size, ..BOUNDS };
            let history = history(last, &bounds);
            match recovered(&history, 7, seen) {
                Ok(frames) => prop_assert_eq!(frames, (seen + 1..=last).map(frame).collect::<Vec<_>>()),
                Err(NotRecovered::Future) => prop_assert!(seen > last),
                Err(reason) => {
                    prop_assert_eq!(reason, NotRecovered::Expired);
                    prop_assert!(last - seen > size as u64);
                }
            }
        }
    }
}
