//! What the server processes used over a stretch of time.

use serde::Serialize;

use crate::process;
use crate::report::rounded;

/// One server process.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessFigures {
    /// Its number.
    pub pid: u32,
    /// CPU, in percent of one core.
    pub cpu_percent: f64,
    /// Resident memory at the end.
    pub resident_bytes: u64,
}

/// All server processes together.
#[derive(Clone, Debug, Serialize)]
pub struct ServerFigures {
    /// CPU time used.
    pub cpu_seconds: f64,
    /// CPU, in percent of one core.
    pub cpu_percent: f64,
    /// CPU per delivery in microseconds, where there were any.
    pub cpu_us_per_delivery: Option<f64>,
    /// Resident memory at the end.
    pub resident_bytes: u64,
    /// Each of them.
    pub processes: Vec<ProcessFigures>,
}

/// The CPU time of processes at one moment.
pub struct CpuReading {
    seconds: Vec<(u32, f64)>,
}

impl CpuReading {
    /// Reads the processes' CPU time.
    ///
    /// # Errors
    /// One of them does not exist; the text names it.
    pub fn take(pids: &[u32]) -> Result<Self, String> {
        let seconds = pids.iter().map(|pid| Ok((*pid, process::cpu_seconds(*pid)?)));
        Ok(Self { seconds: seconds.collect::<Result<_, String>>()? })
    }

    /// What was used since, over so many seconds; `None` without processes.
    ///
    /// # Errors
    /// One of them has ended; the text names it.
    pub fn since(&self, seconds: f64) -> Result<Option<ServerFigures>, String> {
        let mut cpu_seconds = 0.0;
        let mut processes = Vec::new();
        for &(pid, before) in &self.seconds {
            let used = process::cpu_seconds(pid)? - before;
            let resident_bytes = process::resident_bytes(pid)?;
            cpu_seconds += used;
            processes.push(ProcessFigures {
                pid,
                cpu_percent: rounded(100.0 * used / seconds),
                resident_bytes,
            });
        }
        Ok((!processes.is_empty()).then(|| ServerFigures {
            cpu_seconds: rounded(cpu_seconds),
            cpu_percent: rounded(100.0 * cpu_seconds / seconds),
            cpu_us_per_delivery: None,
            resident_bytes: processes.iter().map(|process| process.resident_bytes).sum(),
            processes,
        }))
    }
}

impl ServerFigures {
    /// The same, with the CPU time spread over so many deliveries.
    pub fn per_delivery(mut self, deliveries: u64) -> Self {
        self.cpu_us_per_delivery =
            (deliveries > 0).then(|| rounded(self.cpu_seconds * 1e6 / deliveries as f64));
        self
    }
}

/// Resident memory of all processes together.
///
/// # Errors
/// One of them does not exist; the text names it.
pub fn resident_bytes(pids: &[u32]) -> Result<u64, String> {
    pids.iter().map(|pid| process::resident_bytes(*pid)).sum()
}
