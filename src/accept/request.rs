//! The head of an HTTP/1.1 request (RFC 9112): parsed strictly, within bounds.

use crate::limits;

/// What the bytes so far amount to.
#[derive(Debug)]
pub enum Head<'a> {
    /// The head is not complete yet.
    Incomplete,
    /// A request, and how many bytes its head has.
    Request(Request<'a>, usize),
    /// Not a request that can be answered normally.
    Refused(Refusal),
}

/// A complete request head.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// The query, without its `?`; empty if there is none.
    pub query: &'a str,
    headers: Vec<(&'a str, &'a [u8])>,
}

/// A header that says nothing certain: it is there more than once, or is not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous;

/// An HTTP status that refuses a request, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code and its phrase.
    pub status: &'static str,
    /// What was wrong and what would be right.
    pub reason: &'static str,
    /// One more header line, if the status asks for it, with its line end.
    pub header: &'static str,
}

impl Refusal {
    /// A refusal without a header of its own.
    pub const fn new(status: &'static str, reason: &'static str) -> Self {
        Self { status, reason, header: "" }
    }
}

impl<'a> Request<'a> {
    /// The only value of a header.
    ///
    /// # Errors
    /// When the header is there more than once or is not text.
    pub fn one(&self, name: &str) -> Result<Option<&'a str>, Ambiguous> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() {
            return Err(Ambiguous);
        }
        first.map(|value| std::str::from_utf8(value).map(str::trim).map_err(|_| Ambiguous)).transpose()
    }

    /// Whether one of the header's comma-separated values is `token`, in any case.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(token))
    }

    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let matching = self.headers.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name));
        matching.map(|(_, value)| *value)
    }

    /// The value of a query parameter, percent-decoded.
    pub fn query_parameter(&self, name: &str) -> Option<String> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(other, _)| *other == name)?;
        percent_decode(value)
    }
}

pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        if *byte == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            // A sign is no digit, though numbers may have one.
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

const TOO_LARGE: Refusal = Refusal::new(
    "431 Request Header Fields Too Large",
    "a request head has at most 64 header lines and 16 KiB",
);
const MALFORMED: Refusal = Refusal::new("400 Bad Request", "this is not an HTTP/1.1 request");

/// The method of the request whose first bytes these are, whether or not the rest is one; empty where none is known.
pub fn method(bytes: &[u8]) -> &str {
    // Line ends in front of a request are skipped (RFC 9112, section 2.2).
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    let mut words = bytes[start..].splitn(2, |byte| *byte == b' ');
    let first = words.next().filter(|_| words.next().is_some());
    first.and_then(|word| std::str::from_utf8(word).ok()).unwrap_or_default()
}

/// Looks at the bytes received so far.
pub fn parse(bytes: &[u8]) -> Head<'_> {
    let mut lines = [httparse::EMPTY_HEADER; limits::REQUEST_HEADERS];
    let mut parsed = httparse::Request::new(&mut lines);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() >= limits::REQUEST_HEAD_BYTES => {
            Head::Refused(TOO_LARGE)
        }
        Ok(httparse::Status::Partial) => Head::Incomplete,
        Ok(httparse::Status::Complete(length)) if length > limits::REQUEST_HEAD_BYTES => {
            Head::Refused(TOO_LARGE)
        }
        Ok(httparse::Status::Complete(length)) => match (parsed.method, parsed.path, parsed.version) {
            (Some(method), Some(target), Some(1)) => {
                let (path, query) = target.split_once('?').unwrap_or((target, ""));
                let headers = parsed.headers.iter().map(|header| (header.name, header.value)).collect();
                Head::Request(Request { method, path, query, headers }, length)
            }
            _ => Head::Refused(Refusal::new("505 HTTP Version Not Supported", "use HTTP/1.1")),
        },
        Err(httparse::Error::TooManyHeaders) => Head::Refused(TOO_LARGE),
        Err(_) => Head::Refused(MALFORMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: &[u8]) -> Request<'_> {
        match parse(bytes) {
            Head::Request(request, _) => request,
            other => panic!("{other:?}"),
        }
    }

    fn status(bytes: &[u8]) -> &'static str {
        match parse(bytes) {
            Head::Refused(refusal) => &refusal.status[..3],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_head_is_found_whatever_follows_it() {
        let bytes =
            b"GET /ws?a=1&token=a%2Eb HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n\r\nrest";
        let Head::Request(request, length) = parse(bytes) else { panic!() };
        assert_eq!((request.method, request.path, &bytes[length..]), ("GET", "/ws", b"rest".as_slice()));
        assert_eq!(request.query_parameter("token").as_deref(), Some("a.b"));
        assert_eq!(request.query_parameter("none"), None);
        assert!(request.lists("connection", "upgrade"));
        assert_eq!(request.one("host"), Ok(Some("x")));
    }

    #[test]
    fn every_prefix_of_a_head_is_incomplete() {
        let bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for length in 0..bytes.len() {
            assert!(matches!(parse(&bytes[..length]), Head::Incomplete), "{length}");
        }
    }

    #[test]
    fn the_method_is_known_before_and_without_the_rest() {
        for bytes in ["HEAD / HTTP/1.1\r\n", "\r\n\nHEAD /x", "HEAD ", "HEAD / HTTP/9\r\n\r\n"] {
            assert_eq!(method(bytes.as_bytes()), "HEAD", "{bytes:?}");
        }
        for bytes in [b"".as_slice(), b"HEAD", b"\r\n", b"\xff\xff x", b" HEAD /"] {
            assert_eq!(method(bytes), "", "{bytes:?}");
        }
    }

    #[test]
    fn a_doubled_header_is_noticed() {
        assert_eq!(request(b"GET / HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n").one("Host"), Err(Ambiguous));
    }

    #[test]
    fn bounds_and_garbage_are_refused() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(125));
        assert_eq!(status(many.as_bytes()), "431");
        let long = format!("GET / HTTP/1.1\r\na: {}", "x".repeat(70 * 1024));
        assert_eq!(status(long.as_bytes()), "431");
        assert_eq!(status(b"\x16\x03\x01\x02\x00\x01"), "400");
        assert_eq!(status(b"GET / HTTP/1.0\r\n\r\n"), "505");
    }

    #[test]
    fn broken_percent_encoding_is_no_value() {
        for query in ["token=%", "token=%4", "token=%zz", "token=%+f", "token=%ff"] {
            let bytes = format!("GET /?{query} HTTP/1.1\r\n\r\n");
            assert_eq!(request(bytes.as_bytes()).query_parameter("token"), None, "{query}");
        }
    }
}
