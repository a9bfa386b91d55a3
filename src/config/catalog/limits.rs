//! What one connection may use.

use super::{bytes, count, count_or_zero, milliseconds};
use crate::config::setting::Group::Limits;
use crate::config::setting::Preset::Is;
use crate::config::setting::Setting;

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "HANDSHAKE_TIMEOUT",
        group: Limits,
        prose: "Time for the head of a request to be complete; then 408.",
        default: Is("5000"),
        kind: milliseconds(100..=600_000, |d, t| d.settings.handshake_timeout = t),
    },
    Setting {
        name: "AUTHENTICATION_TIMEOUT",
        group: Limits,
        prose: "Time for a connection to authenticate; then close 4501.",
        default: Is("10000"),
        kind: milliseconds(100..=600_000, |d, t| d.settings.authentication_timeout = t),
    },
    Setting {
        name: "PING_INTERVAL",
        group: Limits,
        prose: "Silence after which a connection is pinged.",
        default: Is("25000"),
        kind: milliseconds(100..=3_600_000, |d, t| d.settings.ping_interval = t),
    },
    Setting {
        name: "PONG_TIMEOUT",
        group: Limits,
        prose: "Time for the pong; then close 4002.",
        default: Is("8000"),
        kind: milliseconds(100..=600_000, |d, t| d.settings.pong_timeout = t),
    },
    Setting {
        name: "MAX_MESSAGE_BYTES",
        group: Limits,
        prose: "Size of one client message; a larger one gets close 1009.",
        default: Is("65536"),
        kind: bytes(1024..=16_777_216, |d, n| d.settings.max_message_bytes = n as usize),
    },
    Setting {
        name: "MAX_ROOMS_PER_CONNECTION",
        group: Limits,
        prose: "Rooms that one connection may be in.",
        default: Is("128"),
        kind: count_or_zero(1..=100_000, "for no limit", |d, n| {
            d.settings.max_rooms_per_connection = if n == 0 { usize::MAX } else { n as usize };
        }),
    },
    Setting {
        name: "MESSAGE_RATE",
        group: Limits,
        prose: "Messages per second that one connection may send.",
        default: Is("100"),
        kind: count_or_zero(1..=1_000_000, "for no limit", |d, n| d.settings.message_rate = n as u32),
    },
    Setting {
        name: "MESSAGE_BURST",
        group: Limits,
        prose: "Messages that one connection may send at once.",
        default: Is("200"),
        kind: count_or_zero(1..=1_000_000, "for no limit", |d, n| d.settings.message_burst = n as u32),
    },
    Setting {
        name: "PRESENCE_MAX_MEMBERS",
        group: Limits,
        prose: "Members above which a room reports its size instead of each join and leave.",
        default: Is("200"),
        kind: count(1..=1_000_000, |d, n| d.settings.presence_max_members = n as u32),
    },
    Setting {
        name: "OUTBOX_BYTES",
        group: Limits,
        prose: "Bytes that may wait for a client that reads slowly; then close 4003.",
        default: Is("1048576"),
        kind: bytes(4096..=1_073_741_824, |d, n| d.settings.outbox_bytes = n as usize),
    },
    Setting {
        name: "OUTBOX_AGE",
        group: Limits,
        prose: "Time that bytes may wait for a client that does not read; then close 4003.",
        default: Is("10000"),
        kind: milliseconds(100..=600_000, |d, t| d.settings.outbox_age = t),
    },
];
