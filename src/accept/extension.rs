//! Offers of permessage-deflate (RFC 7692, section 7.1): which one is taken, and the answer to it.

use super::request::Request;

/// Bits of DEFLATE's window where the client sets no bound.
const LARGEST_WINDOW: u8 = 15;

/// An offer that was taken. No context is taken over, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// Bits of the client's window, if the offer bounds it.
    window: Option<u8>,
}

impl Deflate {
    /// The first of the request's offers that can be taken; one with a parameter that is unknown, repeated
    /// or has a wrong value cannot.
    pub fn offered(request: &Request<'_>) -> Option<Self> {
        let lines = request.all("sec-websocket-extensions");
        lines
            .filter_map(|line| std::str::from_utf8(line).ok())
            .flat_map(|line| line.split(','))
            .find_map(Self::parse)
    }

    fn parse(offer: &str) -> Option<Self> {
        let mut parts = offer.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut seen = Vec::new();
        let mut window = None;
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(unquoted(value.trim()))),
                None => (part, None),
            };
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, value) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
                ("server_max_window_bits", Some(value)) => window = Some(window_bits(value)?),
                // What the client would put up with: the server expands with the largest window anyway.
                ("client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(value)) => _ = window_bits(value)?,
                _ => return None,
            }
        }
        Some(Self { window })
    }

    /// Bits of the window that the client expands with: what is sent to it must not need a larger one.
    pub fn window(self) -> u8 {
        self.window.unwrap_or(LARGEST_WINDOW)
    }

    /// The header line that takes the offer, with its line end.
    pub(super) fn answer(self) -> String {
        let window = self.window.map(|bits| format!("; server_max_window_bits={bits}")).unwrap_or_default();
        format!(
            "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
             client_no_context_takeover{window}\r\n"
        )
    }
}

/// The number that a window parameter must have: 8 to 15, without leading zeros.
fn window_bits(value: &str) -> Option<u8> {
    let bits = value.parse().ok().filter(|bits| (8..=LARGEST_WINDOW).contains(bits))?;
    value.starts_with(|first: char| matches!(first, '1'..='9')).then_some(bits)
}

/// A value may stand in quotes (RFC 6455, section 9.1).
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::super::request::{Head, parse};
    use super::*;

    /// The window that is agreed on after the offers of these header lines.
    fn window(lines: &[&str]) -> Option<Option<u8>> {
        let headers: String =
            lines.iter().map(|line| format!("Sec-WebSocket-Extensions: {line}\r\n")).collect();
        let head = format!("GET /ws HTTP/1.1\r\n{headers}\r\n");
        let Head::Request(request, _) = parse(head.as_bytes()) else { panic!("{head}") };
        Deflate::offered(&request).map(|deflate| deflate.window)
    }

    #[test]
    fn offers_as_clients_make_them_are_taken() {
        for offer in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;client_max_window_bits=10 ;  server_no_context_takeover",
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        ] {
            assert_eq!(window(&[offer]), Some(None), "{offer}");
        }
        for (offer, bits) in [
            ("permessage-deflate; server_max_window_bits=15", 15),
            ("permessage-deflate; server_max_window_bits = \"9\"; client_max_window_bits", 9),
            ("permessage-deflate; server_max_window_bits=8", 8),
        ] {
            assert_eq!(window(&[offer]), Some(Some(bits)), "{offer}");
        }
    }

    #[test]
    fn offers_that_nobody_could_keep_are_declined() {
        for offer in [
            "",
            "x-webkit-deflate-frame",
            "permessage-deflate2",
            "permessage-deflate; unknown",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=09",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; client_max_window_bits=0",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate;",
        ] {
            assert_eq!(window(&[offer]), None, "{offer}");
        }
        assert_eq!(window(&[]), None);
    }

    #[test]
    fn the_first_offer_that_can_be_taken_is() {
        let bad = "permessage-deflate; server_max_window_bits=99";
        let good = "permessage-deflate; server_max_window_bits=12";
        assert_eq!(window(&[&format!("{bad}, {good}, permessage-deflate")]), Some(Some(12)));
        assert_eq!(window(&["foo; bar", bad, "permessage-deflate", good]), Some(None));
    }

    #[test]
    fn the_answer_names_the_window_only_where_the_offer_did() {
        let start = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
                     client_no_context_takeover";
        assert_eq!(Deflate { window: None }.answer(), format!("{start}\r\n"));
        let bounded = Deflate { window: Some(9) };
        assert_eq!(bounded.answer(), format!("{start}; server_max_window_bits=9\r\n"));
        assert_eq!((bounded.window(), Deflate { window: None }.window()), (9, 15));
    }
}
