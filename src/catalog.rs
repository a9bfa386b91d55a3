//! Every setting, once: `--help`, the environment, the file and the documentation are made from it.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::{Draft, LogFormat};
use crate::identity::InstanceId;
use crate::limits;
use crate::permission::RoomRights;
use crate::setting::Group::{Authentication, Limits, Logging, NotSupported, Redis, Server};
use crate::setting::Preset::{Is, PerMode, Unset};
use crate::setting::Unit::{Bytes, Count, Microseconds, Milliseconds, Port};
use crate::setting::{Kind, Setting, WrongForm};

/// All settings, in the order in which they are listed.
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
        prose: "Connections that this instance takes; more get 503.",
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
        default: Is("false"),
        kind: Kind::Switch { set: |d, on| d.settings.compression = on },
    },
    Setting {
        name: "DRAIN_TIMEOUT",
        group: Server,
        prose: "Longest time that a stopping instance takes to send its clients away.",
        default: Is("30000"),
        kind: milliseconds(0..=600_000, |d, t| d.settings.drain_timeout = t),
    },
    Setting {
        name: "AUTH_REQUIRED",
        group: Authentication,
        prose: "Whether clients need a token; `false` allows anonymous users.",
        default: PerMode { serve: "true", dev: "false" },
        kind: Kind::Switch { set: |d, on| d.settings.auth_required = on },
    },
    Setting {
        name: "JWT_SECRET",
        group: Authentication,
        prose: "The secret that tokens are signed with (HS256).",
        default: Unset("none"),
        kind: Kind::Secret {
            min_bytes: limits::JWT_SECRET_BYTES,
            reason: "HS256 needs a key of 32 bytes or more, a shorter one can be guessed (RFC \
                     7518 section 3.2); make one with `openssl rand -hex 32`",
            set: |d, value| d.settings.jwt_secret = Some(value.into()),
        },
    },
    Setting {
        name: "JWT_ISSUER",
        group: Authentication,
        prose: "The `iss` that tokens must have.",
        default: Unset("any"),
        kind: Kind::Text {
            what: "an issuer",
            allowed: "1 to 256 bytes",
            set: |d, value| put(&mut d.settings.jwt_issuer, short(value).map(Some)),
        },
    },
    Setting {
        name: "JWT_AUDIENCE",
        group: Authentication,
        prose: "The `aud` that tokens must have, alone or in a list.",
        default: Unset("any"),
        kind: Kind::Text {
            what: "an audience",
            allowed: "1 to 256 bytes",
            set: |d, value| put(&mut d.settings.jwt_audience, short(value).map(Some)),
        },
    },
    Setting {
        name: "TOKEN_LEEWAY",
        group: Authentication,
        prose: "How far clocks may be apart when the `exp` and `nbf` of a token are checked.",
        default: Is("5000"),
        kind: milliseconds(0..=60_000, |d, t| d.settings.token_leeway = t),
    },
    Setting {
        name: "DEFAULT_ROOM_PERMISSIONS",
        group: Authentication,
        prose: "What anonymous users, and users whose token has no `rooms` claim, may do in rooms.",
        default: Is("join,publish,history,members"),
        kind: Kind::Text {
            what: "a list of permissions",
            allowed: "a comma-separated list out of join, publish, history, members",
            set: |d, value| put(&mut d.settings.default_room_permissions, RoomRights::parse_list(value)),
        },
    },
    Setting {
        name: "ALLOWED_ORIGINS",
        group: Authentication,
        prose: "Origins whose pages may connect.",
        default: Unset("all"),
        kind: Kind::Text {
            what: "a list of origins",
            allowed: "comma-separated origins like https://example.org, without a path",
            set: |d, value| put(&mut d.settings.allowed_origins, value.split(',').map(origin).collect()),
        },
    },
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
        prose: "Longest time that a publication waits for others to share its batch.",
        default: Is("500"),
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
        default: Is("1024"),
        kind: bytes(64..=1_048_576, |d, n| d.redis.batch_compress_bytes = n as usize),
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
        prose: "Silence after which an instance counts as gone, and its members leave.",
        default: Is("15000"),
        kind: milliseconds(150..=3_600_000, |d, t| d.redis.inactive_threshold = t),
    },
    Setting {
        name: "LOG_LEVEL",
        group: Logging,
        prose: "What is logged: a level, or filter directives.",
        default: Is("info"),
        kind: Kind::Text {
            what: "a log level",
            allowed: "off, error, warn, info, debug, trace, or directives like info,tableforge::uplink=debug",
            set: |d, value| put(&mut d.settings.log_level, log_filter(value)),
        },
    },
    Setting {
        name: "LOG_FORMAT",
        group: Logging,
        prose: "Form of a line of the log, on standard error.",
        default: PerMode { serve: "json", dev: "pretty" },
        kind: Kind::Text {
            what: "a log format",
            allowed: "json or pretty",
            set: |d, value| put(&mut d.settings.log_format, LogFormat::parse(value)),
        },
    },
    not_supported(
        "JWT_PUBLIC_KEY_FILE",
        "Public key that tokens are verified with (RS256, ES256, EdDSA).",
        &[],
    ),
    not_supported("JWKS_FILE", "Set of public keys that tokens are verified with.", &[]),
    not_supported("API_KEY", "Key for the administrative HTTP interface.", &[]),
    not_supported("TRUSTED_PROXIES", "Proxies whose word on the address of a client is believed.", &[]),
    not_supported("MAX_CONNECTIONS_PER_USER", "Connections of one user.", &["0"]),
    not_supported("MAX_CONNECTIONS_PER_ADDRESS", "Connections from one address.", &["0"]),
    not_supported("HISTORY_ROOMS", "Rooms whose messages are kept.", &[]),
    not_supported("HISTORY_SIZE", "Messages kept per room.", &[]),
    not_supported("HISTORY_TTL", "Time for which messages are kept.", &[]),
    not_supported("TLS_CERT_FILE", "Certificate for TLS.", &[]),
    not_supported("TLS_KEY_FILE", "Private key for TLS.", &[]),
    not_supported("REDIS_TLS", "TLS on the link to Redis.", &["false", "off"]),
    not_supported("REDIS_CA_FILE", "Certificates that the one of Redis is checked against.", &[]),
];

