//! Which rooms keep their messages, and how many.

use std::time::Duration;

use crate::identity::RoomId;
use crate::limits;
use crate::room::history::Bounds;

/// Rooms by name or by the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomPattern {
    start: String,
    open: bool,
}

impl RoomPattern {
    /// A room's name, or the beginning of one with `*` after it; `*` alone is every room.
    pub fn parse(text: &str) -> Option<Self> {
        let (start, open) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
        let valid = (open && start.is_empty()) || RoomId::is_valid(start);
        valid.then(|| Self { start: start.into(), open })
    }

    /// Whether the room called `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.start) } else { name == self.start }
    }
}

/// Which rooms have history, and how far back it goes.
#[derive(Clone, Debug)]
pub struct HistorySettings {
    /// The rooms that have one.
    pub rooms: Vec<RoomPattern>,
    /// Messages kept per room.
    pub size: usize,
    /// Time for which a message is kept.
    pub ttl: Duration,
    /// Bytes of frames that this process keeps of all rooms.
    pub memory: usize,
    /// Messages in one page of `room_history` at most.
    pub page: usize,
}

impl HistorySettings {
    /// No history for any room.
    pub fn none() -> Self {
        Self { rooms: Vec::new(), size: 0, ttl: Duration::ZERO, memory: 0, page: 0 }
    }

    /// Whether the room called `name` has history.
    pub fn covers(&self, name: &str) -> bool {
        self.rooms.iter().any(|pattern| pattern.matches(name))
    }

    /// What is kept of each room in this process's memory.
    pub fn bounds(&self) -> Bounds {
        Bounds { size: self.size, bytes: limits::HISTORY_BYTES, ttl_ms: self.ttl.as_millis() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_room_or_the_beginning_of_one() {
        let covered = |patterns: &[&str], room: &str| {
            let rooms = patterns.iter().map(|pattern| RoomPattern::parse(pattern).unwrap()).collect();
            HistorySettings { rooms, ..HistorySettings::none() }.covers(room)
        };
        assert!(covered(&["*"], "any"));
        assert!(covered(&["table-*", "lobby"], "table-1") && covered(&["table-*", "lobby"], "lobby"));
        assert!(!covered(&["table-*", "lobby"], "lobby-2") && !covered(&[], "any"));
        assert!(["", "a b", "a*b", "**"].into_iter().all(|text| RoomPattern::parse(text).is_none()));
    }
}
