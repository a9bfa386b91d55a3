//! Traced messages of other instances: their spans here, from the arrival to the hand-over to the shards.

use std::collections::VecDeque;
use std::sync::Arc;

use super::channel::Channel;
use crate::trace::context::{Carried, fingerprint};
use crate::trace::{OpenSpan, SpanKind, Tracer};

/// Traced messages that are announced and have not come: more are under way at once only if someone makes them up.
const ANNOUNCED: usize = 256;

/// Milliseconds after which an announced message no longer comes. It follows its companion on the same connection, so
/// it comes within moments or went down with its sender or its link; while it is waited for, every event is hashed.
const WAITING_MS: u64 = 5_000;

/// A message that is to come.
#[derive(Debug)]
struct Announced {
    carried: Carried,
    span: Box<OpenSpan>,
    since_ms: u64,
}

/// Messages whose companions have come and that are to come themselves.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    tracer: Option<Arc<Tracer>>,
    /// The oldest first.
    announced: VecDeque<Announced>,
}

impl Arrivals {
    pub(super) fn new(tracer: Option<Arc<Tracer>>) -> Self {
        Self { tracer, announced: VecDeque::new() }
    }

    /// The companion of a message that comes right behind it. One that is not valid, or that nobody here records, is
    /// passed over. `now_ms` is the time in milliseconds by a clock that never goes back.
    pub(super) fn announce(&mut self, body: &[u8], now_ms: u64) {
        let Some(tracer) = &self.tracer else { return };
        let Some(carried) = Carried::decode(body) else { return };
        let mut span = tracer.begin_in(Some(carried.context), "deliver", SpanKind::Consumer);
        span.set("tableforge.request_id", &*carried.request);
        if self.announced.len() == ANNOUNCED {
            self.announced.pop_front();
        }
        self.announced.push_back(Announced { carried, span, since_ms: now_ms });
    }

    /// A message has been handed to the shards. `now_ms` is by the same clock.
    pub(super) fn delivered(&mut self, channel: Channel<'_>, event: &str, now_ms: u64) {
        self.forget_lost(now_ms);
        if self.announced.is_empty() {
            return;
        }
        let message = fingerprint(event.as_bytes());
        let Some(place) = self.announced.iter().position(|announced| announced.carried.message == message)
        else {
            return;
        };
        let Some(Announced { carried, mut span, .. }) = self.announced.remove(place) else { return };
        if let Channel::Room(room) = channel {
            span.set("tableforge.room", room);
        }
        span.finish(None);
        tracing::debug!(
            request = &*carried.request,
            trace = %carried.context.trace,
            "a message of another instance was delivered"
        );
    }

    fn forget_lost(&mut self, now_ms: u64) {
        let is_lost = |announced: &Announced| now_ms.saturating_sub(announced.since_ms) > WAITING_MS;
        while self.announced.front().is_some_and(is_lost) {
            self.announced.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, bounded};

    use super::*;
    use crate::trace::{Span, SpanContext, SpanId, TraceId};

    fn arrivals() -> (Arrivals, Receiver<Span>) {
        let (spans, taken) = bounded(1024);
        (Arrivals::new(Some(Arc::new(Tracer::new(spans, Arc::default(), 0.0, 1, || 5)))), taken)
    }

    fn companion(event: &str, span: u64) -> Vec<u8> {
        let context = SpanContext { trace: TraceId::new(1, 1), span: SpanId::new(span) };
        Carried { context, message: fingerprint(event.as_bytes()), request: "r".into() }.encode()
    }

    #[test]
    fn a_message_is_recognised_among_others() {
        let (mut arrivals, spans) = arrivals();
        arrivals.announce(&companion("{1}", 11), 0);
        arrivals.announce(&companion("{2}", 12), 0);
        for event in ["{0}", "{2}", "{2}", "{1}"] {
            arrivals.delivered(Channel::Room("a"), event, WAITING_MS);
        }
        let parents: Vec<_> = spans.try_iter().map(|span| span.parent).collect();
        assert_eq!(parents, [Some(SpanId::new(12)), Some(SpanId::new(11))]);
    }

    #[test]
    fn announcements_are_bounded_and_garbage_is_none() {
        let (mut arrivals, _spans) = arrivals();
        arrivals.announce(b"garbage", 0);
        assert!(arrivals.announced.is_empty());
        (0..2 * ANNOUNCED).for_each(|_| arrivals.announce(&companion("{}", 1), 0));
        assert_eq!(arrivals.announced.len(), ANNOUNCED);
        let mut nobody = Arrivals::new(None);
        nobody.announce(&companion("{}", 1), 0);
        assert!(nobody.announced.is_empty());
    }

    #[test]
    fn a_message_that_never_comes_is_waited_for_no_longer_than_said() {
        let (mut arrivals, spans) = arrivals();
        arrivals.announce(&companion("{1}", 11), 100);
        arrivals.announce(&companion("{2}", 12), 200);
        arrivals.delivered(Channel::Global, "{0}", 100 + WAITING_MS);
        assert_eq!(arrivals.announced.len(), 2);
        arrivals.delivered(Channel::Global, "{0}", 101 + WAITING_MS);
        assert_eq!(arrivals.announced.len(), 1);
        arrivals.delivered(Channel::Global, "{1}", 150 + WAITING_MS);
        assert!(spans.is_empty(), "it has been given up");
        arrivals.delivered(Channel::Global, "{2}", 201 + WAITING_MS);
        assert!(spans.is_empty() && arrivals.announced.is_empty(), "nothing is left that costs a hash");
    }
}
