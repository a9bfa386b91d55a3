//! What a setting is: name, prose, default and allowed values, and how a given value is read.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Draft, Mode};

/// One setting. Its `--help` text, its environment variable, its key in the file and its line in
/// the documentation all come from here.
pub struct Setting {
    /// The environment variable; the flag and the key in the file are made from it.
    pub name: &'static str,
    /// The heading under which it is listed.
    pub group: Group,
    /// What it means, in one or two sentences.
    pub prose: &'static str,
    /// What holds if it is not set.
    pub default: Preset,
    /// What values it takes, and where they go.
    pub kind: Kind,
}

/// The headings under which settings are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Addresses, shards and the process as a whole.
    Server,
    /// Who may connect, and how they prove it.
    Authentication,
    /// What one connection may use.
    Limits,
    /// What messages and names have to look like.
    Input,
    /// Which rooms keep their messages, and how many.
    History,
    /// The cluster: Redis and the other instances.
    Redis,
    /// Who may administrate, from where, and what counts as a stall.
    Administration,
    /// What is logged, and how.
    Logging,
    /// What is traced, and where to.
    Tracing,
}

impl Group {
    /// All groups, in the order in which they are listed.
    pub const ALL: [Self; 9] = [
        Self::Server,
        Self::Authentication,
        Self::Limits,
        Self::Input,
        Self::History,
        Self::Redis,
        Self::Administration,
        Self::Logging,
        Self::Tracing,
    ];

    /// The heading's text.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::Authentication => "Authentication",
            Self::Limits => "Limits",
            Self::Input => "Input",
            Self::History => "History",
            Self::Redis => "Redis",
            Self::Administration => "Administration",
            Self::Logging => "Logging",
            Self::Tracing => "Traces",
        }
    }
}

/// What holds if a setting is not given.
#[derive(Clone, Copy)]
pub enum Preset {
    /// This value.
    Is(&'static str),
    /// One value for `tableforge serve`, another for `tableforge dev`.
    PerMode {
        /// For `tableforge serve`.
        serve: &'static str,
        /// For `tableforge dev`.
        dev: &'static str,
    },
    /// No fixed value; the text says what happens instead.
    Unset(&'static str),
}

impl Preset {
    /// The value in `mode`, if it is a fixed one.
    pub fn value(self, mode: Mode) -> Option<&'static str> {
        match (self, mode) {
            (Self::Is(value), _)
            | (Self::PerMode { serve: value, .. }, Mode::Serve)
            | (Self::PerMode { dev: value, .. }, Mode::Dev) => Some(value),
            (Self::Unset(_), _) => None,
        }
    }
}

/// As it is shown in `--help` and in the documentation.
impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(value) => f.write_str(value),
            Self::PerMode { serve, dev } => write!(f, "{serve}; dev: {dev}"),
            Self::Unset(prose) => f.write_str(prose),
        }
    }
}

/// What values a setting takes, and where they go.
pub enum Kind {
    /// A whole number from `min` to `max`, or 0 where `zero` says what that means.
    Number {
        /// What is counted.
        unit: Unit,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
        /// What 0 means, if 0 is allowed below `min`.
        zero: Option<&'static str>,
        /// Puts the value in its place.
        set: fn(&mut Draft, u64),
    },
    /// A span of time, given as a whole number of `unit`.
    Time {
        /// Milliseconds or microseconds.
        unit: Unit,
        /// The shortest span.
        min: u64,
        /// The longest span.
        max: u64,
        /// Puts the value in its place.
        set: fn(&mut Draft, Duration),
    },
    /// Yes or no.
    Switch {
        /// Puts the value in its place.
        set: fn(&mut Draft, bool),
    },
    /// Text with a form of its own.
    Text {
        /// What it is, with its article: "an IP address".
        what: &'static str,
        /// What is allowed, in words.
        allowed: &'static str,
        /// Puts the value in its place, or says that it has the wrong form.
        set: fn(&mut Draft, &str) -> Result<(), WrongForm>,
    },
    /// Text that is never shown.
    Secret {
        /// The fewest bytes that are accepted.
        min_bytes: usize,
        /// Why fewer are refused.
        reason: &'static str,
        /// Puts the value in its place.
        set: fn(&mut Draft, &str),
    },
}

/// A text does not have the form that its setting needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongForm;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A TCP port.
    Port,
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Things; the prose says which.
    Count,
}

impl Unit {
    /// The short form in tables.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Bytes => "bytes",
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Count => "",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Port => "a port",
            Self::Bytes => "a whole number of bytes",
            Self::Milliseconds => "a whole number of milliseconds",
            Self::Microseconds => "a whole number of microseconds",
            Self::Count => "a whole number",
        }
    }
}

impl Setting {
    /// The flag without its dashes, `redis-host` for `REDIS_HOST`.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// The key in the file, `redis_host` for `REDIS_HOST`. The flag's spelling is accepted too.
    pub fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// Whether `tableforge dev` goes without it: it runs alone and lets everyone in.
    pub fn serve_only(&self) -> bool {
        self.group == Group::Redis || self.name == "AUTH_REQUIRED"
    }

