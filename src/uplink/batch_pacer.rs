//! When the publisher sends what has gathered.
//!
//! Each batch wakes Redis and every other instance, which costs them far more than the messages in it. So batches
//! keep a distance: the *batch age*, or a few of them where more is to be said.
//!
//! And they are sent when other instances that are as busy send theirs: at multiples of that distance on the clock of the
//! day. Who comes to a Redis that has just been woken costs it a small part of what it costs to wake it, as its part of the
//! processor's caches is filled. Nothing depends on the clocks but this saving.

use std::time::{Duration, Instant};

/// Publications within one batch age below which batches are that age apart: waiting longer would gather hardly more.
const SOME: u64 = 3;

/// Batch ages between batches while some publications come; by default 12 ms. At 1,500 a second of each of two instances
/// Redis spends half of what it spends per publication with one age, and the mean latency of what comes from
/// the other instance rises by 4 ms.
const AGES_OF_SOME: u32 = 3;

/// Publications within one batch age from which on batches are closer again: they hold enough.
const MANY: u64 = 16;

/// Batch ages between batches while many publications come; by default 8 ms. Messages wait for flushes then as well: with
/// 12 ms a busy cluster on one core of a slow machine comes near 20 ms for 99 of 100 messages, which is noticed.
const AGES_OF_MANY: u32 = 2;

/// How much the publisher has to do, which decides how it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Nothing came of late: the next publication wakes the thread.
    Idle,
    /// Publications came with the last batch: the thread looks for more until the next one is due.
    Busy,
    /// More had come than a batch holds: there is no time to wait.
    Behind,
}

/// Says when the next batch is due.
#[derive(Debug)]
pub struct BatchPacer {
    age: Duration,
    pace: Pace,
    /// When what had gathered was sent last.
    sent_at: Instant,
    /// Publications taken since.
    taken: u64,
    /// Publications per batch age as the last batch had them.
    rate: u64,
    /// Distance of the next batch from the last.
    distance: Duration,
}

impl BatchPacer {
    /// Nothing has been sent yet, and the first publication goes at once.
    pub fn new(age: Duration, now: Instant) -> Self {
        Self { age, pace: Pace::Idle, sent_at: now, taken: 0, rate: 0, distance: Duration::ZERO }
    }

    /// Whether the next publication has to wake the publisher: it does not look for more by itself.
    pub fn is_idle(&self) -> bool {
        self.pace == Pace::Idle && self.taken == 0
    }

    /// A publication was taken.
    pub fn took(&mut self) {
        self.taken += 1;
    }

    /// Time until what has gathered is due; zero when it is.
    pub fn left(&self, now: Instant) -> Duration {
        match self.pace {
            Pace::Behind => Duration::ZERO,
            Pace::Idle | Pace::Busy => (self.sent_at + self.distance).saturating_duration_since(now),
        }
    }

    /// What had gathered is sent `now`, at `time` on a clock that other instances have too. `full` says that it was more than may
    /// wait, so that the next batch does not.
    pub fn sent(&mut self, full: bool, now: Instant, time: Duration) {
        let taken = std::mem::take(&mut self.taken);
        let passed = now.saturating_duration_since(self.sent_at).max(self.age).as_nanos().max(1);
        let rate = (u128::from(taken) * self.age.as_nanos() / passed) as u64;
        // One large batch is a moment, a second one a time of many messages.
        let ages = match rate.min(std::mem::replace(&mut self.rate, rate)) {
            0..SOME => 1,
            SOME..MANY => AGES_OF_SOME,
            MANY.. => AGES_OF_MANY,
        };
        self.distance = until_common(self.age * ages, time);
        self.sent_at = now;
        self.pace = match (full, taken) {
            (true, _) => Pace::Behind,
            (false, 0) => Pace::Idle,
            (false, _) => Pace::Busy,
        };
    }
}

