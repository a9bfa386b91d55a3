//! When the publisher sends what has gathered.
//!
//! Each batch wakes Redis and every other instance, which costs them far more than the messages in it. So batches
//! keep a distance: the *batch age*, and up to [`LONGEST`] times that while each of them holds many messages. With so
//! much to say messages wait for the others' flushes too.

use std::time::{Duration, Instant};

/// Publications within one batch age up to which batches keep that distance; with more it grows in proportion, so that
/// what Redis spends per publication hardly depends on their number. Chosen by measurement: at 1,500 a second of each of two
/// instances Redis spends a third less per publication with twice the distance than without growth, and the mean latency of
/// what comes from the other instance rises by 2 ms.
const FEW: u32 = 2;

/// Batch ages that lie between two batches at most: by default 8 ms. With 12 ms a busy cluster on one core of a slow machine
/// comes near 20 ms for 99 of 100 messages, which is noticed.
const LONGEST: u32 = 2;

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
    /// The distance that the last batch's publications asked for, however long.
    asked: Duration,
    /// Distance of the next batch from the last.
    distance: Duration,
}

impl BatchPacer {
    /// Nothing has been sent yet, and the first publication goes at once.
    pub fn new(age: Duration, now: Instant) -> Self {
        Self { age, pace: Pace::Idle, sent_at: now, taken: 0, asked: Duration::ZERO, distance: Duration::ZERO }
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

    /// What had gathered is sent `now`. `full` says that it was more than may wait, so that the next batch does not.
    pub fn sent(&mut self, full: bool, now: Instant) {
        let taken = std::mem::take(&mut self.taken);
        let passed = now.saturating_duration_since(self.sent_at).max(self.age).as_nanos().max(1);
        let asked = self.age.as_nanos().pow(2) * u128::from(taken) / (passed * u128::from(FEW));
        let asked = Duration::from_nanos(asked.try_into().unwrap_or(u64::MAX));
        // One large batch is a moment, a second one a time of many messages.
        let sustained = asked.min(std::mem::replace(&mut self.asked, asked));
        self.distance = sustained.clamp(self.age, self.age * LONGEST);
        self.sent_at = now;
        self.pace = match (full, taken) {
            (true, _) => Pace::Behind,
            (false, 0) => Pace::Idle,
            (false, _) => Pace::Busy,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_millis(4);

    struct Sender {
        pacer: BatchPacer,
        now: Instant,
    }

    impl Sender {
        fn new() -> Self {
            let now = Instant::now();
            Self { pacer: BatchPacer::new(AGE, now), now }
        }

        /// Sends what `publications` that come at once become, when it is due; what it waited for that.
        fn send(&mut self, publications: u64) -> Duration {
            (0..publications).for_each(|_| self.pacer.took());
            let left = self.pacer.left(self.now);
            self.now += left;
            self.pacer.sent(false, self.now);
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
        sender.now += AGE;
        assert_eq!(sender.send(1), Duration::ZERO);
    }

    #[test]
    fn the_distance_grows_with_what_batches_hold_and_shrinks_with_it() {
        let mut sender = Sender::new();
        let few = u64::from(FEW);
        sender.send(few);
        for _ in 0..4 {
            assert_eq!(sender.send(few), AGE, "as many as may come without a longer wait");
        }
        sender.send(few * 3 / 2);
        sender.send(few * 3 / 2);
        assert_eq!(sender.send(few), AGE * 3 / 2, "half as many again came in each age");
        sender.send(few * 100);
        sender.send(few * 100);
        for _ in 0..4 {
            assert_eq!(sender.send(few * 100), AGE * LONGEST, "however many they are");
        }
        assert_eq!(sender.send(1), AGE * LONGEST);
        assert_eq!(sender.send(1), AGE, "it was the last of many");
    }

    #[test]
    fn one_large_batch_alone_makes_nobody_wait_longer() {
        let mut sender = Sender::new();
        for _ in 0..4 {
            assert_eq!(sender.send(1), Duration::ZERO);
            assert_eq!(sender.send(1_000), AGE, "the rest of a burst");
            assert_eq!(sender.send(1), AGE);
            assert_eq!(sender.send(0), AGE);
            sender.now += AGE;
        }
    }

    #[test]
    fn a_full_batch_is_followed_at_once_and_then_by_a_distance() {
        let mut sender = Sender::new();
        sender.pacer.took();
        sender.pacer.sent(true, sender.now);
        assert_eq!(sender.pacer.left(sender.now), Duration::ZERO);
        assert!(!sender.pacer.is_idle());
        sender.now += Duration::from_micros(100);
        assert_eq!(sender.send(1), Duration::ZERO);
        assert!(sender.send(1) >= AGE);
    }

    #[test]
    fn without_a_batch_age_nothing_waits() {
        let now = Instant::now();
        let mut pacer = BatchPacer::new(Duration::ZERO, now);
        for _ in 0..10 {
            (0..100).for_each(|_| pacer.took());
            assert_eq!(pacer.left(now), Duration::ZERO);
            pacer.sent(false, now);
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
