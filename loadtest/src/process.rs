//! What the kernel says about processes: CPU time, memory, descriptors.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Clock ticks per second in /proc: `USER_HZ`, 100 on every Linux architecture in use.
const TICKS_PER_SECOND: f64 = 100.0;

/// Descriptors besides those of connections: standard streams, epoll, files read in between.
const SPARE_DESCRIPTORS: u64 = 32;

/// CPU time that a process with all its threads has used, in seconds, to 10 ms
/// (proc(5), /proc/pid/stat: utime and stime).
///
/// # Errors
/// The process does not exist; the text names it.
pub fn cpu_seconds(pid: u32) -> Result<f64, String> {
    let stat = read(pid, "stat")?;
    parse_cpu(&stat).ok_or_else(|| format!("/proc/{pid}/stat is not understood"))
}

fn parse_cpu(stat: &str) -> Option<f64> {
    // The second field is the name in parentheses and may hold anything, parentheses too.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((ticks(14)? + ticks(15)?) as f64 / TICKS_PER_SECOND)
}

/// Bytes of memory that a process has resident.
///
/// # Errors
/// The process does not exist; the text names it.
pub fn resident_bytes(pid: u32) -> Result<u64, String> {
    // smaps_rollup counts pages exactly; status sums per-CPU counters and can be off by some
    // hundred kilobytes, but can be read of another user's process.
    let rollup = read(pid, "smaps_rollup").ok().and_then(|text| parse_kilobytes(&text, "Rss:"));
    match rollup {
        Some(bytes) => Ok(bytes),
        None => parse_kilobytes(&read(pid, "status")?, "VmRSS:")
            .ok_or_else(|| format!("/proc/{pid}/status has no VmRSS: has the process ended?")),
    }
}

fn parse_kilobytes(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn read(pid: u32, file: &str) -> Result<String, String> {
    fs::read_to_string(format!("/proc/{pid}/{file}"))
        .map_err(|error| format!("cannot read about process {pid}: {error}"))
}

/// CPU time that this process has used so far.
pub fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Raises the limit of open descriptors as far as it goes, for `connections` connections.
///
/// # Errors
/// It does not go far enough; the text says what is needed and what there is.
pub fn allow_connections(connections: usize) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .map_err(|error| format!("cannot raise the limit of open descriptors: {error}"))?;
    check_descriptors(connections, limit.maximum)
}

fn check_descriptors(connections: usize, maximum: Option<u64>) -> Result<(), String> {
    let needed = connections as u64 + SPARE_DESCRIPTORS;
    match maximum {
        Some(maximum) if maximum < needed => Err(format!(
            "{connections} connections need {needed} open descriptors, and the hard limit is {maximum}: \
             raise it (ulimit -Hn {needed}, as root) or ask for at most {} connections",
            maximum.saturating_sub(SPARE_DESCRIPTORS)
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_after_any_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 7 20 0 3 0 100 1000 10";
        assert_eq!(parse_cpu(stat), Some(3.0));
        assert_eq!(parse_cpu("42 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(parse_kilobytes("Name:\tx\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234 * 1024));
        assert_eq!(parse_kilobytes("Name:\tx\n", "VmRSS:"), None);
    }

    #[test]
    fn this_process_can_be_read_and_a_missing_one_is_named() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        assert!(cpu_seconds(std::process::id()).is_ok());
        assert!(cpu_seconds(u32::MAX).unwrap_err().contains("4294967295"));
    }

    #[test]
    fn a_descriptor_limit_too_low_is_refused_with_both_numbers() {
        let message = check_descriptors(50_000, Some(20_000)).unwrap_err();
        assert!(message.contains("50032") && message.contains("20000"), "{message}");
        assert_eq!(check_descriptors(19_968, Some(20_000)), Ok(()));
        assert_eq!(check_descriptors(50_000, None), Ok(()));
    }
}
