//! What is carried from one place to the next: the ids of a trace and of a request, as text and in a batch.

use std::fmt;

use crate::limits;

/// The id of a trace; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// The id of a span; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl TraceId {
    /// An id of two numbers.
    pub fn new(high: u64, low: u64) -> Self {
        Self((u128::from(high) << 64 | u128::from(low)).max(1))
    }
}

impl SpanId {
    /// An id of a number.
    pub fn new(number: u64) -> Self {
        Self(number.max(1))
    }
}

/// As W3C Trace Context and OTLP's JSON have it.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// As W3C Trace Context and OTLP's JSON have it.
impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One span of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
}

/// What a request says of the span that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// That span.
    pub context: SpanContext,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl Parent {
    /// A parent whose trace is recorded.
    pub fn sampled(context: SpanContext) -> Self {
        Self { context, sampled: true }
    }

    /// Reads a `traceparent` header (W3C Trace Context, level 1). One that is not valid counts as none.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace) = (parts.next()?, parts.next()?);
        let (span, flags) = (parts.next()?, parts.next()?);
        // Later versions may add parts; version 00 has four, and ff is none.
        let complete = version != "ff" && (version != "00" || parts.next().is_none());
        hex(version, 2)?;
        let trace = hex(trace, 32).filter(|id| *id > 0)?;
        let span = hex(span, 16).filter(|id| *id > 0)?;
        let sampled = hex(flags, 2)? & 1 == 1;
        let context = SpanContext { trace: TraceId(trace), span: SpanId(span as u64) };
        complete.then_some(Self { context, sampled })
    }
}

/// Exactly so many lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let valid = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    valid.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// Whether a correlation id may be taken over: it is repeated in headers, log lines and spans.
pub fn is_request_id(text: &str) -> bool {
    (1..=limits::REQUEST_ID_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

/// A traced message's companion on its way to the other instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The span of the publication.
    pub context: SpanContext,
    /// Which message: [`fingerprint`] of the event's JSON text, without its offset.
    pub message: u64,
    /// The correlation id of the request that it came with.
    pub request: Box<str>,
}

/// Bytes in front of the correlation id: trace, span, message.
const CARRIED_HEADER_BYTES: usize = 32;

impl Carried {
    /// The body of the record.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(CARRIED_HEADER_BYTES + self.request.len());
        body.extend_from_slice(&self.context.trace.0.to_be_bytes());
        body.extend_from_slice(&self.context.span.0.to_be_bytes());
        body.extend_from_slice(&self.message.to_le_bytes());
        body.extend_from_slice(self.request.as_bytes());
        body
    }

    /// Reads what [`Carried::encode`] wrote; nothing for what is not valid.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (trace, rest) = body.split_first_chunk::<16>()?;
        let (span, rest) = rest.split_first_chunk::<8>()?;
        let (message, request) = rest.split_first_chunk::<8>()?;
        let (trace, span) = (u128::from_be_bytes(*trace), u64::from_be_bytes(*span));
        let request = std::str::from_utf8(request).ok().filter(|request| is_request_id(request))?;
        let context = SpanContext { trace: TraceId(trace), span: SpanId(span) };
        let message = u64::from_le_bytes(*message);
        (trace > 0 && span > 0).then(|| Self { context, message, request: request.into() })
    }
}

/// A number by which a message is recognised among those of the same moment: FNV-1a, 64 bits.
pub fn fingerprint(event: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    event.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_example_of_the_recommendation_is_understood() {
        let parent = Parent::parse(GOOD).unwrap();
        assert_eq!(parent.context.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.context.span.to_string(), "b7ad6b7169203331");
        assert!(parent.sampled);
        assert!(!Parent::parse(&GOOD.replace("-01", "-00")).unwrap().sampled);
    }

    #[test]
    fn what_is_not_valid_is_no_parent() {
        for wrong in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
        }
        assert!(Parent::parse(&format!("cc{}-later", &GOOD[2..])).is_some(), "a later version has more");
    }

    #[test]
    fn a_correlation_id_is_short_and_harmless() {
        for good in ["a", "4f6c3b1e-77aa-4e2e-9b7c-000000000001", "req:1.2_3"] {
            assert!(is_request_id(good), "{good}");
        }
        for bad in ["", "a b", "a\r\nX: y", "a\"b", "ü", "a/b", "<x>", &"a".repeat(65)] {
            assert!(!is_request_id(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_carried_comes_out_as_it_went_in() {
        let context = Parent::parse(GOOD).unwrap().context;
        let carried = Carried { context, message: fingerprint(b"{}"), request: "r-1".into() };
        let body = carried.encode();
        assert_eq!(Carried::decode(&body), Some(carried));
        for end in 0..=CARRIED_HEADER_BYTES {
            assert_eq!(Carried::decode(&body[..end]), None);
        }
        assert_eq!(Carried::decode(&[&body[..32], b"a b"].concat()), None, "a hostile instance's id");
    }
}
