//! Script calls in the order given, also when Redis has forgotten the script (SCRIPT FLUSH, a restart).
//!
//! Calls go out as EVALSHA, many at a time. When one is answered NOSCRIPT, the calls behind it may
//! have been carried out or not (another instance may load the script at any moment), so all of them
//! are called again, in order, once the last answer is in. Every operation may be repeated: it says
//! what shall be the case, not what shall change.

use redis::{ServerError, Value};

/// A call to send now.
#[derive(Debug)]
pub struct Outgoing<C> {
    /// The call.
    pub call: C,
    /// Whether the script's text goes with it.
    pub with_text: bool,
}

/// Keeps script calls in order.
#[derive(Debug)]
pub struct ScriptQueue<C> {
    in_flight: usize,
    stalled: bool,
    /// Answered, but to be repeated.
    again: Vec<C>,
    /// Submitted meanwhile: they stand behind all that are in flight.
    kept: Vec<C>,
}

impl<C> Default for ScriptQueue<C> {
    fn default() -> Self {
        Self { in_flight: 0, stalled: false, again: Vec::new(), kept: Vec::new() }
    }
}

impl<C> ScriptQueue<C> {
    /// A new call: to be sent at once, or kept until the script is loaded again.
    pub fn submit(&mut self, call: C) -> Option<Outgoing<C>> {
        if self.stalled {
            self.kept.push(call);
            return None;
        }
        self.in_flight += 1;
        Some(Outgoing { call, with_text: false })
    }

    /// A call was answered: its final answer, or nothing while it is to be repeated. `send` takes the
    /// calls to send now.
    pub fn answered(
        &mut self,
        call: C,
        answer: Result<Value, ServerError>,
        mut send: impl FnMut(Outgoing<C>),
    ) -> Option<(C, Result<Value, ServerError>)> {
        self.in_flight -= 1;
        let unknown = matches!(&answer, Err(error) if error.code() == "NOSCRIPT");
        if unknown && !self.stalled {
            self.stalled = true;
            tracing::debug!("Redis does not know a script: loading it");
        }
        if !self.stalled {
            return Some((call, answer));
        }
        self.again.push(call);
        if self.in_flight == 0 {
            self.stalled = false;
            let calls = std::mem::take(&mut self.again).into_iter().chain(std::mem::take(&mut self.kept));
            for (position, call) in calls.enumerate() {
                self.in_flight += 1;
                send(Outgoing { call, with_text: position == 0 });
            }
        }
        None
    }

    /// How many calls wait for the script to be loaded.
    pub fn waiting(&self) -> usize {
        self.again.len() + self.kept.len()
    }

    /// The connection is gone, and all calls with it. Returns those that waited.
    pub fn clear(&mut self) -> Vec<C> {
        let Self { mut again, mut kept, .. } = std::mem::take(self);
        again.append(&mut kept);
        again
    }
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;
    use crate::uplink::presence::Call;

    fn renew(cursor: &str) -> Call {
        Call::Renew { cursor: cursor.into() }
    }

    fn cursor(call: &Call) -> &str {
        let Call::Renew { cursor } = call else { panic!("another call than was submitted: {call:?}") };
        cursor
    }

    fn noscript() -> Result<Value, ServerError> {
        let value = parse_redis_value(b"-NOSCRIPT No matching script.\r\n").unwrap();
        let Value::ServerError(error) = value else { panic!("an error reply parses as one") };
        Err(error)
    }

    #[test]
    fn known_scripts_go_straight_through() {
        let mut queue = ScriptQueue::default();
        let sent = queue.submit(renew("1")).unwrap();
        assert!(!sent.with_text);
        let (call, answer) =
            queue.answered(sent.call, Ok(Value::Int(5)), |_| panic!("nothing to send")).unwrap();
        assert_eq!((cursor(&call), answer.unwrap()), ("1", Value::Int(5)));
    }

    #[test]
    fn a_forgotten_script_repeats_all_that_follow_in_order() {
        let mut queue = ScriptQueue::default();
        let flight: Vec<Call> = ["1", "2", "3"].map(|c| queue.submit(renew(c)).unwrap().call).into();
        let mut sent = Vec::new();
        for (position, call) in flight.into_iter().enumerate() {
            // The second was carried out, because someone else loaded the script just then.
            let answer = if position == 1 { Ok(Value::Int(0)) } else { noscript() };
            assert!(queue.answered(call, answer, |out| sent.push(out)).is_none());
            if position == 0 {
                assert!(queue.submit(renew("4")).is_none());
            }
        }
        let order: Vec<&str> = sent.iter().map(|out| cursor(&out.call)).collect();
        assert_eq!(order, ["1", "2", "3", "4"]);
        assert_eq!(sent.iter().map(|out| out.with_text).collect::<Vec<_>>(), [true, false, false, false]);
        assert_eq!(queue.waiting(), 0);
        let last = sent.pop().unwrap();
        assert!(queue.answered(last.call, Ok(Value::Okay), |_| ()).is_some());
    }

    #[test]
    fn a_script_forgotten_twice_is_loaded_twice() {
        let mut queue = ScriptQueue::default();
        let mut call = queue.submit(renew("1")).unwrap().call;
        for _ in 0..2 {
            let mut sent = Vec::new();
            assert!(queue.answered(call, noscript(), |out| sent.push(out)).is_none());
            let again = sent.pop().unwrap();
            assert!(again.with_text);
            call = again.call;
        }
    }
}
