//! A circuit breaker: who fails again and again is left alone for a while, then tried with one call.

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Calls go through; so many have failed in a row.
    Closed { failures: u32 },
    /// No call goes through before this time, in ms.
    Open { until_ms: u64 },
    /// One call is under way, and decides.
    HalfOpen,
}

/// A circuit breaker. Times are ms of any clock that does not go back.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    most_failures: u32,
    pause_ms: u64,
}

impl Breaker {
    /// One that opens after `most_failures` in a row, for `pause_ms` each time.
    pub(super) fn new(most_failures: u32, pause_ms: u64) -> Self {
        Self { state: State::Closed { failures: 0 }, most_failures, pause_ms }
    }

    /// Whether a call may be made now; who gets a yes makes it, and tells how it went.
    ///
    /// # Errors
    /// Milliseconds after which to ask again.
    pub(super) fn admit(&mut self, now_ms: u64) -> Result<(), u64> {
        match self.state {
            State::Closed { .. } => Ok(()),
            State::Open { until_ms } if now_ms < until_ms => Err(until_ms - now_ms),
            State::Open { .. } => {
                self.state = State::HalfOpen;
                Ok(())
            }
            State::HalfOpen => Err(self.pause_ms),
        }
    }

    /// A call went well.
    pub(super) fn succeeded(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    /// A call failed.
    pub(super) fn failed(&mut self, now_ms: u64) {
        let failures = match self.state {
            State::Closed { failures } => failures + 1,
            State::Open { .. } | State::HalfOpen => self.most_failures,
        };
        self.state = if failures < self.most_failures {
            State::Closed { failures }
        } else {
            State::Open { until_ms: now_ms + self.pause_ms }
        };
    }

    /// Whether calls are held back.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_one_good_probe() {
        let mut breaker = Breaker::new(3, 100);
        breaker.failed(0);
        breaker.failed(0);
        breaker.succeeded();
        breaker.failed(1);
        breaker.failed(2);
        assert_eq!(breaker.admit(3), Ok(()), "not three in a row yet");
        breaker.failed(3);
        assert_eq!(breaker.admit(4), Err(99));
        assert_eq!(breaker.admit(102), Err(1));
        assert_eq!(breaker.admit(103), Ok(()), "the probe");
        assert!(breaker.admit(104).is_err(), "one probe at a time");
        breaker.failed(110);
        assert_eq!(breaker.admit(111), Err(99), "a failed probe opens it again at once");
        assert_eq!(breaker.admit(210), Ok(()));
        breaker.succeeded();
        assert!(!breaker.is_open() && breaker.admit(211).is_ok() && breaker.admit(211).is_ok());
    }
}
