//! Every setting, once: `--help`, the environment, the file and the documentation are made from it.

mod administration;
mod authentication;
mod history;
mod input;
mod limits;
mod logging;
mod quotas;
mod redis;
mod server;
mod tls;
mod tracing;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

pub use self::server::is_server_address;
use super::Draft;
use super::setting::Unit::{Bytes, Count, Milliseconds};
use super::setting::{Kind, Setting, WrongForm};

/// The settings by subject, in the order in which they are listed.
static SUBJECTS: [&[Setting]; 11] = [
    server::SETTINGS,
    tls::SETTINGS,
    authentication::SETTINGS,
    limits::SETTINGS,
    quotas::SETTINGS,
    input::SETTINGS,
    history::SETTINGS,
    redis::SETTINGS,
    administration::SETTINGS,
    logging::SETTINGS,
    tracing::SETTINGS,
];

/// All settings, in the order in which they are listed.
pub fn settings() -> impl Iterator<Item = &'static Setting> + Clone {
    SUBJECTS.into_iter().flatten()
}

/// The setting called `name`.
pub fn find(name: &str) -> Option<&'static Setting> {
    settings().find(|setting| setting.name == name)
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

/// Puts `value` into `place` if it had the right form.
fn put<T>(place: &mut T, value: Option<T>) -> Result<(), WrongForm> {
    *place = value.ok_or(WrongForm)?;
    Ok(())
}

/// Puts a path that is not empty into `place`.
fn path(place: &mut Option<PathBuf>, value: &str) -> Result<(), WrongForm> {
    put(place, (!value.trim().is_empty()).then(|| Some(value.into())))
}

fn short(value: &str) -> Option<String> {
    (1..=256).contains(&value.len()).then(|| value.into())
}
