//! Where a result comes from: the command line, the time, the machine.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Options whose values are secrets.
const SECRET: [&str; 2] = ["--secret", "--token"];

/// Command line, time and machine of this run.
pub fn origin() -> Value {
    json!({
        "command": command(std::env::args()),
        "finished_at": time(SystemTime::now()),
        "machine": machine(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// The command line, without the program's path and without secrets.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let mut words = vec!["loadtest".to_owned()];
    let mut is_secret = false;
    for word in arguments.skip(1) {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        let shown = match (is_secret, SECRET.contains(&name), word.contains('=')) {
            (true, ..) => "…".to_owned(),
            (false, true, true) => format!("{name}=…"),
            _ => word.clone(),
        };
        is_secret = !is_secret && SECRET.contains(&word.as_str());
        words.push(shown);
    }
    words.join(" ")
}

/// Processor, cores and kernel.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

/// A time as `2026-01-31 12:34:56 UTC`.
fn time(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = date(seconds / 86_400);
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hours:02}:{minutes:02}:{:02} UTC", seconds % 60)
}

/// The date so many days after 1970 began, in the Gregorian calendar.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_868_799, "2000-02-29 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(time(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn secrets_stay_out_of_the_command_line() {
        let words = "x/loadtest rooms --secret abc --token=t --rate 5".split(' ').map(str::to_owned);
        assert_eq!(command(words), "loadtest rooms --secret … --token=… --rate 5");
    }
}
