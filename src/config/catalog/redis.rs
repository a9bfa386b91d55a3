//! The cluster: Redis and the other instances.

use super::{bytes, count, milliseconds, path, put, short};
use crate::config::setting::Group::Redis;
use crate::config::setting::Preset::{Is, Unset};
use crate::config::setting::Unit::{Microseconds, Port};
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "REDIS_HOST",
        group: Redis,
        prose: "Host name or address of Redis; without it the server runs alone.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a host",
            allowed: "a host name or an IP address, without scheme and port",
            set: |d, value| put(&mut d.redis.host, host(value)),
        },
    },
    Setting {
        name: "REDIS_PORT",
        group: Redis,
        prose: "Port of Redis.",
        default: Is("6379"),
        kind: Kind::Number {
            unit: Port,
            min: 1,
            max: 65535,
            zero: None,
            set: |d, n| d.redis.port = n as u16,
        },
    },
    Setting {
        name: "REDIS_USERNAME",
        group: Redis,
        prose: "ACL user; goes with REDIS_PASSWORD.",
        default: Unset("the default user"),
        kind: Kind::Text {
            what: "a user name",
            allowed: "1 to 256 bytes",
            set: |d, value| put(&mut d.redis.username, short(value).map(Some)),
        },
    },
    Setting {
        name: "REDIS_PASSWORD",
        group: Redis,
        prose: "Password for Redis.",
        default: Unset("none"),
        kind: Kind::Secret {
            min_bytes: 1,
            reason: "that is no password",
            set: |d, value| d.redis.password = Some(value.into()),
        },
    },
    Setting {
        name: "REDIS_DB",
        group: Redis,
        prose: "Database of the keys.",
        default: Is("0"),
        kind: count(0..=65535, |d, n| d.redis.db = n as u32),
    },
    Setting {
        name: "REDIS_PUBSUB_DB",
        group: Redis,
        prose: "Accepted and without effect: channels belong to no database. Separate clusters by REDIS_PREFIX.",
        default: Is("0"),
        kind: count(0..=65535, |_, _| {}),
    },
    Setting {
        name: "REDIS_TLS",
        group: Redis,
        prose: "Whether the link to Redis is encrypted; its certificate must name REDIS_HOST.",
        default: Is("false"),
        kind: Kind::Switch { set: |d, on| d.redis.tls = on },
    },
    Setting {
        name: "REDIS_CA_FILE",
        group: Redis,
        prose: "Authorities (PEM) that the certificate of Redis is checked against.",
        default: Unset("those of the system"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a file in PEM form",
            set: |d, value| path(&mut d.redis.ca_file, value),
        },
    },
    Setting {
        name: "REDIS_CERT_FILE",
        group: Redis,
        prose: "Certificate (PEM) that is shown to Redis, if it asks for one; goes with REDIS_KEY_FILE.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a file in PEM form",
            set: |d, value| path(&mut d.redis.cert_file, value),
        },
    },
    Setting {
        name: "REDIS_KEY_FILE",
        group: Redis,
        prose: "Private key (PEM) of that certificate.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a file in PEM form",
            set: |d, value| path(&mut d.redis.key_file, value),
        },
    },
    Setting {
        name: "REDIS_PREFIX",
        group: Redis,
        prose: "Begins the name of every channel and key.",
        default: Is("tableforge:"),
        kind: Kind::Text {
            what: "a prefix",
            allowed: "1 to 64 of A-Z a-z 0-9 _ . : - { }",
            set: |d, value| put(&mut d.redis.prefix, prefix(value)),
        },
    },
    Setting {
        name: "REDIS_TIMEOUT",
        group: Redis,
        prose: "Time after which an unanswered command counts as lost, and the link with it.",
        default: Is("1000"),
        kind: milliseconds(50..=60_000, |d, t| d.redis.timeout = t),
    },
    Setting {
        name: "PUBLISH_BATCH_AGE_US",
        group: Redis,
        prose: "Time between two batches: what is published after a pause goes at once, in a busy time it waits about so long for others, three times as long while three or more messages come in such a time, and twice as long while 16 or more do.",
        default: Is("4000"),
        kind: Kind::Time { unit: Microseconds, min: 0, max: 100_000, set: |d, t| d.redis.batch_age = t },
    },
    Setting {
        name: "PUBLISH_BATCH_BYTES",
        group: Redis,
        prose: "Size at which a batch is sent without waiting.",
        default: Is("65536"),
        kind: bytes(1024..=1_048_576, |d, n| d.redis.batch_bytes = n as usize),
    },
    Setting {
        name: "PUBLISH_COMPRESS_BYTES",
        group: Redis,
        prose: "Size from which a batch is compressed, if that makes it smaller.",
        default: Is("256"),
        kind: bytes(64..=1_048_576, |d, n| d.redis.batch_compress_bytes = n as usize),
    },
    Setting {
        name: "PUBLISH_LANE_PEERS",
        group: Redis,
        prose: "Other instances up to which a busy instance sends to all of them at once over its lane, instead of to each room's channel; 0 never.",
        default: Is("16"),
        kind: count(0..=1024, |d, n| d.redis.lane_peers = n as usize),
    },
    Setting {
        name: "HEARTBEAT_INTERVAL",
        group: Redis,
        prose: "Time between heartbeats.",
        default: Unset("5000, at most a third of INACTIVE_THRESHOLD"),
        kind: milliseconds(50..=600_000, |d, t| d.heartbeat_interval = Some(t)),
    },
    Setting {
        name: "CLEANUP_INTERVAL",
        group: Redis,
        prose: "Time between looks for instances that have gone silent.",
        default: Unset("5000, at most a third of INACTIVE_THRESHOLD"),
        kind: milliseconds(50..=600_000, |d, t| d.cleanup_interval = Some(t)),
    },
    Setting {
        name: "INACTIVE_THRESHOLD",
        group: Redis,
        prose: "Time within which the members of an instance that died have left; it counts as gone after a silence of 0.8 of that.",
        default: Is("15000"),
        kind: milliseconds(150..=3_600_000, |d, t| d.redis.inactive_threshold = t),
    },
];

/// A host, not a URL: `redis://…` here would otherwise fail much later, as an unknown host name.
fn host(value: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let port_given = value.matches(':').count() == 1;
    let fits = (1..=253).contains(&value.len()) && value.chars().all(allowed) && !port_given;
    fits.then(|| value.into())
}

fn prefix(value: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '-' | '{' | '}');
    ((1..=64).contains(&value.len()) && value.chars().all(allowed)).then(|| value.into())
}
