//! What happened in each second of a run: what workers count, and how it is put together.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Longest latency that an interval tells apart from longer ones, in microseconds: ten minutes.
const LONGEST_US: u64 = 600_000_000;

/// Significant digits of an interval's latencies: plots and progress need no more, and each interval of each
/// worker has its own histogram.
const DIGITS: u8 = 2;

/// What happened between two points in time.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Its begin, in microseconds since the run's epoch.
    pub start_us: u64,
    /// Messages sent.
    pub sent: u64,
    /// Deliveries that arrived.
    pub delivered: u64,
    /// Connections that became ready.
    pub ready: u64,
    /// Connections that were refused, failed or lost.
    pub refused: u64,
    /// From intended send to arrival, of what arrived; microseconds.
    pub latency: Histogram<u64>,
}

impl Interval {
    /// One in which nothing has happened yet.
    pub fn new(start_us: u64) -> Self {
        let latency = Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("the bounds are valid");
        Self { start_us, sent: 0, delivered: 0, ready: 0, refused: 0, latency }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.sent + self.delivered + self.ready + self.refused == 0
    }

    /// A latency, in milliseconds; `None` if nothing arrived.
    pub fn latency_ms(&self, quantile: f64) -> Option<f64> {
        (!self.latency.is_empty()).then(|| self.latency.value_at_quantile(quantile) as f64 / 1e3)
    }

    fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.ready += other.ready;
        self.refused += other.refused;
        self.latency.add(&other.latency).expect("all intervals have the same bounds");
    }
}

/// The intervals of all workers, put together by their begin.
#[derive(Debug, Default)]
pub struct Gathered(BTreeMap<u64, Interval>);

impl Gathered {
    /// Adds a worker's interval.
    pub fn add(&mut self, interval: Interval) {
        match self.0.get_mut(&interval.start_us) {
            Some(known) => known.merge(&interval),
            None => drop(self.0.insert(interval.start_us, interval)),
        }
    }

    /// Takes out what began at `start_us`, or an empty interval.
    pub fn take(&mut self, start_us: u64) -> Interval {
        self.0.remove(&start_us).unwrap_or_else(|| Interval::new(start_us))
    }

    /// The begin of the last one.
    pub fn last_start_us(&self) -> Option<u64> {
        self.0.last_key_value().map(|(start, _)| *start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_intervals_of_one_time_become_one() {
        let mut gathered = Gathered::default();
        for (start, latency) in [(0, 1_000), (0, 3_000), (1_000_000, 9_000)] {
            let mut interval = Interval::new(start);
            interval.delivered = 1;
            interval.latency.record(latency).unwrap();
            gathered.add(interval);
        }
        assert_eq!(gathered.last_start_us(), Some(1_000_000));
        let first = gathered.take(0);
        assert_eq!((first.delivered, first.latency.len()), (2, 2));
        assert!((first.latency_ms(1.0).unwrap() - 3.0).abs() < 0.05);
        assert!(gathered.take(0).is_empty());
        assert_eq!(gathered.take(0).latency_ms(0.5), None);
    }
}
