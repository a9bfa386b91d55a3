//! Who may connect, and how they prove it.

use super::{milliseconds, put, short};
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
