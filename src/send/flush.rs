//! When to flush: at once on an idle shard, at half of the core's time on a busy one.

use std::time::Duration;

/// Decides when the next flush may start. Times are measured from any fixed point.
///
/// After a flush that took time d the next one starts no sooner than d later: a busy shard spends at
/// most half of its core on sends, and what arrives meanwhile makes each send larger instead of
/// making more sends. The budget bounds d, and with it the latency that waiting adds.
#[derive(Debug)]
pub struct FlushPacer {
    budget: Duration,
    next: Duration,
}

impl FlushPacer {
    /// A pacer that lets messages wait at most `budget` for others.
    pub fn new(budget: Duration) -> Self {
        Self { budget, next: Duration::ZERO }
    }

    /// From now on messages wait at most `budget` for others.
    pub fn adopt(&mut self, budget: Duration) {
        self.budget = budget;
    }

    /// Whether a flush may start at `now`.
    pub fn due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// Time from `now` until a flush may start.
    pub fn wait(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// A flush started at `started` and ended at `ended`.
    pub fn flushed(&mut self, started: Duration, ended: Duration) {
        self.next = ended + ended.saturating_sub(started).min(self.budget);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_idle_shard_flushes_at_once() {
        assert!(FlushPacer::new(ms(8)).due(ms(0)));
    }

    #[test]
    fn the_next_flush_waits_as_long_as_the_last_one_took() {
        let mut pacer = FlushPacer::new(ms(8));
        pacer.flushed(ms(100), ms(103));
        assert!(!pacer.due(ms(105)));
        assert_eq!(pacer.wait(ms(105)), ms(1));
        assert!(pacer.due(ms(106)));
    }

    #[test]
    fn the_budget_bounds_the_wait() {
        let mut pacer = FlushPacer::new(ms(8));
        pacer.flushed(ms(100), ms(150));
        assert_eq!(pacer.wait(ms(150)), ms(8));
    }
}
