//! OpenTelemetry traces: which requests are followed, and the spans that are recorded of them.
//!
//! A span is begun where something is received and finished wherever it ends, on that thread or another one; it is
//! then put into a bounded queue. [`driver`] takes the spans out and sends them to OTLP_ENDPOINT. Nobody waits:
//! what does not fit is counted and dropped. Without OTLP_ENDPOINT there is no [`Tracer`] and nothing is done.

pub mod context;
pub mod driver;
pub mod otlp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_channel::Sender;

use self::context::Parent;
pub use self::context::{SpanContext, SpanId, TraceId};

/// What is counted of traces. Several threads write.
#[derive(Debug, Default)]
pub struct TraceCounts {
    recorded: AtomicU64,
    dropped: AtomicU64,
    failures: AtomicU64,
}

impl TraceCounts {
    /// Spans that were recorded.
    pub fn recorded(&self) -> u64 {
        self.recorded.load(Relaxed)
    }

    /// Spans that were recorded and not exported.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Exports that were not taken.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }
}

/// What a span is about, as OTLP numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SpanKind {
    /// Something within this process.
    Internal = 1,
    /// A request of a client.
    Server = 2,
    /// A message goes to the other instances.
    Producer = 4,
    /// A message of another instance comes in.
    Consumer = 5,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(Box<str>),
    /// A whole number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number as i64)
    }
}

/// A finished span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Where it belongs, and its own id.
    pub context: SpanContext,
    /// The span that caused it.
    pub parent: Option<SpanId>,
    /// What happened.
    pub name: &'static str,
    /// Its kind.
    pub kind: SpanKind,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    /// Nanoseconds since 1970.
    pub end_ns: u64,
    /// More about it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, if it did.
    pub error: Option<&'static str>,
}

/// Decides what is followed and takes the spans.
#[derive(Debug)]
pub struct Tracer {
    spans: Sender<Span>,
    counts: Arc<TraceCounts>,
    /// A request without a parent is followed when a random number is below this.
    threshold: u64,
    /// Nanoseconds since 1970.
    clock: fn() -> u64,
    random: AtomicU64,
}

impl Tracer {
    /// A tracer whose spans go to `spans`. `sample` is the part of the requests that is followed, from 0 to 1, `seed`
    /// is random, `clock` gives nanoseconds since 1970.
    pub fn new(
        spans: Sender<Span>,
        counts: Arc<TraceCounts>,
        sample: f64,
        seed: u64,
        clock: fn() -> u64,
    ) -> Self {
        let threshold = (sample * u64::MAX as f64) as u64;
        Self { spans, counts, threshold, clock, random: AtomicU64::new(seed) }
    }

    /// What is counted.
    pub fn counts(&self) -> &TraceCounts {
        &self.counts
    }

    /// The next number of SplitMix64: ids and samples need to be different, not secret.
    fn draw(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut x = self.random.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Begins a span if the request is to be followed: as `parent` says if there is one, else by chance.
    pub fn begin(
        self: &Arc<Self>,
        parent: Option<Parent>,
        name: &'static str,
        kind: SpanKind,
    ) -> Option<Box<OpenSpan>> {
        let followed = parent.map_or_else(|| self.draw() < self.threshold, |parent| parent.sampled);
        followed.then(|| self.begin_in(parent.map(|parent| parent.context), name, kind))
    }

    /// Begins a span in a trace that is followed, or a trace of its own.
    pub fn begin_in(
        self: &Arc<Self>,
        parent: Option<SpanContext>,
        name: &'static str,
        kind: SpanKind,
    ) -> Box<OpenSpan> {
        let trace = parent.map(|parent| parent.trace);
        let trace = trace.unwrap_or_else(|| TraceId::new(self.draw(), self.draw()));
        let context = SpanContext { trace, span: SpanId::new(self.draw()) };
        let start_ns = (self.clock)();
        let span = Span {
            context,
            parent: parent.map(|parent| parent.span),
            name,
            kind,
            start_ns,
            end_ns: start_ns,
            attributes: Vec::new(),
            error: None,
        };
        Box::new(OpenSpan { tracer: self.clone(), span })
    }
}

/// A span that goes on. One that is dropped and not finished is forgotten.
#[derive(Debug)]
pub struct OpenSpan {
    tracer: Arc<Tracer>,
    span: Span,
}

impl OpenSpan {
    /// Where what it causes belongs.
    pub fn context(&self) -> SpanContext {
        self.span.context
    }

    /// Says more about it.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.span.attributes.push((key, value.into()));
    }

    /// It has ended well, or failed for this reason.
    pub fn finish(mut self, error: Option<&'static str>) {
        self.span.end_ns = (self.tracer.clock)().max(self.span.start_ns);
        self.span.error = error;
        let counts = &self.tracer.counts;
        counts.recorded.fetch_add(1, Relaxed);
        if self.tracer.spans.try_send(self.span).is_err() {
            counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, bounded};

    use super::*;

    fn tracer(sample: f64, queue: usize) -> (Arc<Tracer>, Receiver<Span>) {
        let (spans, taken) = bounded(queue);
        (Arc::new(Tracer::new(spans, Arc::default(), sample, 7, || 1_000)), taken)
    }

    #[test]
    fn the_part_that_was_asked_for_is_followed() {
        let (all, _spans) = tracer(1.0, 1);
        let (none, _none) = tracer(0.0, 1);
        let (some, _some) = tracer(0.25, 1);
        let followed = |tracer: &Arc<Tracer>| {
            (0..4000).filter(|_| tracer.begin(None, "x", SpanKind::Internal).is_some()).count()
        };
        assert_eq!((followed(&all), followed(&none)), (4000, 0));
        assert!((800..1200).contains(&followed(&some)), "a quarter, by a fixed seed");
    }

    #[test]
    fn a_parent_decides_and_its_trace_goes_on() {
        let (tracer, spans) = tracer(0.0, 4);
        let context = SpanContext { trace: TraceId::new(1, 2), span: SpanId::new(3) };
        assert!(tracer.begin(Some(Parent { context, sampled: false }), "x", SpanKind::Server).is_none());
        let parent = tracer.begin(Some(Parent { context, sampled: true }), "upgrade", SpanKind::Server);
        let parent = parent.unwrap();
        let child = tracer.begin_in(Some(parent.context()), "join", SpanKind::Internal);
        child.finish(Some("forbidden"));
        parent.finish(None);
        let spans: Vec<_> = spans.try_iter().collect();
        assert_eq!((spans[0].parent, spans[1].parent), (Some(spans[1].context.span), Some(context.span)));
        assert!(spans.iter().all(|span| span.context.trace == context.trace));
        assert_eq!((spans[0].error, spans[1].error), (Some("forbidden"), None));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (tracer, _spans) = tracer(1.0, 2);
        for _ in 0..5 {
            tracer.begin_in(None, "x", SpanKind::Internal).finish(None);
        }
        assert_eq!((tracer.counts().recorded(), tracer.counts().dropped()), (5, 3));
    }
}
