//! Close codes: what this server sends and means, and which codes a client may send.

use super::violation::Violation;

/// Why the server closes a connection. 4000 to 4499 ask the client to come back with backoff, 4500
/// to 4999 ask it not to come back by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CloseCode {
    /// The client closed, or asked for it. Nothing to do.
    Normal = 1000,
    /// The server goes away for good. Come back to another instance.
    GoingAway = 1001,
    /// The client broke the WebSocket protocol. A client's fault: coming back changes nothing.
    ProtocolError = 1002,
    /// A binary message where only text is understood. A client's fault.
    UnsupportedData = 1003,
    /// Text that is not UTF-8, or compressed data that cannot be expanded. A client's fault.
    InvalidUtf8 = 1007,
    /// A rule that the reason names was broken. A client's fault.
    PolicyViolation = 1008,
    /// A message larger than `maxMessageBytes`. A client's fault.
    MessageTooBig = 1009,
    /// The server failed. Come back, with backoff.
    ServerFault = 1011,
    /// The server restarts or drains. Come back after the delay that `server_draining` named.
    ServiceRestart = 1012,
    /// The server is full. Come back later, with backoff.
    TryAgainLater = 1013,
    /// The token ran out and was not renewed. Come back with a new token.
    TokenExpired = 4001,
    /// A ping was not answered in time. Come back.
    NoPong = 4002,
    /// The client read more slowly than its rooms talk. Come back and catch up.
    SlowReader = 4003,
    /// The server lost this connection's state. Come back and join the rooms again.
    StateLost = 4004,
    /// The client sent more than its limit, again and again. Come back, with backoff, and send less.
    SentTooMuch = 4005,
    /// The token was refused. Coming back with the same token changes nothing.
    TokenRefused = 4500,
    /// No valid token came in time. Connect again only with one.
    AuthenticationTimeout = 4501,
    /// Too many invalid requests. A client's fault.
    InvalidRequests = 4502,
    /// An administrator ended the connection. Stay away until a person decides otherwise.
    Disconnected = 4503,
    /// This user or address has too many connections. Close another one first.
    TooManyConnections = 4504,
}

impl CloseCode {
    /// Every code, for counters and documents.
    pub const ALL: [Self; 20] = [
        Self::Normal,
        Self::GoingAway,
        Self::ProtocolError,
        Self::UnsupportedData,
        Self::InvalidUtf8,
        Self::PolicyViolation,
        Self::MessageTooBig,
        Self::ServerFault,
        Self::ServiceRestart,
        Self::TryAgainLater,
        Self::TokenExpired,
        Self::NoPong,
        Self::SlowReader,
        Self::StateLost,
        Self::SentTooMuch,
        Self::TokenRefused,
        Self::AuthenticationTimeout,
        Self::InvalidRequests,
        Self::Disconnected,
        Self::TooManyConnections,
    ];

    /// The number in the close frame.
    pub fn as_u16(self) -> u16 {
        self as u16
    }

    /// What a close frame says by default: what was wrong and what the client should do.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Normal => "closed as asked",
            Self::GoingAway => "server going away: connect to another instance",
            Self::ProtocolError => "WebSocket protocol broken: see RFC 6455",
            Self::UnsupportedData => "binary message: send JSON as text",
            Self::InvalidUtf8 => "text is not UTF-8: send valid UTF-8",
            Self::PolicyViolation => "a rule of this server was broken",
            Self::MessageTooBig => "message too big: keep below maxMessageBytes",
            Self::ServerFault => "server fault: come back, with backoff",
            Self::ServiceRestart => "server restarting: come back after reconnectAfterMs",
            Self::TryAgainLater => "server full: come back later, with backoff",
            Self::TokenExpired => "token expired: come back with a new one",
            Self::NoPong => "no pong in time: come back",
            Self::SlowReader => "too slow to read: come back and catch up",
            Self::StateLost => "state lost: come back and join your rooms again",
            Self::SentTooMuch => "sent too much: come back, with backoff, and send less",
            Self::TokenRefused => "token refused: do not come back with it",
            Self::AuthenticationTimeout => "not authenticated in time: connect again with a token",
            Self::InvalidRequests => "too many invalid requests: see the errors sent before",
            Self::Disconnected => "disconnected by an administrator",
            Self::TooManyConnections => "too many connections for this user or address: close another first",
        }
    }
}

/// Whether a client may send `code`: RFC 6455 section 7.4 and the codes registered since, without
/// those that never appear on the wire (1004, 1005, 1006, 1015).
fn is_allowed_from_client(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Reads a close frame's payload: code and reason, both absent when it is empty.
pub(super) fn parse(payload: &[u8]) -> Result<(Option<u16>, &str), Violation> {
    match payload {
        [] => Ok((None, "")),
        [_] => Err(Violation::CloseOfOneByte),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !is_allowed_from_client(code) {
                return Err(Violation::CloseCode(code));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| Violation::CloseReasonNotUtf8)?;
            Ok((Some(code), reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::frame::CLOSE_REASON_BYTES;

    #[test]
    fn codes_a_client_may_send_are_those_the_rfc_and_the_registry_allow() {
        for code in
            [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
        {
            assert_eq!(parse(&u16::to_be_bytes(code)), Ok((Some(code), "")));
        }
        for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            assert_eq!(parse(&u16::to_be_bytes(code)), Err(Violation::CloseCode(code)));
        }
    }

    #[test]
    fn payload_is_nothing_or_a_code_and_a_utf8_reason() {
        assert_eq!(parse(b""), Ok((None, "")));
        assert_eq!(parse(b"\x03"), Err(Violation::CloseOfOneByte));
        assert_eq!(parse(b"\x03\xe8bye \xc3\xbc"), Ok((Some(1000), "bye ü")));
        assert_eq!(parse(b"\x03\xe8\xff"), Err(Violation::CloseReasonNotUtf8));
        assert_eq!(parse(b"\x03\xe8\xc3"), Err(Violation::CloseReasonNotUtf8));
    }

    #[test]
    fn every_code_is_listed_once_and_its_reason_fits_a_close_frame() {
        for (i, code) in CloseCode::ALL.iter().enumerate() {
            assert!(!CloseCode::ALL[..i].contains(code), "{code:?} listed twice");
            assert!(is_allowed_from_client(code.as_u16()), "{code:?} may not be on the wire");
            assert!((1..=CLOSE_REASON_BYTES).contains(&code.reason().len()), "{code:?}");
        }
    }
}
