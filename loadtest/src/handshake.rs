//! The opening handshake (RFC 6455 section 4): the request, and the check of its answer.

use std::fmt::Write;

use tungstenite::handshake::{client::generate_key, derive_accept_key};

use crate::target::Target;

/// Header lines of an answer; more is an error.
const MAX_HEADERS: usize = 64;

/// Bytes of an answer's head; more is an error.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The extension that is offered: every message is compressed by itself, in both directions.
const DEFLATE: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Handshake {
    key: String,
    deflate: bool,
}

/// What became of a handshake.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not complete yet.
    Incomplete,
    /// The connection is open.
    Accepted {
        /// Frames follow after so many bytes.
        length: usize,
        /// Whether messages may be compressed.
        deflate: bool,
    },
    /// It is not.
    Refused {
        /// Why.
        reason: String,
        /// Seconds to wait before the next attempt, where the server said so.
        retry_after: Option<u32>,
    },
}

impl Answer {
    fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into(), retry_after: None }
    }
}

impl Handshake {
    /// A handshake and the request to send for it; `path` is the request target, `deflate` offers compression.
    pub fn start(target: &Target, path: &str, token: Option<&str>, deflate: bool) -> (Self, String) {
        let key = generate_key();
        let mut request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n",
            target.host
        );
        if let Some(token) = token {
            write!(request, "Authorization: Bearer {token}\r\n").expect("writing to a String cannot fail");
        }
        if deflate {
            write!(request, "Sec-WebSocket-Extensions: {DEFLATE}\r\n")
                .expect("writing to a String cannot fail");
        }
        request.push_str("\r\n");
        (Self { key, deflate }, request)
    }

    /// Looks at all that was received so far.
    pub fn check(&self, received: &[u8]) -> Answer {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(received) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if received.len() < MAX_HEAD_BYTES => return Answer::Incomplete,
            Ok(httparse::Status::Partial) => return Answer::refused("endless HTTP header"),
            Err(error) => return Answer::refused(format!("answer is not HTTP: {error}")),
        };
        if response.code != Some(101) {
            let retry_after = header(&response, "retry-after");
            return Answer::Refused {
                reason: format!("HTTP {}", response.code.unwrap_or(0)),
                retry_after: retry_after
                    .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok()),
            };
        }
        let accept = derive_accept_key(self.key.as_bytes());
        if header(&response, "sec-websocket-accept") != Some(accept.as_bytes()) {
            return Answer::refused("wrong Sec-WebSocket-Accept");
        }
        match header(&response, "sec-websocket-extensions") {
            None => Answer::Accepted { length, deflate: false },
            Some(extension) if self.deflate && extension.starts_with(b"permessage-deflate") => {
                Answer::Accepted { length, deflate: true }
            }
            Some(_) => Answer::refused("an extension that was not offered"),
        }
    }
}

/// The value of a header.
fn header<'a>(response: &'a httparse::Response<'_, '_>, name: &str) -> Option<&'a [u8]> {
    response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and answer of RFC 6455 section 1.3.
    fn handshake() -> Handshake {
        Handshake { key: "dGhlIHNhbXBsZSBub25jZQ==".to_owned(), deflate: false }
    }
    const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    #[test]
    fn an_answer_is_accepted_once_complete_and_frames_may_follow() {
        for end in 0..ANSWER.len() {
            assert_eq!(handshake().check(&ANSWER.as_bytes()[..end]), Answer::Incomplete, "{end} bytes");
        }
        let with_frame = [ANSWER.as_bytes(), &[0x81, 0x00]].concat();
        let accepted = Answer::Accepted { length: ANSWER.len(), deflate: false };
        assert_eq!(handshake().check(&with_frame), accepted);
    }

    #[test]
    fn compression_is_on_where_it_was_offered_and_agreed_to() {
        let agreed = ANSWER.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
        assert!(matches!(handshake().check(agreed.as_bytes()), Answer::Refused { .. }), "it was not offered");
        let offering = Handshake { deflate: true, ..handshake() };
        let length = agreed.len();
        assert_eq!(offering.check(agreed.as_bytes()), Answer::Accepted { length, deflate: true });
        let length = ANSWER.len();
        assert_eq!(offering.check(ANSWER.as_bytes()), Answer::Accepted { length, deflate: false });
    }

    #[test]
    fn a_wrong_answer_is_refused_with_its_reason() {
        let wrong_key = ANSWER.replace("s3pP", "s3pQ");
        assert_eq!(handshake().check(wrong_key.as_bytes()), Answer::refused("wrong Sec-WebSocket-Accept"));
        let full = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n";
        let refused = Answer::Refused { reason: "HTTP 503".into(), retry_after: Some(1) };
        assert_eq!(handshake().check(full), refused);
        assert!(matches!(handshake().check(b"SSH-2.0-x\r\n"), Answer::Refused { .. }));
    }

    #[test]
    fn the_request_carries_path_host_and_token() {
        let target: Target = "ws://127.0.0.1:3001/ws?a=b".parse().unwrap();
        let (handshake, request) = Handshake::start(&target, &target.path, Some("T"), false);
        assert!(request.starts_with("GET /ws?a=b HTTP/1.1\r\nHost: 127.0.0.1:3001\r\n"));
        assert!(request.contains("\r\nAuthorization: Bearer T\r\n"));
        assert!(request.contains(&format!("\r\nSec-WebSocket-Key: {}\r\n", handshake.key)));
        assert!(request.ends_with("\r\n\r\n"));
    }
}
