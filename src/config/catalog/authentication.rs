//! Who may connect, and how they prove it.

use super::{count, milliseconds, path, put, short};
use crate::command::keys::SECRET_ALGORITHMS;
use crate::config::authentication::endpoint;
use crate::config::setting::Group::Authentication;
use crate::config::setting::Preset::{Is, PerMode, Unset};
use crate::config::setting::{Kind, Setting};
use crate::limits;
use crate::permission::RoomRights;

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
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
        prose: "The secret that tokens are signed with (HS256, or see JWT_ALGORITHM).",
        default: Unset("none"),
        kind: Kind::Secret {
            min_bytes: limits::JWT_SECRET_BYTES,
            reason: "HS256 needs a key of 32 bytes or more, a shorter one can be guessed (RFC \
                     7518 section 3.2); make one with `openssl rand -hex 32`",
            set: |d, value| d.settings.jwt_secret = Some(value.into()),
        },
    },
    Setting {
        name: "JWT_ALGORITHM",
        group: Authentication,
        prose: "The one algorithm of tokens signed with JWT_SECRET. HS384 needs a secret of 48 bytes, HS512 one of 64.",
        default: Is("HS256"),
        kind: Kind::Text {
            what: "an algorithm for a secret",
            allowed: "HS256, HS384 or HS512",
            set: |d, value| {
                let known = SECRET_ALGORITHMS.iter().find(|(name, _, _)| *name == value);
                put(&mut d.settings.keys.secret_algorithm, known.map(|(_, algorithm, _)| *algorithm))
            },
        },
    },
    Setting {
        name: "JWT_PUBLIC_KEY_FILE",
        group: Authentication,
        prose: "PEM file with the public key that tokens are verified with; its kind says the algorithm. Read again when it changes.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a PEM file with one public key: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA)",
            set: |d, value| {
                d.settings.keys.public_key_file = Some(value.into());
                Ok(())
            },
        },
    },
    Setting {
        name: "JWKS_FILE",
        group: Authentication,
        prose: "JSON Web Key Set with public keys that tokens are verified with, chosen by `kid`. Read again when it changes.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a JSON file with a list `keys` (RFC 7517)",
            set: |d, value| {
                d.settings.keys.jwks_file = Some(value.into());
                Ok(())
            },
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
        name: "AUTHORIZE_URL",
        group: Authentication,
        prose: "Where the server asks whether a user without a `rooms` claim may join a room; see below.",
        default: Unset("none: DEFAULT_ROOM_PERMISSIONS hold"),
        kind: Kind::Text {
            what: "an address to post to",
            allowed: "http://HOST:PORT/PATH or https://…, without user and password",
            set: |d, value| put(&mut d.authorization.url, endpoint(value)),
        },
    },
    Setting {
        name: "AUTHORIZE_CA_FILE",
        group: Authentication,
        prose: "Certificates (PEM) of the authorities that an https:// AUTHORIZE_URL is checked against.",
        default: Unset("those of the system"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a file in PEM form",
            set: |d, value| path(&mut d.authorization.ca_file, value),
        },
    },
    Setting {
        name: "AUTHORIZE_SECRET",
        group: Authentication,
        prose: "Sent to AUTHORIZE_URL as `Authorization: Bearer …`, so that the application knows who asks.",
        default: Unset("none"),
        kind: Kind::Secret {
            min_bytes: 16,
            reason: "a shorter one can be guessed; make one with `openssl rand -hex 32`",
            set: |d, value| d.authorization.secret = Some(value.into()),
        },
    },
    Setting {
        name: "AUTHORIZE_TIMEOUT",
        group: Authentication,
        prose: "Time for one answer of AUTHORIZE_URL; then the join is answered `unavailable`.",
        default: Is("2000"),
        kind: milliseconds(50..=30_000, |d, t| d.authorization.timeout = t),
    },
    Setting {
        name: "AUTHORIZE_CACHE_TTL",
        group: Authentication,
        prose: "Time for which an answer of AUTHORIZE_URL holds for the same user and room; 0 to ask at each join.",
        default: Is("10000"),
        kind: milliseconds(0..=3_600_000, |d, t| d.authorization.cache_ttl = t),
    },
    Setting {
        name: "AUTHORIZE_CONCURRENCY",
        group: Authentication,
        prose: "Questions to AUTHORIZE_URL under way at once; each is a thread.",
        default: Is("8"),
        kind: count(1..=256, |d, n| d.authorization.concurrency = n as usize),
    },
    Setting {
        name: "AUTHORIZE_PAUSE",
        group: Authentication,
        prose: "Time for which AUTHORIZE_URL is left alone after five failures in a row, before one question tries it again.",
        default: Is("5000"),
        kind: milliseconds(100..=600_000, |d, t| d.authorization.retry_pause = t),
    },
];

/// An origin as browsers write it (RFC 6454 section 6.2): scheme, host and port in lower case.
fn origin(value: &str) -> Option<String> {
    let value = value.trim().to_ascii_lowercase();
    let (scheme, host) = value.split_once("://")?;
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    let host_fits = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && !"/?#@*,".contains(c));
    (scheme_fits && host_fits).then_some(value)
}
