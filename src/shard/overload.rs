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

/// Decides which messages to others a shard takes on. Times are measured from any fixed point.
///
/// A shard is behind when it has not read all that clients have sent, or needed more than [`TURN_BUDGET`] to handle what
/// it read. If it cannot catch up, it would be late by whatever gathers in the sockets' buffers, which takes seconds. So
/// after [`PATIENCE`] it refuses, which costs a part of handling, until it has read everything.
#[derive(Debug, Default)]
pub struct Overload {
    turn_began: Duration,
    /// Whether more has been sent than was read for this turn.
    unread: bool,
    behind_since: Option<Duration>,
    refused_at: Option<Duration>,
}

impl Overload {
    /// A turn begins; `unread` says whether clients have sent more than was read for it. Returns whether it is worth
    /// asking, in this turn, what is to be refused.
    pub fn begin_turn(&mut self, now: Duration, unread: bool) -> bool {
        (self.turn_began, self.unread) = (now, unread);
        self.lasting(now).is_some()
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
