//! Who may administrate, from where, and what counts as a stall.

use super::{milliseconds, put};
use crate::config::ApiKeys;
use crate::config::administration::Secret;
use crate::config::setting::Group::Administration;
use crate::config::setting::Preset::{Is, Unset};
use crate::config::setting::Unit::Port;
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "API_KEY",
        group: Administration,
        prose: "Keys of the HTTP interface `/api/`; without one only tokens with `admin` open it.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a list of keys",
            allowed: "comma-separated keys, each as it is or as `sha256:` and the 64 hexadecimal digits of its hash",
            set: |d, value| put(&mut d.settings.administration.keys, ApiKeys::parse(value)),
        },
    },
    Setting {
        name: "ADMIN_SECRET",
        group: Administration,
        prose: "Signs administrative commands in Redis, the same on all instances; without it only instances give them.",
        default: Unset("instances agree on one"),
        kind: Kind::Secret {
            min_bytes: 32,
            reason: "a shorter one can be guessed; make one with `openssl rand -hex 32`",
            set: |d, value| d.settings.administration.secret = Some(Secret(value.into())),
        },
    },
    Setting {
        name: "ADMIN_PORT",
        group: Administration,
        prose: "Separate port for `/metrics` and `/api/`, which the main port then does not serve.",
        default: Is("0"),
        kind: Kind::Number {
            unit: Port,
            min: 1,
            max: 65535,
            zero: Some("for none"),
            set: |d, n| d.settings.administration.port = (n > 0).then_some(n as u16),
        },
    },
    Setting {
        name: "ADMIN_HOST",
        group: Administration,
        prose: "Address of ADMIN_PORT.",
        default: Is("127.0.0.1"),
        kind: Kind::Text {
            what: "an IP address",
            allowed: "an IPv4 or IPv6 address",
            set: |d, value| put(&mut d.settings.administration.host, value.parse().ok()),
        },
    },
    Setting {
        name: "STALL_THRESHOLD",
        group: Administration,
        prose: "Age of a shard's last turn from which on `/health` is `unhealthy`.",
        default: Is("5000"),
        kind: milliseconds(500..=600_000, |d, t| d.settings.administration.stall_threshold = t),
    },
];
