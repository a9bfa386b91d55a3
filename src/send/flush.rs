//! When to flush: at once on an idle shard, at about half of the core's time on a busy one.

use std::time::Duration;

/// A flush with fewer sends than this is a small one: waking up for it, and waking its receivers, costs about as much as its
/// sends do.
const SMALL_FLUSH: u64 = 32;

/// The least pause after a small flush: about ten times what it costs to be woken up, so that this becomes a small
/// part, and too short for anybody to notice.
const SMALL_FLUSH_PAUSE: Duration = Duration::from_micros(500);

/// Flushes without a pause after one whose pause gathered nothing: being woken up once more was all that it brought. And whoever
/// waits for each answer before sending the next message must not wait for the pause as well.
const FLUSHES_AT_ONCE: u32 = 32;

/// Decides when the next flush may start. Times are measured from any fixed point.
///
/// After a flush that took time d the next one starts no sooner than d later: a busy shard spends about
/// half of its core on sends, and what arrives meanwhile makes each send larger instead of
/// making more sends. After a small flush that is hardly a pause, so there is a least one. Pauses are made as long as several
/// messages share a flush because of them. The budget bounds all pauses, and with it the latency that waiting adds.
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
    /// Whether the next flush shows if the pause before it was of use.
    gathers: bool,
    /// Flushes to come without a pause.
    at_once: u32,
}

/// What a flush was.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    /// When it began, on the pacer's clock.
    pub started: Duration,
    /// When it had been handed to the kernel.
    pub ended: Duration,
    /// Connections sent to.
    pub sends: u64,
    /// Messages that had caused what was sent.
    pub messages: u64,
    /// Whether others wait to be sent to already.
    pub more: bool,
}

impl FlushPacer {
    /// A pacer for one of `shards` shards that lets messages wait at most `budget` for others.
    pub fn new(budget: Duration, shards: usize) -> Self {
        let factor = u32::try_from(2 * shards).unwrap_or(u32::MAX).saturating_sub(1).max(1);
        Self { budget, factor, next: Duration::ZERO, gathers: false, at_once: 0 }
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

    /// That flush has been made.
    pub fn flushed(&mut self, flush: Flush) {
        let Flush { started, ended, sends, messages, more } = flush;
        if self.gathers && messages < 2 {
            self.at_once = FLUSHES_AT_ONCE;
        }
        let pauses = more || self.at_once == 0;
        // For those who wait any message that comes in the pause is one to share a send with what waits.
        self.gathers = pauses && !more;
        self.at_once = self.at_once.saturating_sub(1);
        let least = if sends < SMALL_FLUSH { SMALL_FLUSH_PAUSE } else { Duration::ZERO };
        let pause = ended.saturating_sub(started).saturating_mul(self.factor).max(least).min(self.budget);
        self.next = if pauses { ended + pause } else { ended };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A large flush that several messages share.
    const LARGE: Flush = Flush {
        started: Duration::from_millis(100),
        ended: Duration::from_millis(103),
        sends: 100,
        messages: 2,
        more: false,
    };

    #[test]
    fn an_idle_shard_flushes_at_once() {
        assert!(FlushPacer::new(ms(8), 1).due(ms(0)));
    }

    #[test]
    fn the_next_flush_waits_as_long_as_the_last_one_took() {
        let mut pacer = FlushPacer::new(ms(8), 1);
        pacer.flushed(LARGE);
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
            let flush = Flush { ended: LARGE.started + own, ..LARGE };
            pacer.flushed(flush);
            assert_eq!(own + pacer.wait(flush.ended), 2 * one, "{shards} shards");
        }
    }

    #[test]
    fn the_budget_bounds_the_wait() {
        let mut pacer = FlushPacer::new(ms(8), 1);
        pacer.flushed(Flush { ended: ms(150), ..LARGE });
        assert_eq!(pacer.wait(ms(150)), ms(8));
    }

    /// What `pacer` waits after a flush of four sends in 40 µs.
    fn pause_after_small(pacer: &mut FlushPacer, messages: u64) -> Duration {
        let ended = LARGE.started + Duration::from_micros(40);
        pacer.flushed(Flush { ended, sends: 4, messages, ..LARGE });
        pacer.wait(ended)
    }

    #[test]
    fn small_flushes_are_gathered_while_several_messages_share_one() {
        let mut pacer = FlushPacer::new(ms(8), 1);
        for _ in 0..100 {
            assert_eq!(pause_after_small(&mut pacer, 2), SMALL_FLUSH_PAUSE);
        }
    }

    #[test]
    fn whoever_waits_for_each_answer_hardly_waits_for_pauses() {
        let mut pacer = FlushPacer::new(ms(8), 1);
        let pauses: Vec<_> = (0..100).map(|_| pause_after_small(&mut pacer, 1)).collect();
        assert_eq!(pauses[0], SMALL_FLUSH_PAUSE);
        assert_eq!(pauses.iter().filter(|pause| **pause == SMALL_FLUSH_PAUSE).count(), 4);
        assert_eq!(pauses.iter().filter(|pause| pause.is_zero()).count(), 96);
    }

    #[test]
    fn large_flushes_do_not_pause_either_where_nothing_gathers() {
        let mut pacer = FlushPacer::new(ms(8), 1);
        let mut pause_after = |messages| {
            pacer.flushed(Flush { messages, ..LARGE });
            pacer.wait(LARGE.ended)
        };
        assert_eq!(pause_after(1), ms(3), "it may gather something");
        assert_eq!(pause_after(1), ms(0), "it did not");
        for _ in 1..FLUSHES_AT_ONCE {
            assert_eq!(pause_after(9), ms(0));
        }
        assert_eq!(pause_after(9), ms(3), "tried again");
        assert_eq!(pause_after(9), ms(3), "it is of use");
    }

    #[test]
    fn a_flush_that_leaves_others_waiting_is_followed_by_a_pause_in_any_case() {
        let mut pacer = FlushPacer::new(ms(8), 1);
        for _ in 0..100 {
            pacer.flushed(Flush { messages: 0, more: true, ..LARGE });
            assert_eq!(pacer.wait(LARGE.ended), ms(3));
        }
    }

    #[test]
    fn without_a_budget_there_is_no_pause() {
        let mut pacer = FlushPacer::new(ms(0), 1);
        assert_eq!(pause_after_small(&mut pacer, 2), ms(0));
    }
}
