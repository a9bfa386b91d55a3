//! The process as a whole: addresses, shards, flushes.

use std::sync::Arc;

use super::{bytes, count, count_or_zero, milliseconds, put};
use crate::config::setting::Group::Server;
use crate::config::setting::Preset::{Is, PerMode, Unset};
use crate::config::setting::Unit::Port;
use crate::config::setting::{Kind, Setting};
use crate::identity::InstanceId;
use crate::limits;

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "WS_HOST",
        group: Server,
        prose: "Address to listen on. `tableforge dev` takes loopback addresses only.",
        default: PerMode { serve: "0.0.0.0", dev: "127.0.0.1" },
        kind: Kind::Text {
            what: "an IP address",
            allowed: "an IPv4 or IPv6 address; 0.0.0.0 or :: for all",
            set: |d, value| put(&mut d.settings.ws_host, value.parse().ok()),
        },
    },
    Setting {
        name: "WS_PORT",
        group: Server,
        prose: "Port to listen on.",
        default: Is("3001"),
        kind: Kind::Number {
            unit: Port,
            min: 1,
            max: 65535,
            zero: Some("lets the system choose"),
            set: |d, n| d.settings.ws_port = n as u16,
        },
    },
    Setting {
        name: "WS_MAX_CONNECTIONS",
        group: Server,
        prose: "Connections that this instance takes, if the limit of descriptors allows so many; more get 503.",
        default: PerMode { serve: "100000", dev: "16000" },
        kind: count(1..=10_000_000, |d, n| d.settings.ws_max_connections = n as u32),
    },
    Setting {
        name: "SHARDS",
        group: Server,
        prose: "Shards: threads with connections of their own, each pinned to a CPU.",
        default: Unset("one per usable CPU, at most 64"),
        kind: count(1..=limits::SHARDS as u64, |d, n| d.settings.shards = n as usize),
    },
    Setting {
        name: "INSTANCE_ID",
        group: Server,
        prose: "Name of this instance; no two of a cluster may have the same.",
        default: Unset("made up at each start"),
        kind: Kind::Text {
            what: "an instance name",
            allowed: "1 to 128 of A-Z a-z 0-9 _ . : -",
            set: |d, value| put(&mut d.settings.instance_id, InstanceId::parse(value)),
        },
    },
    Setting {
        name: "CONSOLE",
        group: Server,
        prose: "Whether `/` serves the console page.",
        default: PerMode { serve: "false", dev: "true" },
        kind: Kind::Switch { set: |d, on| d.settings.console = on },
    },
    Setting {
        name: "FLUSH_BUDGET_MS",
        group: Server,
        prose: "Longest time that messages wait for others, so that a busy shard sends them together.",
        default: Is("8"),
        kind: milliseconds(0..=1000, |d, t| d.settings.flush_budget = t),
    },
    Setting {
        name: "COMPRESSION",
        group: Server,
        prose: "Whether messages are compressed for clients that offer it (permessage-deflate).",
        default: Is("true"),
        kind: Kind::Switch { set: |d, on| d.settings.compression = on },
    },
    Setting {
        name: "COMPRESSION_THRESHOLD",
        group: Server,
        prose: "Size of the payload from which a message is compressed; below, it saves no packet.",
        default: Is("512"),
        kind: bytes(0..=16_777_216, |d, n| d.settings.compression_threshold = n as usize),
    },
    Setting {
        name: "DRAIN_TIMEOUT",
        group: Server,
        prose: "Longest time that a stopping instance takes to send its clients away.",
        default: Is("30000"),
        kind: milliseconds(0..=600_000, |d, t| d.settings.drain_timeout = t),
    },
    Setting {
        name: "OVERLOAD_CONNECTIONS",
        group: Server,
        prose: "Percentage of WS_MAX_CONNECTIONS, or of what descriptors allow, from which new clients are sent to other instances, if those have room.",
        default: Is("95"),
        kind: count_or_zero(1..=100, "for never", |d, n| d.settings.overload.connections_percent = n as u8),
    },
    Setting {
        name: "OVERLOAD_BUSY",
        group: Server,
        prose: "Percentage of the shards' time from which new clients are sent to other instances, if those are less busy.",
        default: Is("90"),
        kind: count_or_zero(1..=100, "for never", |d, n| d.settings.overload.busy_percent = n as u8),
    },
    Setting {
        name: "ADVERTISE_URL",
        group: Server,
        prose: "Where clients reach this very instance; an overloaded one redirects new clients to it (307).",
        default: Unset("none: 503"),
        kind: Kind::Text {
            what: "an address of a server",
            allowed: "ws://, wss://, http:// or https:// with a host and maybe a port, without a path",
            set: |d, value| put(&mut d.settings.advertise_url, server_address(value)),
        },
    },
];

fn server_address(value: &str) -> Option<Option<Arc<str>>> {
    let address = value.trim().trim_end_matches('/');
    is_server_address(address).then(|| Some(address.into()))
}

/// Whether `text` is what ADVERTISE_URL may be: it goes into a header, so it has nothing but what a host and a port are
/// made of.
pub fn is_server_address(text: &str) -> bool {
    let schemes = ["ws://", "wss://", "http://", "https://"];
    let host = schemes.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    !host.is_empty() && text.len() <= 256 && host.chars().all(plain)
}
