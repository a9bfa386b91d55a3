//! When a shard gets more than it can do: what it refuses so that what it takes on stays quick.

use std::time::Duration;

/// Time in one turn for handling what clients have sent; a turn that needs more has fallen behind. Long enough for a
/// burst to a room of thousands, short enough to be the latency of a server that is overloaded.
const TURN_BUDGET: Duration = Duration::from_millis(50);

/// Time for which a shard must have been behind before anything is refused: a burst ends sooner.
const PATIENCE: Duration = Duration::from_millis(250);

/// The same for as long as [`MEMORY`] after a refusal: what comes then is mostly the same overload.
const LITTLE_PATIENCE: Duration = Duration::from_millis(50);

/// Time for which a refusal is remembered.
const MEMORY: Duration = Duration::from_secs(1);

/// Longest time of refusing everything. Where even refusing is more than the core can do, it would never end.
const REFUSING: Duration = Duration::from_millis(200);

/// Time of taking on messages after that.
const TAKING: Duration = Duration::from_millis(50);

/// Time in which a shard that is behind has to be able to read what waits in the sockets: how late a message is at most
/// for long, and how soon all is as before when less comes.
const UNREAD_TIME: Duration = Duration::from_millis(500);

/// Looks at what waits in the sockets after which some have to go however little it is: more may wait on the clients' side,
/// where it cannot be seen.
const PATIENT_LOOKS: u32 = 3;

/// Part of what waits that goes then at each look: a step towards what the core can do that does not go far beyond.
const STEP: u64 = 8;

/// Time between two looks at what waits in the sockets: one round of refusing and taking.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Bytes that may wait unread in any socket: a handshake, or what one sends who waits for answers, is less.
const UNREAD_BYTES: u64 = 4096;

/// Decides which messages to others a shard takes on. Times are measured from any fixed point.
///
/// A shard is behind when it has not read all that clients have sent, or needed more than [`TURN_BUDGET`] to handle what
/// it read. If it cannot catch up, it would be late by whatever gathers in the sockets' buffers, which takes seconds. So
/// after [`PATIENCE`] it refuses, which costs a part of handling, until it has read everything. Where reading alone is
/// more than the core can do, those have to go who have most unread, until the rest can be read in [`UNREAD_TIME`].
#[derive(Debug, Default)]
pub struct Overload {
    turn_began: Duration,
    /// Whether more has been sent than was read for this turn.
    unread: bool,
    behind_since: Option<Duration>,
    refused_at: Option<Duration>,
    /// What is read; only while the shard is behind beyond patience.
    reading: Option<Reading>,
}

/// Bytes that were read since the last look at what waits in the sockets.
#[derive(Clone, Copy, Debug)]
struct Reading {
    since: Duration,
    bytes: u64,
    /// Looks before, without everything having been read in between.
    looks: u32,
}

impl Overload {
    /// A turn begins; `unread` says whether clients have sent more than was read for it. Returns whether it is worth
    /// asking, in this turn, what is to be refused.
    pub fn begin_turn(&mut self, now: Duration, unread: bool) -> bool {
        (self.turn_began, self.unread) = (now, unread);
        let lasting = self.lasting(now).is_some();
        self.reading = lasting.then(|| self.reading.unwrap_or(Reading { since: now, bytes: 0, looks: 0 }));
        lasting
    }

    /// Whether messages to others are to be refused now, if that is worth asking.
    pub fn refuses(&mut self, now: Duration) -> bool {
        let Some(lasting) = self.lasting(now) else { return false };
        let part = lasting.as_micros() % (REFUSING + TAKING).as_micros();
        let refuses = self.is_slow(now) || self.unread && part < REFUSING.as_micros();
        if refuses {
            self.refused_at = Some(now);
        }
        refuses
    }

    /// Everything that was read is handled, or refused.
    pub fn end_input(&mut self, now: Duration) {
        if self.unread || self.is_slow(now) {
            self.behind_since.get_or_insert(self.turn_began);
        } else {
            self.behind_since = None;
        }
    }

    /// So many bytes were read from clients.
    pub fn read(&mut self, bytes: usize) {
        if let Some(reading) = &mut self.reading {
            reading.bytes += bytes as u64;
        }
    }

