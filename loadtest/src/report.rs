//! Figures of a run: as JSON, and as a table for people.

use std::fmt::{self, Display, Write};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Share of its threads' CPU from which the generator rather than the server may set the figures, in percent.
const SATURATED_PERCENT: f64 = 90.0;

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// How many values there are.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// 90 % are at most this.
    pub p90: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// 99.9 % are at most this.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl Latency {
    /// Out of a histogram of microseconds; `None` if it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            mean: rounded(histogram.mean() / 1e3),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e3,
        })
    }
}

impl Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, p999, max, .. } = self;
        write!(f, "p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms")
    }
}

/// Percentiles that a plot of latencies has points at: the more nines, the nearer to the right.
const PLOTTED: [f64; 18] = [
    0.0, 10.0, 25.0, 50.0, 68.4, 75.0, 90.0, 95.0, 96.84, 99.0, 99.5, 99.684, 99.9, 99.95, 99.968, 99.99,
    99.999, 99.9999,
];

/// Points of a latency plot out of a histogram of microseconds: percentile and milliseconds; empty if that is. Beyond
/// what so few values can tell, there are no points.
pub fn percentiles(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let told =
        PLOTTED.iter().filter(|percentile| (1.0 - **percentile / 100.0) * histogram.len() as f64 >= 1.0);
    told.map(|percentile| (*percentile, histogram.value_at_quantile(percentile / 100.0) as f64 / 1e3))
        .collect()
}

/// What the generator itself used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GeneratorFigures {
    /// CPU, in percent of one core.
    pub cpu_percent: f64,
    /// Threads.
    pub threads: usize,
    /// Whether that is so much that the figures may be the generator's and not the server's.
    pub saturated: bool,
}

impl GeneratorFigures {
    /// For so much CPU time used in so much time.
    pub fn new(cpu_seconds: f64, seconds: f64, threads: usize) -> Self {
        let cpu_percent = rounded(100.0 * cpu_seconds / seconds);
        Self { cpu_percent, threads, saturated: cpu_percent >= SATURATED_PERCENT * threads as f64 }
    }
}

/// To 3 decimals, which is more than any of the figures is good for.
pub fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// A table of two columns.
#[derive(Debug, Default)]
pub struct Table {
    /// Label and value of each row.
    pub rows: Vec<(String, String)>,
}

impl Table {
    /// Adds a row.
    pub fn row(&mut self, label: &str, value: impl Display) {
        self.rows.push((label.to_owned(), value.to_string()));
    }

    /// Adds a row for each named count.
    pub fn counts(&mut self, label: &str, counts: &crate::tally::Counts) {
        counts.iter().for_each(|(name, number)| self.row(label, format!("{} × {name}", grouped(number))));
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        self.rows.iter().try_for_each(|(label, value)| writeln!(f, "{label:<width$}  {value}"))
    }
}

/// A number with commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        write!(text, "{digit}").expect("writing to a String cannot fail");
    }
    text
}

/// What a scenario found, ready to print.
pub struct Report {
    /// All figures, as one JSON object.
    pub json: serde_json::Value,
    /// The same for people.
    pub table: Table,
    /// What went wrong; empty if all is well.
    pub problems: Vec<String>,
    /// What makes the figures doubtful.
    pub warnings: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::histogram;

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut values = histogram();
        assert_eq!(Latency::of(&values), None);
        (1..=1_000).for_each(|millisecond| values.record(millisecond * 1_000).unwrap());
        let latency = Latency::of(&values).unwrap();
        assert_eq!(latency.count, 1_000);
        let close = |found: f64, right: f64| (found - right).abs() <= right / 1_000.0;
        for (found, right) in [
            (latency.mean, 500.5),
            (latency.p50, 500.0),
            (latency.p90, 900.0),
            (latency.p99, 990.0),
            (latency.p999, 999.0),
            (latency.max, 1_000.0),
        ] {
            assert!(close(found, right), "{found} instead of {right}");
        }
    }

    #[test]
    fn a_generator_near_its_limit_is_told() {
        assert!(!GeneratorFigures::new(8.9, 10.0, 1).saturated);
        assert!(GeneratorFigures::new(9.0, 10.0, 1).saturated);
        assert!(!GeneratorFigures::new(9.0, 10.0, 2).saturated);
    }

    #[test]
    fn numbers_are_grouped_and_columns_aligned() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        let mut table = Table::default();
        table.row("a", 1);
        table.row("long", "x");
        assert_eq!(table.to_string(), "a     1\nlong  x\n");
    }
}
