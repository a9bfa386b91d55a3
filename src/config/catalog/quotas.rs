//! What users, addresses, rooms and the whole cluster may use, and whom to believe about addresses.

use super::{count, count_or_zero, put};
use crate::accept::address::Network;
use crate::config::setting::Group::Limits;
use crate::config::setting::Preset::{Is, Unset};
use crate::config::setting::{Kind, Setting, Unit};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "BYTE_RATE",
        group: Limits,
        prose: "Bytes of messages per second that one connection may send; one second's worth, or two of the largest messages, at once.",
        default: Is("0"),
        kind: Kind::Number {
            unit: Unit::Bytes,
            min: 1024,
            max: 1_000_000_000,
            zero: Some("for no limit"),
            set: |d, n| d.settings.limits.byte_rate = n as u32,
        },
    },
    Setting {
        name: "JOIN_RATE",
        group: Limits,
        prose: "Rooms per second that one connection may join.",
        default: Is("0"),
        kind: count_or_zero(1..=100_000, "for no limit", |d, n| d.settings.limits.join_rate = n as u32),
    },
    Setting {
        name: "JOIN_BURST",
        group: Limits,
        prose: "Rooms that one connection may join at once, where there is a JOIN_RATE.",
        default: Is("128"),
        kind: count(1..=100_000, |d, n| d.settings.limits.join_burst = n as u32),
    },
    Setting {
        name: "USER_MESSAGE_RATE",
        group: Limits,
        prose: "Messages per second that one user may send over all connections to this instance; twice as many at once.",
        default: Is("0"),
        kind: rate(|d, n| d.settings.limits.user_message_rate = n as u32),
    },
    Setting {
        name: "ADDRESS_MESSAGE_RATE",
        group: Limits,
        prose: "Messages per second from one address to this instance; twice as many at once.",
        default: Is("0"),
        kind: rate(|d, n| d.settings.limits.address_message_rate = n as u32),
    },
    Setting {
        name: "ROOM_MESSAGE_RATE",
        group: Limits,
        prose: "Messages per second that clients of this instance may send to one room; twice as many at once.",
        default: Is("0"),
        kind: rate(|d, n| d.settings.limits.room_message_rate = n as u32),
    },
    Setting {
        name: "GLOBAL_MESSAGE_RATE",
        group: Limits,
        prose: "Messages per second to rooms, users and everyone that the clients of all instances may send; each live instance has an equal share.",
        default: Is("0"),
        kind: count_or_zero(1..=100_000_000, "for no limit", |d, n| {
            d.settings.limits.global_message_rate = n as u32;
        }),
    },
    Setting {
        name: "MAX_CONNECTIONS_PER_USER",
        group: Limits,
        prose: "Connections of one user to all instances together; one more gets close 4504.",
        default: Is("20"),
        kind: count_or_zero(1..=1_000_000, "for no limit", |d, n| {
            d.settings.limits.max_connections_per_user = n as u32;
        }),
    },
    Setting {
        name: "MAX_CONNECTIONS_PER_ADDRESS",
        group: Limits,
        prose: "Connections from one IPv4 address, or one IPv6 network of 64 bits, to this instance; one more gets 429.",
        default: Unset("100, and none for loopback addresses; dev: 0"),
        kind: count_or_zero(1..=1_000_000, "for no limit", |d, n| d.connections_per_address = Some(n as u32)),
    },
    Setting {
        name: "MAX_HANDSHAKES",
        group: Limits,
        prose: "Requests whose head is not complete yet, per shard; beyond it the oldest get 503.",
        default: Is("4096"),
        kind: count(1..=1_000_000, |d, n| d.settings.limits.max_handshakes = n as usize),
    },
    Setting {
        name: "ACCEPT_RATE",
        group: Limits,
        prose: "Requests for /ws per second that this instance looks at, twice as many at once; the others get 503.",
        default: Is("0"),
        kind: rate(|d, n| d.settings.limits.accept_rate = n as u32),
    },
    Setting {
        name: "TRUSTED_PROXIES",
        group: Limits,
        prose: "Proxies whose word on the address of a client is believed: by X-Forwarded-For, or by PROXY_PROTOCOL.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a list of networks",
            allowed: "comma-separated addresses and networks like 10.0.0.0/8",
            set: |d, value| {
                let networks = value.split(',').map(|network| Network::parse(network.trim())).collect();
                put(&mut d.settings.limits.trusted_proxies, networks)
            },
        },
    },
    Setting {
        name: "PROXY_PROTOCOL",
        group: Limits,
        prose: "Whether trusted proxies begin each connection with a header of the PROXY protocol, version 2.",
        default: Is("false"),
        kind: Kind::Switch { set: |d, on| d.settings.limits.proxy_protocol = on },
    },
];

const fn rate(set: fn(&mut crate::config::Draft, u64)) -> Kind {
    count_or_zero(1..=1_000_000, "for no limit", set)
}
