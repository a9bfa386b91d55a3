//! Reading the settings again: which of them a running server takes over, and which wait for its next start.

use super::catalog::{self, settings};
use super::setting::{Setting, SettingError};
use super::sources::Given;
use super::{Checked, Mode, Settings};

/// Settings that a running server takes over when it reads its settings again. All others are built into threads,
/// sockets and memory at the start, or have to be the same on all instances.
pub const LIVE: [&str; 47] = [
    "WS_MAX_CONNECTIONS",
    "FLUSH_BUDGET_MS",
    "COMPRESSION",
    "COMPRESSION_THRESHOLD",
    "DRAIN_TIMEOUT",
    "OVERLOAD_CONNECTIONS",
    "OVERLOAD_BUSY",
    "ADVERTISE_URL",
    "TLS_CERT_FILE",
    "TLS_KEY_FILE",
    "AUTH_REQUIRED",
    "JWT_SECRET",
    "JWT_ALGORITHM",
    "JWT_PUBLIC_KEY_FILE",
    "JWKS_FILE",
    "JWT_ISSUER",
    "JWT_AUDIENCE",
    "TOKEN_LEEWAY",
    "DEFAULT_ROOM_PERMISSIONS",
    "ALLOWED_ORIGINS",
    "HANDSHAKE_TIMEOUT",
    "AUTHENTICATION_TIMEOUT",
    "PING_INTERVAL",
    "PONG_TIMEOUT",
    "MAX_MESSAGE_BYTES",
    "MAX_ROOMS_PER_CONNECTION",
    "MESSAGE_RATE",
    "MESSAGE_BURST",
    "PRESENCE_MAX_MEMBERS",
    "OUTBOX_BYTES",
    "OUTBOX_AGE",
    "BYTE_RATE",
    "JOIN_RATE",
    "JOIN_BURST",
    "USER_MESSAGE_RATE",
    "ADDRESS_MESSAGE_RATE",
    "ROOM_MESSAGE_RATE",
    "GLOBAL_MESSAGE_RATE",
    "MAX_CONNECTIONS_PER_USER",
    "MAX_CONNECTIONS_PER_ADDRESS",
    "MAX_HANDSHAKES",
    "ACCEPT_RATE",
    "SCHEMAS_FILE",
    "SANITIZE_NAMES",
    "API_KEY",
    "STALL_THRESHOLD",
    "LOG_LEVEL",
];

/// Live settings that are set both or not at all, and stay that way until the next start: a port speaks TLS or it
/// does not.
const TLS: [&str; 2] = ["TLS_CERT_FILE", "TLS_KEY_FILE"];

/// The live setting that can only be raised: replies that are under way are sized by it.
const OUTBOX: &str = "OUTBOX_BYTES";

/// The live setting that is there or not (0) until the next start: of connections that were not counted when they
/// came, Redis does not know.
const PER_USER: &str = "MAX_CONNECTIONS_PER_USER";

/// What has become of the settings.
pub struct Change {
    /// The settings that hold from now on.
    pub settings: Settings,
    /// The values that they were made of.
    pub given: Vec<Given>,
    /// What has changed, one `NAME: before -> now` each; values of secrets are not shown.
    pub changed: Vec<String>,
    /// Settings that are given another value and keep the old one until the next start.
    pub waiting: Vec<&'static str>,
    /// What else the person who gave them should know.
    pub notes: Vec<String>,
}

/// Compares what was given at the start, or at the last change, with what is `new`.
///
/// # Errors
/// When a new value is not allowed, or the values do not go together: among each other, or with one that waits.
pub fn compare(mode: Mode, before: &[Given], new: &[Given]) -> Result<Change, SettingError> {
    let Checked { settings: wanted, notes } = Settings::from_given(mode, new)?;
    let tls_before = before.iter().any(|given| given.setting.name == TLS[0]);
    let number_before = |name| {
        let setting = catalog::find(name)?;
        effective(mode, setting, find(before, setting))?.parse::<usize>().ok()
    };
    let is_live = |setting: &Setting| match setting.name {
        name if TLS.contains(&name) => wanted.tls.is_some() == tls_before,
        OUTBOX => number_before(OUTBOX).is_none_or(|bytes| wanted.outbox_bytes >= bytes),
        PER_USER => number_before(PER_USER)
            .is_some_and(|most| (most == 0) == (wanted.limits.max_connections_per_user == 0)),
        name => LIVE.contains(&name),
    };
    let (mut given, mut changed, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    for setting in settings() {
        let [old, now] = [before, new].map(|list| find(list, setting));
        let [old_text, now_text] = [old, now].map(|given| effective(mode, setting, given));
        if old_text == now_text || (mode == Mode::Dev && setting.serve_only()) {
            given.extend(old.cloned());
        } else if is_live(setting) {
            let shown = |text: Option<&str>| match text {
                Some(_) if setting.is_secret() => "(hidden)".to_owned(),
                Some(text) => text.to_owned(),
                None => setting.default.to_string(),
            };
            changed.push(format!("{}: {} -> {}", setting.name, shown(old_text), shown(now_text)));
            given.extend(now.cloned());
        } else {
            waiting.push(setting.name);
            given.extend(old.cloned());
        }
    }
    let merged = Settings::from_given(mode, &given).map_err(|error| match waiting.is_empty() {
        true => error,
        false => SettingError::Together(format!("{error} ({} needs a restart)", waiting.join(", "))),
    })?;
    Ok(Change { settings: merged.settings, given, changed, waiting, notes })
}

fn find<'a>(given: &'a [Given], setting: &Setting) -> Option<&'a Given> {
    given.iter().find(|given| given.setting.name == setting.name)
}

fn effective<'a>(mode: Mode, setting: &Setting, given: Option<&'a Given>) -> Option<&'a str> {
    given.map(|given| given.value.trim()).or(setting.default.value(mode))
}
