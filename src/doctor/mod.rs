//! `tableforge doctor`: whether the server can run here, what the machine will carry, and what would be better.

mod given;
pub mod tuning;

use std::fmt;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::config::setting::SettingError;
use crate::config::sources::Given;
use crate::config::{RedisSettings, Settings};
use crate::identity::InstanceId;
use crate::limits;
use crate::preflight::{self, PreflightError};
use crate::uplink;
use tuning::Tuned;

/// Resident bytes of the server per idle connection that is in a room: what docs/performance.md holds it to.
const SERVER_BYTES_PER_CONNECTION: u64 = 1_024;

/// Bytes of the kernel per idle connection: its objects for socket, inode, file, directory entry and pending receive, and
/// what allocation in whole pages adds. Rounded up from what docs/capacity.md measures for both ends of loopback
/// together: with too few promised, nobody is refused.
const KERNEL_BYTES_PER_CONNECTION: u64 = 5_120;

/// Parts of the available memory that idle connections may take, of four: the rest is for traffic.
const IDLE_QUARTERS: u64 = 3;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The server runs, and something should be known.
    Advice,
    /// The server does not run like this.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found, and what would be right.
    pub text: String,
}

/// How many idle connections fit.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Carries {
    /// The least of what follows.
    pub connections: u64,
    /// What the memory that is available now allows, in this process's own limit too (cgroup v2).
    pub by_memory: u64,
    /// What the hard limit of descriptors allows.
    pub by_descriptors: u64,
    /// WS_MAX_CONNECTIONS.
    pub by_setting: u64,
    /// What one takes, in the server and in the kernel.
    pub bytes_per_connection: u64,
}

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// Whether the server can run.
    pub ok: bool,
    /// Each thing that was looked at.
    pub checks: Vec<Check>,
    /// How many connections fit.
    pub carries: Carries,
    /// The settings of the machine, as tuning/check shows them.
    pub tuning: Vec<Tuned>,
}

/// Looks at everything. `read` is what was given for the server, or why it could not be read; `root` is `/` or a made-up
/// one; `shard_cpus` is as for [`tuning::settings`]. What is wrong with the settings is said, and the rest is looked at
/// with those that are right.
///
/// # Errors
/// When not even the defaults hold on this machine.
pub fn diagnose(
    read: Result<Vec<Given>, SettingError>,
    root: &Path,
    shard_cpus: Option<&str>,
) -> Result<Diagnosis, SettingError> {
    let (settings, wrong) = given::usable(read)?;
    let refused = |error: SettingError| (Verdict::Failed, error.to_string());
    let mut said: Vec<_> = wrong.into_iter().map(refused).collect();
    if said.is_empty() {
        said.push((Verdict::Ok, "allowed, and go together".to_owned()));
    }
    let mut checks: Vec<_> =
        said.into_iter().map(|(verdict, text)| Check { name: "settings", verdict, text }).collect();
    checks.extend(preflight::looks(&settings).map(|(name, outcome)| on_machine(name, outcome)));
    if let Some(redis) = &settings.redis {
        checks.push(reach(redis, &settings.instance_id));
    }
    let tuning = match tuning::settings(root, shard_cpus) {
        Ok(tuning) => tuning,
        Err(text) => {
            checks.push(Check { name: "tuning", verdict: Verdict::Failed, text });
            Vec::new()
        }
    };
    let ok = checks.iter().all(|check| check.verdict != Verdict::Failed);
    Ok(Diagnosis { ok, checks, carries: Carries::of(&settings, root), tuning })
}

fn on_machine(name: &'static str, outcome: Result<Option<String>, PreflightError>) -> Check {
    let (verdict, text) = match outcome {
        Ok(None) => (Verdict::Ok, "as needed".to_owned()),
        Ok(Some(warning)) => (Verdict::Advice, warning),
        // It may be the very server that someone wants to know about.
        Err(error @ PreflightError::PortInUse(_)) => (Verdict::Advice, error.to_string()),
        Err(error) => (Verdict::Failed, error.to_string()),
    };
    Check { name, verdict, text }
}

fn reach(settings: &RedisSettings, instance: &InstanceId) -> Check {
    let place = format!("{}:{}", settings.host, settings.port);
    let (verdict, text) = match uplink::driver::reach(settings, instance) {
        Ok(()) => (Verdict::Ok, format!("{place} answers")),
        Err(error) => (Verdict::Failed, format!("{place} cannot be used: {error}")),
    };
    Check { name: "redis", verdict, text }
}

impl Carries {
    fn of(settings: &Settings, root: &Path) -> Self {
        let bytes_per_connection = SERVER_BYTES_PER_CONNECTION + KERNEL_BYTES_PER_CONNECTION;
        let by_memory = available(root) / 4 * IDLE_QUARTERS / bytes_per_connection;
        let descriptors = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let by_descriptors = descriptors.saturating_sub(limits::SPARE_DESCRIPTORS);
        let by_setting = settings.ws_max_connections.into();
        let connections = by_memory.min(by_descriptors).min(by_setting);
        Self { connections, by_memory, by_descriptors, by_setting, bytes_per_connection }
    }
}

/// Bytes of memory that are free for use: the machine's, or those of the container if it has fewer.
fn available(root: &Path) -> u64 {
    let machine = tuning::memory_kib(root, "MemAvailable").unwrap_or(0) * 1024;
    let number = |file: &str| {
        let text = std::fs::read_to_string(root.join("sys/fs/cgroup").join(file)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let container =
        number("memory.max").map(|most| most.saturating_sub(number("memory.current").unwrap_or(0)));
    machine.min(container.unwrap_or(u64::MAX))
}

/// As a person reads it.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, verdict, text } in &self.checks {
            let mark = match verdict {
                Verdict::Ok => "ok    ",
                Verdict::Advice => "advice",
                Verdict::Failed => "FAILED",
            };
            writeln!(f, "{mark}  {name:<14} {text}")?;
        }
        let Carries { connections, by_memory, by_descriptors, by_setting, bytes_per_connection } =
            self.carries;
        writeln!(
            f,
            "\nThis machine carries {connections} idle connections: {by_memory} by memory ({bytes_per_connection} bytes each, a quarter kept"
        )?;
        writeln!(f, "for traffic), {by_descriptors} by descriptors, {by_setting} by WS_MAX_CONNECTIONS.")?;
        let unmet: Vec<_> = self.tuning.iter().filter(|tuned| !tuned.met).collect();
        if !unmet.is_empty() {
            writeln!(
                f,
                "\nUnder load these would be better (tuning/apply SUBJECT... sets them, tuning/undo takes that back):"
            )?;
        }
        for Tuned { subject, file, current, wanted, why, .. } in unmet {
            writeln!(f, "  {subject:<10} {file}: {current} -> {wanted}: {why}")?;
        }
        writeln!(
            f,
            "\n{}",
            if self.ok { "The server can run here." } else { "The server cannot run like this." }
        )
    }
}