/// The setting called `name`.
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

const fn count(range: RangeInclusive<u64>, set: fn(&mut Draft, u64)) -> Kind {
    Kind::Number { unit: Count, min: *range.start(), max: *range.end(), zero: None, set }
}

const fn count_or_zero(range: RangeInclusive<u64>, zero: &'static str, set: fn(&mut Draft, u64)) -> Kind {
    Kind::Number { unit: Count, min: *range.start(), max: *range.end(), zero: Some(zero), set }
}

const fn bytes(range: RangeInclusive<u64>, set: fn(&mut Draft, u64)) -> Kind {
    Kind::Number { unit: Bytes, min: *range.start(), max: *range.end(), zero: None, set }
}

const fn milliseconds(range: RangeInclusive<u64>, set: fn(&mut Draft, Duration)) -> Kind {
    Kind::Time { unit: Milliseconds, min: *range.start(), max: *range.end(), set }
}

const fn not_supported(
    name: &'static str,
    prose: &'static str,
    harmless: &'static [&'static str],
) -> Setting {
    let kind = Kind::NotSupported { harmless };
    Setting { name, group: NotSupported, prose, default: Unset("none"), kind }
}

/// Puts `value` into `place` if it had the right form.
fn put<T>(place: &mut T, value: Option<T>) -> Result<(), WrongForm> {
    *place = value.ok_or(WrongForm)?;
    Ok(())
}

fn short(value: &str) -> Option<String> {
    (1..=256).contains(&value.len()).then(|| value.into())
}

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

/// An origin as browsers write it (RFC 6454 section 6.2): scheme, host and port in lower case.
fn origin(value: &str) -> Option<String> {
    let value = value.trim().to_ascii_lowercase();
    let (scheme, host) = value.split_once("://")?;
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    let host_fits = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && !"/?#@*,".contains(c));
    (scheme_fits && host_fits).then_some(value)
}

/// A word alone must be a level: as a directive it would be the name of a module, and a mistyped
/// level would log nothing.
fn log_filter(value: &str) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let value = value.trim().to_ascii_lowercase();
    let known = |part: &str| part.contains(['=', '[']) || LEVELS.contains(&part.trim());
    let fits = value.split(',').all(known) && tracing_subscriber::EnvFilter::try_new(&value).is_ok();
    fits.then_some(value)
}
