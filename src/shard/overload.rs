//! When a shard gets more than it can do: what it refuses so that what it takes on stays quick.

use std::time::Duration;

/// Time in one turn for handling what clients have sent; a turn that needs more has fallen behind. Long enough for a
/// burst to a room of thousands, short enough to be the latency of a server that is overloaded.
const TURN_BUDGET: Duration = Duration::from_millis(50);

/// Time for which every turn must have fallen behind before anything is refused: a burst ends sooner.
const PATIENCE: Duration = Duration::from_millis(500);

/// Decides which messages to others a shard takes on. Times are measured from any fixed point.
///
/// A shard that cannot keep up would otherwise be late by whatever has gathered in the sockets' buffers, which takes
/// seconds. So once its turns have been too long for a while, it handles in each as much as fits [`TURN_BUDGET`] and
/// refuses the rest, which costs a small part of handling it. With the first turn that fits again, that is over.
#[derive(Debug, Default)]
pub struct Overload {
    turn_began: Duration,
    behind_since: Option<Duration>,
}

impl Overload {
    /// A turn begins. Returns whether it is worth asking, in this turn, what is to be refused.
    pub fn begin_turn(&mut self, now: Duration) -> bool {
        self.turn_began = now;
        self.behind_since.is_some_and(|since| now.saturating_sub(since) >= PATIENCE)
    }

    /// Whether messages to others are to be refused for the rest of the turn, if that is worth asking.
    pub fn refuses(&self, now: Duration) -> bool {
        self.is_behind(now)
    }

    /// Everything that clients have sent is handled, or refused.
    pub fn end_input(&mut self, now: Duration) {
        if self.is_behind(now) {
            self.behind_since.get_or_insert(self.turn_began);
        } else {
            self.behind_since = None;
        }
    }

    fn is_behind(&self, now: Duration) -> bool {
        now.saturating_sub(self.turn_began) >= TURN_BUDGET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Turns of `length` ms one after the other; how many of them have refused something.
    fn refusing_turns(overload: &mut Overload, from: u64, length: u64, turns: u64) -> u64 {
        (0..turns)
            .filter(|turn| {
                let began = from + turn * length;
                let lasting = overload.begin_turn(ms(began));
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
        assert_eq!(refusing_turns(&mut overload, 0, 400, 1), 0);
        assert_eq!(refusing_turns(&mut overload, 400, 10, 1), 0);
        assert_eq!(refusing_turns(&mut overload, 410, 400, 1), 0, "it is counted anew");
    }

    #[test]
    fn turns_within_their_budget_are_never_refused() {
        assert_eq!(refusing_turns(&mut Overload::default(), 0, 49, 1000), 0);
    }

    #[test]
    fn lasting_overload_is_refused_until_a_turn_fits_again() {
        let mut overload = Overload::default();
        assert_eq!(refusing_turns(&mut overload, 0, 100, 15), 10);
        assert_eq!(refusing_turns(&mut overload, 1500, 10, 1), 0);
        assert_eq!(refusing_turns(&mut overload, 1510, 100, 1), 0);
    }
}