/// Time from `time` until the next multiple of `distance`, but more than a quarter of it: a moment that is nearer gathers nothing.
fn until_common(distance: Duration, time: Duration) -> Duration {
    let least = distance / 4;
    let since = (time + least).as_nanos().checked_rem(distance.as_nanos()).unwrap_or_default();
    least + distance - Duration::from_nanos(since as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_millis(4);

    struct Sender {
        pacer: BatchPacer,
        now: Instant,
        /// On the clock that all instances have.
        time: Duration,
    }

    impl Sender {
        fn new() -> Self {
            let now = Instant::now();
            Self { pacer: BatchPacer::new(AGE, now), now, time: AGE * 1_000 }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.time += time;
        }

        /// Sends what `publications` that come at once become, when it is due; what it waited for that.
        fn send(&mut self, publications: u64) -> Duration {
            (0..publications).for_each(|_| self.pacer.took());
            let left = self.pacer.left(self.now);
            self.pass(left);
            self.pacer.sent(false, self.now, self.time);
            left
        }
    }

    #[test]
    fn what_comes_after_a_pause_goes_at_once_and_what_follows_waits_for_the_batch_age() {
        let mut sender = Sender::new();
        assert!(sender.pacer.is_idle());
        assert_eq!(sender.send(1), Duration::ZERO);
        assert!(!sender.pacer.is_idle(), "more may follow");
        assert_eq!(sender.send(1), AGE);
        assert_eq!(sender.send(0), AGE);
        assert!(sender.pacer.is_idle(), "nothing followed");
        sender.pass(AGE);
        assert_eq!(sender.send(1), Duration::ZERO);
    }

    /// What batches wait for in the end where `per_age` publications come in each age.
    fn lasting_distance(sender: &mut Sender, per_age: u64) -> Duration {
        let mut waited = Duration::ZERO;
        for _ in 0..8 {
            let ages = sender.pacer.left(sender.now).as_nanos().div_ceil(AGE.as_nanos()) as u64;
            waited = sender.send(per_age * ages.max(1));
        }
        waited
    }

    #[test]
    fn the_distance_goes_by_how_much_is_said() {
        let mut sender = Sender::new();
        for _ in 0..2 {
            assert_eq!(lasting_distance(&mut sender, SOME - 1), AGE, "not enough to make them wait longer");
            assert_eq!(lasting_distance(&mut sender, SOME), AGE * AGES_OF_SOME);
            assert_eq!(lasting_distance(&mut sender, MANY - 1), AGE * AGES_OF_SOME);
            assert_eq!(lasting_distance(&mut sender, MANY), AGE * AGES_OF_MANY);
            assert_eq!(lasting_distance(&mut sender, 1_000), AGE * AGES_OF_MANY);
        }
    }

    #[test]
    fn instances_that_began_at_different_times_send_at_the_same() {
        for offset in (0..80).map(|tenth| AGE * tenth / 20) {
            let mut senders = [Sender::new(), Sender::new()];
            senders[1].pass(offset);
            for sender in &mut senders {
                for _ in 0..6 {
                    let waited = sender.send(1_000);
                    let most = AGE * AGES_OF_MANY * 5 / 4;
                    assert!(
                        waited.is_zero() || (AGE / 4..=most).contains(&waited),
                        "{waited:?} at {offset:?}"
                    );
                }
            }
            let apart = senders[0].time.abs_diff(senders[1].time).as_nanos();
            assert_eq!(apart % (AGE * AGES_OF_MANY).as_nanos(), 0, "{apart} ns apart, begun {offset:?}");
        }
    }

    #[test]
    fn one_large_batch_alone_makes_nobody_wait_longer() {
        let mut sender = Sender::new();
        for _ in 0..4 {
            assert_eq!(sender.send(1), Duration::ZERO);
            assert_eq!(sender.send(1_000), AGE, "the rest of a burst");
            assert_eq!(sender.send(1), AGE);
            assert_eq!(sender.send(0), AGE);
            sender.pass(AGE);
        }
    }

    #[test]
    fn a_full_batch_is_followed_at_once_and_then_by_a_distance() {
        let mut sender = Sender::new();
        sender.pacer.took();
        sender.pacer.sent(true, sender.now, sender.time);
        assert_eq!(sender.pacer.left(sender.now), Duration::ZERO);
        assert!(!sender.pacer.is_idle());
        let little = Duration::from_micros(100);
        sender.pass(little);
        assert_eq!(sender.send(1), Duration::ZERO);
        assert_eq!(sender.send(1), AGE - little, "when the others do");
    }

    #[test]
    fn without_a_batch_age_nothing_waits() {
        let now = Instant::now();
        let mut pacer = BatchPacer::new(Duration::ZERO, now);
        for _ in 0..10 {
            (0..100).for_each(|_| pacer.took());
            assert_eq!(pacer.left(now), Duration::ZERO);
            pacer.sent(false, now, Duration::from_secs(1));
        }
    }

    #[test]
    fn what_was_taken_before_an_answer_came_first_is_not_forgotten() {
        let mut sender = Sender::new();
        sender.pacer.took();
        assert!(!sender.pacer.is_idle(), "it waits to be sent");
        assert_eq!(sender.send(0), Duration::ZERO);
        assert!(!sender.pacer.is_idle());
    }
}