    /// Whether the value must never be shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret { .. }) || self.name == "API_KEY"
    }

    /// The unit's short form; empty for what has none.
    pub fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Number { unit, .. } | Kind::Time { unit, .. } => unit.symbol(),
            _ => "",
        }
    }

    /// The allowed values in words.
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Number { min, max, zero: Some(zero), .. } => format!("{min} to {max} (0 {zero})"),
            Kind::Number { min, max, zero: None, .. } | Kind::Time { min, max, .. } => {
                format!("{min} to {max}")
            }
            Kind::Switch { .. } => "true or false".into(),
            Kind::Text { allowed, .. } => allowed.into(),
            Kind::Secret { min_bytes, .. } => format!("{min_bytes} to {SECRET_BYTES} bytes"),
        }
    }

    /// Reads `value` and puts it in its place in `draft`.
    ///
    /// # Errors
    /// When the value is not allowed; nothing is set then.
    pub fn apply(&self, draft: &mut Draft, value: &str, source: &Source) -> Result<(), SettingError> {
        let refused = |problem: &str| {
            let shown = if self.is_secret() { "the value".into() } else { shown(value) };
            SettingError::Value {
                name: self.name,
                value: shown,
                origin: source.origin(self),
                problem: problem.into(),
                allowed: self.allowed(),
            }
        };
        match self.kind {
            Kind::Number { unit, min, max, zero, set } => {
                let allowed = |n| (min..=max).contains(&n) || (n == 0 && zero.is_some());
                set(draft, number(value, unit, allowed).map_err(|problem| refused(&problem))?);
            }
            Kind::Time { unit, min, max, set } => {
                let allowed = |n| (min..=max).contains(&n);
                let n = number(value, unit, allowed).map_err(|problem| refused(&problem))?;
                let micros = if unit == Unit::Microseconds { n } else { n * 1000 };
                set(draft, Duration::from_micros(micros));
            }
            Kind::Switch { set } => {
                set(draft, switch(value).ok_or_else(|| refused("is neither true nor false"))?);
            }
            Kind::Text { what, set, .. } => {
                set(draft, value).map_err(|WrongForm| refused(&format!("is not {what}")))?;
            }
            Kind::Secret { min_bytes, reason, set } => {
                if !(min_bytes..=SECRET_BYTES).contains(&value.len()) {
                    return Err(refused(&format!("has {} bytes: {reason}", value.len())));
                }
                set(draft, value);
            }
        }
        Ok(())
    }
}

/// Bytes of the longest secret: far more than any key needs, and less than a file given by mistake.
const SECRET_BYTES: usize = 4096;

fn number(value: &str, unit: Unit, allowed: impl Fn(u64) -> bool) -> Result<u64, String> {
    match value.trim().parse::<u64>() {
        Ok(n) if allowed(n) => Ok(n),
        Ok(_) => Err("is out of range".into()),
        Err(_) => Err(format!("is not {}", unit.what())),
    }
}

fn switch(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// `value` in quotes, on one line and not endless.
fn shown(value: &str) -> String {
    const LONGEST: usize = 60;
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &value[..end]),
        None => format!("{value:?}"),
    }
}

/// Reads a span of time of the command line: seconds, or a number with s, m, h or d. Gives seconds.
///
/// # Errors
/// When it is none, or 0.
pub fn parse_span(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(|c: char| c.is_ascii_alphabetic()) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => 0,
    };
    let ttl = number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).filter(|ttl| *ttl > 0);
    ttl.ok_or_else(|| "allowed: seconds, or a number with s, m, h or d, such as 90, 15m, 1h".into())
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag on the command line.
    Flag,
    /// The environment.
    Environment,
    /// The file that `--config` names.
    File(PathBuf),
    /// The setting's own default.
    Default,
}

impl Source {
    fn origin(&self, setting: &Setting) -> String {
        match self {
            Self::Flag => format!("from --{}", setting.flag()),
            Self::Environment => "from the environment".into(),
            Self::File(path) => format!("from the file {}", path.display()),
            Self::Default => "by default".into(),
        }
    }
}

/// Why the settings were refused. The text is one line: what was wrong and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// A value that its setting does not take.
    #[error("{name}: {value} {origin} {problem}; allowed: {allowed}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What was given; for a secret only that it was.
        value: String,
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        problem: String,
        /// What would be right.
        allowed: String,
    },
    /// A flag that `tableforge dev` does not take.
    #[error(
        "--{flag} is not for tableforge dev, which runs alone and lets everyone in; use tableforge serve"
    )]
    ServeOnly {
        /// The flag without its dashes.
        flag: String,
    },
    /// Settings that do not go together, or one that is missing.
    #[error("{0}")]
    Together(String),
    /// A key in the file that is not a setting.
    #[error("{path}: {key:?} is not a setting; {instead}")]
    UnknownKey {
        /// The file.
        path: String,
        /// The key as written.
        key: String,
        /// The key that may be meant, or where all are listed.
        instead: String,
    },
    /// The file could not be used.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}
