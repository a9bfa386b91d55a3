//! The open model: when each event is due, whatever the server does.

/// Events at a fixed rate. Event k of all is due at start + k/rate; several schedules share one
/// rate by taking every `stride`-th event each.
#[derive(Clone, Debug)]
pub struct Schedule {
    start_us: u64,
    end_us: u64,
    microseconds_apart: f64,
    next: u64,
    stride: u64,
}

impl Schedule {
    /// The events `first`, `first + stride`, … of `rate` per second, from `start_us` up to (not
    /// including) `end_us`. A rate of 0 has no events.
    pub fn new(rate: f64, start_us: u64, end_us: u64, first: u64, stride: u64) -> Self {
        Self { start_us, end_us, microseconds_apart: 1e6 / rate, next: first, stride }
    }

    /// When the next event is due, or `None` after the last.
    pub fn next_due(&self) -> Option<u64> {
        // From the event's number, not from the event before, so that no rounding adds up. A rate
        // of 0 gives NaN or infinity, which the saturating conversion must not turn into "at once".
        let offset = self.next as f64 * self.microseconds_apart;
        let due = self.start_us.saturating_add(offset as u64);
        (self.microseconds_apart.is_finite() && due < self.end_us).then_some(due)
    }

    /// Takes the next event if it is due at `now_us`, and says when it was due.
    pub fn take_due(&mut self, now_us: u64) -> Option<u64> {
        let due = self.next_due().filter(|due| *due <= now_us)?;
        self.next += self.stride;
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut schedule: Schedule) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take_due(u64::MAX)).collect()
    }

    #[test]
    fn events_are_due_at_start_plus_k_over_rate() {
        let due = all(Schedule::new(3.0, 1_000, 1_000 + 2_000_000, 0, 1));
        assert_eq!(due, [1_000, 334_333, 667_666, 1_001_000, 1_334_333, 1_667_666]);
    }

    #[test]
    fn nothing_is_taken_before_it_is_due_and_everything_missed_afterwards() {
        let mut schedule = Schedule::new(1_000.0, 0, 1_000_000, 0, 1);
        assert_eq!(schedule.take_due(0), Some(0));
        assert_eq!(schedule.take_due(999), None);
        assert_eq!(schedule.next_due(), Some(1_000));
        let late: Vec<u64> = std::iter::from_fn(|| schedule.take_due(4_500)).collect();
        assert_eq!(late, [1_000, 2_000, 3_000, 4_000]);
    }

    #[test]
    fn shares_of_one_rate_are_together_the_whole() {
        let whole = all(Schedule::new(777.0, 50, 3_000_050, 0, 1));
        let mut shares: Vec<u64> =
            (0..3).flat_map(|first| all(Schedule::new(777.0, 50, 3_000_050, first, 3))).collect();
        shares.sort_unstable();
        assert_eq!(shares, whole);
        assert_eq!(whole.len(), 2_331);
    }

    #[test]
    fn a_rate_of_zero_has_no_events() {
        assert_eq!(Schedule::new(0.0, 0, 1_000_000, 0, 1).next_due(), None);
    }
}
