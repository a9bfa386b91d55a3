//! Which rooms keep their messages, and how many.

use super::{bytes, count, milliseconds, put};
use crate::config::RoomPattern;
use crate::config::setting::Group::History;
use crate::config::setting::Preset::{Is, PerMode};
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "HISTORY_ROOMS",
        group: History,
        prose: "Rooms whose messages are numbered and kept, so that members can resume; `*` for all.",
        default: PerMode { serve: "none", dev: "*" },
        kind: Kind::Text {
            what: "a list of rooms",
            allowed: "none, or comma-separated room names; `*` at the end of one for all that begin so",
            set: |d, value| put(&mut d.settings.history.rooms, patterns(value)),
        },
    },
    Setting {
        name: "HISTORY_SIZE",
        group: History,
        prose: "Messages kept per room.",
        default: Is("1000"),
        kind: count(1..=100_000, |d, n| d.settings.history.size = n as usize),
    },
    Setting {
        name: "HISTORY_TTL",
        group: History,
        prose: "Time for which a message is kept.",
        default: Is("300000"),
        kind: milliseconds(100..=604_800_000, |d, t| d.settings.history.ttl = t),
    },
    Setting {
        name: "HISTORY_MEMORY",
        group: History,
        prose: "Memory for the messages of all rooms, and for their messageIds where there is no Redis; beyond it rooms forget their oldest sooner, those first that have most.",
        default: Is("268435456"),
        kind: bytes(1_048_576..=1_099_511_627_776, |d, n| d.settings.history.memory = n as usize),
    },
    Setting {
        name: "HISTORY_PAGE",
        group: History,
        prose: "Messages in one reply to `room_history`.",
        default: Is("300"),
        kind: count(1..=10_000, |d, n| d.settings.history.page = n as usize),
    },
];

/// Patterns between commas; a room called `none` would have to be given as `none,none`.
fn patterns(value: &str) -> Option<Vec<RoomPattern>> {
    if value.trim() == "none" {
        return Some(Vec::new());
    }
    value.split(',').map(|pattern| RoomPattern::parse(pattern.trim())).collect()
}
