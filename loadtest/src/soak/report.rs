//! What a run found.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use serde::Serialize;

use crate::Ms;
use crate::tally::{Counts, Tally};

/// What became of the faults of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FaultFigures {
    /// How many there were.
    pub number: u64,
    /// Milliseconds from the end of the fault, and of another at the same time, until all members were current.
    pub current_ms: Vec<Ms>,
}

impl FaultFigures {
    fn median(&self) -> Option<Ms> {
        let mut sorted = self.current_ms.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

/// What happened in one second, and how things stood at its end.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Its begin, in seconds since the run began.
    pub second: f64,
    /// Messages sent for the first time.
    pub sent: u64,
    /// `message_ack`s.
    pub acked: u64,
    /// `room_message`s that came.
    pub delivered: u64,
    /// Clients with a connection at the end.
    pub open: u64,
}

/// What a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The seed of faults, clients and limits.
    pub seed: u64,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// Messages that a room kept.
    pub history_size: u32,
    /// For how long, in ms.
    pub history_ttl_ms: u32,
    /// What the clients lived through.
    pub counts: Tally,
    /// The faults by kind.
    pub faults: BTreeMap<String, FaultFigures>,
    /// Faults that could not be done, because what they need was not ready.
    pub skipped_faults: u64,
    /// Broken promises.
    pub violations: Vec<String>,
    /// Whatever else went wrong, such as an instance that did not come up.
    pub problems: Vec<String>,
    /// The faults in their order, with the ms at which they began.
    pub script: Vec<(Ms, String)>,
    /// The run second by second.
    pub series: Vec<Point>,
    /// When faults were over, in seconds since the run began, and the ms from then on until all members were current.
    pub recoveries: Vec<(f64, Ms)>,
}

impl Report {
    /// Whether every promise was kept.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.problems.is_empty()
    }
}

impl Report {
    /// The figures, each with what it is.
    pub fn rows(&self) -> Vec<(String, String)> {
        let counts = &self.counts;
        let mut rows = Vec::new();
        let mut row = |label: &str, value: String| rows.push((label.to_owned(), value));
        row("seed", self.seed.to_string());
        row("ran", format!("{:.0} s", self.seconds));
        row("rooms keep", format!("{} messages, {} ms", self.history_size, self.history_ttl_ms));
        row("sent", format!("{}, and {} again", counts.sent, counts.sent_again));
        row("  acknowledged", counts.acked.to_string());
        row("  refused", listed(&counts.failed));
        row("  outcome unknown", counts.unknown.to_string());
        row("deliveries", counts.deliveries.to_string());
        row("connections", format!("{}, ended: {}", counts.connections, listed(&counts.closes)));
        row("joins", format!("{}, refused: {}", counts.joins, listed(&counts.joins_refused)));
        row("  with since", counts.resumes.to_string());
        row("  recovered", format!("{} ({} messages)", counts.recovered, counts.recovered_messages));
        row("  not recovered", listed(&counts.not_recovered));
        row("resyncs", listed(&counts.resyncs));
        let number: u64 = self.faults.values().map(|figures| figures.number).sum();
        row("faults", format!("{number} ({} more could not be done)", self.skipped_faults));
        for (kind, figures) in &self.faults {
            let longest = figures.current_ms.iter().max();
            let current = match (figures.median(), longest) {
                (Some(median), Some(longest)) => {
                    format!("all current after {median} ms (median), {longest} ms (longest)")
                }
                _ => "nobody waited for".to_owned(),
            };
            row(&format!("  {kind}"), format!("{} × {current}", figures.number));
        }
        row("violations", self.violations.len().to_string());
        rows
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows().iter().try_for_each(|(label, value)| writeln!(f, "{label:<22} {value}"))?;
        self.violations.iter().chain(&self.problems).try_for_each(|one| writeln!(f, "  {one}"))
    }
}

/// Counts in one line.
fn listed(counts: &Counts) -> String {
    let mut text = String::new();
    for (name, number) in counts {
        let separator = if text.is_empty() { "" } else { ", " };
        write!(text, "{separator}{number} × {name}").expect("writing to a String cannot fail");
    }
    if text.is_empty() { "0".to_owned() } else { text }
}
