//! When to flush: at once on an idle shard, at half of the core's time on a busy one.

use std::time::Duration;

/// Decides when the next flush may start. Times are measured from any fixed point.
///
/// After a flush that took time d the next one starts no sooner than d later: a busy shard spends at
/// most half of its core on sends, and what arrives meanwhile makes each send larger instead of
/// making more sends. The budget bounds the pause, and with it the latency that waiting adds.
///
/// With n shards the members of a room are spread over all of them, and d is an nth of what it would be on one shard. The
/// pause is 2n - 1 times d, so that each connection is flushed as often as by one shard: otherwise n shards would make n
/// times the sends of one, each with an nth of the messages.
#[derive(Debug)]
pub struct FlushPacer {
    budget: Duration,
    /// The pause as a multiple of the flush before it.
    factor: u32,
    next: Duration,
}

impl FlushPacer {
    /// A pacer for one of `shards` shards that lets messages wait at most `budget` for others.
    pub fn new(budget: Duration, shards: usize) -> Self {
        let factor = u32::try_from(2 * shards).unwrap_or(u32::MAX).saturating_sub(1).max(1);
        Self { budget, factor, next: Duration::ZERO }
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
        let pause = ended.saturating_sub(started).saturating_mul(self.factor);
        self.next = ended + pause.min(self.budget);
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
        assert!(FlushPacer::new(ms(8), 1).due(ms(0)));
    }

    #[test]
    fn the_next_flush_waits_as_long_as_the_last_one_took() {
        let mut pacer = FlushPacer::new(ms(8), 1);
        pacer.flushed(ms(100), ms(103));
        assert!(!pacer.due(ms(105)));
        assert_eq!(pacer.wait(ms(105)), ms(1));
        assert!(pacer.due(ms(106)));
    }

    #[test]
    fn shards_flush_each_connection_as_often_as_one_would() {
        for shards in [1, 2, 4] {
            let mut pacer = FlushPacer::new(ms(8), shards);
            let one = Duration::from_micros(4000);
            let own = one / shards as u32;
            pacer.flushed(ms(100), ms(100) + own);
            assert_eq!(own + pacer.wait(ms(100) + own), 2 * one, "{shards} shards");
        }
    }

    #[test]
    fn the_budget_bounds_the_wait() {
        let mut pacer = FlushPacer::new(ms(8), 1);
        pacer.flushed(ms(100), ms(150));
        assert_eq!(pacer.wait(ms(150)), ms(8));
    }
}
