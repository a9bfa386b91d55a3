//! What is logged, and how.

use super::{count_or_zero, put};
use crate::config::LogFormat;
use crate::config::setting::Group::Logging;
use crate::config::setting::Preset::{Is, PerMode};
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
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
    Setting {
        name: "LOG_REPEATS",
        group: Logging,
        prose: "Lines of the same kind within ten seconds; more are left out and counted. Debug and trace lines are not limited.",
        default: Is("20"),
        kind: count_or_zero(1..=1_000_000, "for no limit", |d, n| d.settings.log_repeats = n),
    },
];

/// A word alone must be a level: as a directive it would be the name of a module, and a mistyped
/// level would log nothing.
fn log_filter(value: &str) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let value = value.trim().to_ascii_lowercase();
    let known = |part: &str| part.contains(['=', '[']) || LEVELS.contains(&part.trim());
    let fits = value.split(',').all(known) && tracing_subscriber::EnvFilter::try_new(&value).is_ok();
    fits.then_some(value)
}
