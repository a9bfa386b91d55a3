//! The list of subprotocols of an upgrade request (RFC 6455, section 11.3.4), in which browsers can send a token.
//!
//! A browser sets no header of an upgrade but this one: `new WebSocket(url, ["tableforge", token])`. Whoever offers
//! subprotocols wants one of them in the answer, and that is never the token.

use super::request::{Refusal, Request};

/// The name of the client protocol as a subprotocol.
pub const NAME: &str = "tableforge";

/// What an offered token may begin with, to tell it from names.
const PREFIX: &str = "bearer.";

/// How every token begins that a JSON library has written: `{"` in base64.
const TOKEN_START: &str = "eyJ";

/// What a client has offered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The token among the entries.
    pub token: Option<&'a str>,
    /// The entry that the server agrees to.
    pub chosen: Option<&'a str>,
}

/// Reads the list: an entry is a token if it begins with `bearer.` or looks like a JSON Web Token. `tableforge` is
/// agreed to, or beside a token whatever comes first.
///
/// # Errors
/// When there are two tokens, or an entry is not a name (RFC 9110, section 5.6.2).
pub fn offered<'a>(request: &Request<'a>) -> Result<Offer<'a>, Refusal> {
    const FORM: Refusal = Refusal::new(
        "400 Bad Request",
        "Sec-WebSocket-Protocol must list names separated by commas, with one token at most",
    );
    let mut offer = Offer::default();
    let mut names = Vec::new();
    for value in request.all("sec-websocket-protocol") {
        let value = std::str::from_utf8(value).map_err(|_| FORM)?;
        for entry in value.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            if !entry.bytes().all(is_name_byte) {
                return Err(FORM);
            }
            match token(entry) {
                Some(_) if offer.token.is_some() => return Err(FORM),
                Some(token) => offer.token = Some(token),
                None => names.push(entry),
            }
        }
    }
    let known = names.iter().find(|name| **name == NAME);
    let first = names.first().filter(|_| offer.token.is_some());
    offer.chosen = known.or(first).copied();
    Ok(offer)
}

fn token(entry: &str) -> Option<&str> {
    let looks_so = entry.starts_with(TOKEN_START) && entry.matches('.').count() == 2;
    entry.strip_prefix(PREFIX).or(looks_so.then_some(entry))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::super::request::{Head, parse};
    use super::*;

    fn offer(lines: &[&str]) -> Result<(Option<String>, Option<String>), &'static str> {
        let lines: String = lines.iter().map(|line| format!("Sec-WebSocket-Protocol: {line}\r\n")).collect();
        let head = format!("GET /ws HTTP/1.1\r\n{lines}\r\n");
        let Head::Request(request, _) = parse(head.as_bytes()) else { panic!("{head}") };
        let offer = offered(&request).map_err(|refusal| &refusal.status[..3])?;
        Ok((offer.token.map(Into::into), offer.chosen.map(Into::into)))
    }

    #[test]
    fn a_token_is_found_and_never_agreed_to() {
        for (lines, token, chosen) in [
            (&["tableforge, eyJ0.eyJ1.c2ln"][..], Some("eyJ0.eyJ1.c2ln"), Some("tableforge")),
            (&["eyJ0.eyJ1.c2ln,tableforge"], Some("eyJ0.eyJ1.c2ln"), Some("tableforge")),
            (&["tableforge", "bearer.a.b.c"], Some("a.b.c"), Some("tableforge")),
            (&["access_token, eyJ0.eyJ1."], Some("eyJ0.eyJ1."), Some("access_token")),
            (&["eyJ0.eyJ1.c2ln"], Some("eyJ0.eyJ1.c2ln"), None),
            (&["tableforge"], None, Some("tableforge")),
            (&["mqtt, wamp"], None, None),
            (&[], None, None),
        ] {
            let expected = (token.map(Into::into), chosen.map(Into::into));
            assert_eq!(offer(lines), Ok(expected), "{lines:?}");
        }
    }

    #[test]
    fn what_could_mislead_is_refused() {
        for lines in [
            &["tableforge, bearer.a, bearer.b"][..],
            &["bearer.a", "eyJ0.eyJ1.x"],
            &["table forge"],
            &["a\"b"],
        ] {
            assert_eq!(offer(lines), Err("400"), "{lines:?}");
        }
    }
}