    /// When it is time to look at what waits in the sockets: how much of it may go on to wait.
    pub fn tolerable(&mut self, now: Duration) -> Option<Tolerable> {
        let Reading { since, bytes, looks } = self.reading?;
        let elapsed = now.saturating_sub(since);
        if elapsed < LOOK_EVERY {
            return None;
        }
        self.reading = Some(Reading { since: now, bytes: 0, looks: looks + 1 });
        let bytes = (bytes as f64 * UNREAD_TIME.div_duration_f64(elapsed)) as u64;
        Some(Tolerable { bytes, all: looks < PATIENT_LOOKS })
    }

    /// For how long the shard has been behind beyond patience.
    fn lasting(&self, now: Duration) -> Option<Duration> {
        let recent = self.refused_at.is_some_and(|at| now.saturating_sub(at) < MEMORY);
        let patience = if recent { LITTLE_PATIENCE } else { PATIENCE };
        now.saturating_sub(self.behind_since?).checked_sub(patience)
    }

    fn is_slow(&self, now: Duration) -> bool {
        now.saturating_sub(self.turn_began) >= TURN_BUDGET
    }
}

/// What may wait in the sockets of a shard that is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerable {
    /// So many bytes at most: they can be read in time.
    pub bytes: u64,
    /// Whether all of it may, if it is no more.
    pub all: bool,
}

impl Tolerable {
    /// Of connections with unread bytes those who cannot be waited for: who has most, until the rest is tolerable. Nobody
    /// if that would not be enough: then it is many who have sent little.
    pub fn beyond<T>(self, mut unread: Vec<(T, u64)>) -> Vec<T> {
        let mut left: u64 = unread.iter().map(|(_, bytes)| bytes).sum();
        let most = if self.all { self.bytes } else { self.bytes.min(left - left / STEP) };
        let much = unread.iter().map(|&(_, bytes)| bytes).filter(|&bytes| bytes > UNREAD_BYTES);
        if left - much.sum::<u64>() > most {
            return Vec::new();
        }
        unread.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let beyond = unread.into_iter().take_while(|&(_, bytes)| {
            let goes = left > most && bytes > UNREAD_BYTES;
            left -= bytes;
            goes
        });
        beyond.map(|(connection, _)| connection).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Turns of `length` ms one after the other that read everything; how many of them have refused something.
    fn refusing_turns(overload: &mut Overload, from: u64, length: u64, turns: u64) -> u64 {
        (0..turns)
            .filter(|turn| {
                let began = from + turn * length;
                let lasting = overload.begin_turn(ms(began), false);
                assert!(!overload.refuses(ms(began)), "a turn begins with taking on what it can");
                let refused = lasting && overload.refuses(ms(began + length - 1));
                overload.end_input(ms(began + length));
                refused
            })
            .count() as u64
    }

    /// What is tolerable to a shard that reads 1 MB in each turn of 50 ms and never everything, at each look, with the
    /// time at which it was asked.
    fn looks(turns: u64) -> Vec<(u64, Tolerable)> {
        let mut overload = Overload::default();
        let look = |turn| {
            let began = 50 * turn;
            overload.begin_turn(ms(began), true);
            overload.read(1_000_000);
            overload.end_input(ms(began + 50));
            Some((began + 50, overload.tolerable(ms(began + 50))?))
        };
        (0..turns).filter_map(look).collect()
    }

    #[test]
    fn as_much_may_wait_as_is_read_in_half_a_second_and_after_a_second_not_all_of_it() {
        let tolerable = |all| Tolerable { bytes: 10_000_000, all };
        let found = looks(40);
        assert_eq!(found[0], (500, tolerable(true)), "a round of reading after patience is over");
        assert_eq!(found[1], (750, tolerable(true)));
        let strict: Vec<_> = found.iter().filter(|(_, tolerable)| !tolerable.all).collect();
        assert_eq!(*strict[0], (1250, tolerable(false)));
        assert_eq!(strict.len(), found.len() - 3, "{found:?}");
    }

    #[test]
    fn a_shard_that_has_read_everything_does_not_look() {
        let mut overload = Overload::default();
        for turn in 0..100 {
            // Behind for 450 ms, which is 200 ms beyond patience.
            overload.begin_turn(ms(50 * turn), turn % 10 != 9);
            overload.end_input(ms(50 * turn + 40));
            assert_eq!(overload.tolerable(ms(50 * turn + 40)), None, "turn {turn}");
        }
    }

    #[test]
    fn who_has_most_unread_goes_until_the_rest_is_tolerable() {
        let unread = || vec![("a", 5_000), ("b", 90_000), ("c", 4_000), ("d", 50_000), ("e", 30_000)];
        let beyond = |bytes, all| Tolerable { bytes, all }.beyond(unread());
        assert_eq!(beyond(200_000, true), [""; 0]);
        assert_eq!(beyond(100_000, true), ["b"]);
        assert_eq!(beyond(80_000, true), ["b", "d"]);
        assert_eq!(beyond(4_000, true), ["b", "d", "e", "a"], "who has hardly anything unread stays");
        assert_eq!(beyond(3_999, true), [""; 0], "closing those who have much would not be enough");
        assert_eq!(beyond(200_000, false), ["b"], "an eighth goes at least");
    }

    #[test]
    fn a_burst_is_not_refused() {
        let mut overload = Overload::default();
        assert_eq!(refusing_turns(&mut overload, 0, 240, 1), 0);
        assert_eq!(refusing_turns(&mut overload, 240, 10, 1), 0);
        assert_eq!(refusing_turns(&mut overload, 250, 240, 1), 0, "it is counted anew");
    }

    #[test]
    fn turns_within_their_budget_that_read_everything_are_never_refused() {
        assert_eq!(refusing_turns(&mut Overload::default(), 0, 49, 1000), 0);
    }

    #[test]
    fn slow_turns_are_refused_in_part_until_one_fits_again() {
        let mut overload = Overload::default();
        assert_eq!(refusing_turns(&mut overload, 0, 100, 15), 12);
        assert_eq!(refusing_turns(&mut overload, 1500, 10, 1), 0);
        assert_eq!(refusing_turns(&mut overload, 1510, 100, 1), 0);
    }

    /// What becomes of messages that come evenly, `load` times as many as can be handled, in two seconds.
    struct Outcome {
        /// Part of what could be handled that was.
        handled: f64,
        /// The longest time from coming to being handled, after the first second.
        latest: Duration,
        /// Time until everything is read after the last message has come.
        recovery: Duration,
    }

    /// Handling a message takes 10 µs, refusing it 4; a turn reads at most 1,000.
    fn overloaded(load: f64) -> Outcome {
        let (mut overload, end) = (Overload::default(), Duration::from_secs(2));
        let came_at = |message: u64| Duration::from_secs_f64(message as f64 * 10e-6 / load);
        let (mut now, mut next, mut handled, mut latest) = (Duration::ZERO, 0, 0, Duration::ZERO);
        loop {
            let first = next;
            while next < first + 1_000 && came_at(next) <= now.min(end) {
                next += 1;
            }
            let unread = came_at(next) <= now.min(end);
            if next == first && now > end {
                break;
            }
            overload.begin_turn(now, unread);
            for message in first..next {
                let refused = overload.refuses(now);
                now += Duration::from_micros(if refused { 4 } else { 10 });
                if !refused {
                    handled += 1;
                    if now > end / 2 {
                        latest = latest.max(now - came_at(message));
                    }
                }
            }
            overload.end_input(now);
            now += Duration::from_micros(50);
        }
        Outcome { handled: f64::from(handled) / 200_000.0, latest, recovery: now - end }
    }

    #[test]
    fn under_twice_the_load_what_is_taken_on_stays_quick_and_the_core_is_used() {
        let Outcome { handled, latest, recovery } = overloaded(2.0);
        assert!(latest < ms(100), "{latest:?}");
        assert!(recovery < ms(100), "{recovery:?}");
        // Refusing half of twice the load takes two fifths of the core at best.
        assert!(handled > 0.3, "{handled}");
    }

    #[test]
    fn what_a_core_can_do_is_not_refused() {
        let Outcome { handled, latest, .. } = overloaded(0.95);
        assert!((0.94..0.96).contains(&handled), "{handled}");
        assert!(latest < ms(20), "{latest:?}");
    }

    #[test]
    fn where_refusing_is_too_much_as_well_something_is_still_handled() {
        let Outcome { handled, .. } = overloaded(10.0);
        assert!(handled > 0.1, "{handled}");
    }
}
