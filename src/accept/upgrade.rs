//! The WebSocket handshake (RFC 6455, section 4.2): checked in full, answered by status.

use tungstenite::handshake::derive_accept_key;

use super::extension::Deflate;
use super::request::{Ambiguous, Refusal, Request};
use super::subprotocol;

/// A request that may become a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The complete answer, status 101.
    pub response: String,
    /// The token from the `Authorization` header, the query or the list of subprotocols, looked for in that order.
    pub token: Option<String>,
    /// The room that the query names, to be joined at once.
    pub room: Option<String>,
    /// The compression that the answer agrees to.
    pub deflate: Option<Deflate>,
}

const BAD: &str = "400 Bad Request";

/// Checks an upgrade request to `/ws`; `allowed_origins` is empty where all are welcome, and
/// `compression` says whether it may be agreed on.
///
/// # Errors
/// The HTTP status that says what to change.
pub fn check(
    request: &Request<'_>,
    allowed_origins: &[String],
    compression: bool,
) -> Result<Upgrade, Refusal> {
    if request.method != "GET" {
        let reason = "a WebSocket is opened with GET";
        return Err(Refusal { status: "405 Method Not Allowed", reason, header: "Allow: GET\r\n" });
    }
    if !request.lists("upgrade", "websocket") || !request.lists("connection", "upgrade") {
        let reason = "/ws speaks WebSocket: send Connection: Upgrade and Upgrade: websocket";
        let header = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        return Err(Refusal { status: "426 Upgrade Required", reason, header });
    }
    if !matches!(request.one("host"), Ok(Some(host)) if !host.is_empty()) {
        return Err(Refusal::new(BAD, "exactly one Host header is required"));
    }
    if request.one("sec-websocket-version") != Ok(Some("13")) {
        let reason = "Sec-WebSocket-Version must be 13";
        return Err(Refusal {
            status: "426 Upgrade Required",
            reason,
            header: "Sec-WebSocket-Version: 13\r\n",
        });
    }
    let key = match request.one("sec-websocket-key") {
        Ok(Some(key)) if is_nonce(key) => key,
        _ => {
            return Err(Refusal::new(BAD, "exactly one Sec-WebSocket-Key of 16 bytes in base64 is required"));
        }
    };
    check_origin(request, allowed_origins)?;
    let deflate = if compression { Deflate::offered(request) } else { None };
    let offer = subprotocol::offered(request)?;
    let protocol = offer.chosen.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{}{}\r\n",
        derive_accept_key(key.as_bytes()),
        deflate.map(Deflate::answer).unwrap_or_default(),
        protocol.unwrap_or_default()
    );
    let token = token(request)?.or_else(|| offer.token.map(Into::into));
    Ok(Upgrade { response, token, room: request.query_parameter("join"), deflate })
}

/// A request that is not from a browser has no Origin and passes.
fn check_origin(request: &Request<'_>, allowed: &[String]) -> Result<(), Refusal> {
    if allowed.is_empty() {
        return Ok(());
    }
    match request.one("origin") {
        Ok(None) => Ok(()),
        Ok(Some(origin)) if allowed.iter().any(|other| other.eq_ignore_ascii_case(origin)) => Ok(()),
        _ => Err(Refusal::new("403 Forbidden", "this Origin may not connect: see ALLOWED_ORIGINS")),
    }
}

fn token(request: &Request<'_>) -> Result<Option<String>, Refusal> {
    let header = request
        .one("authorization")
        .map_err(|Ambiguous| Refusal::new(BAD, "at most one Authorization header is allowed"))?;
    let Some(value) = header else { return Ok(request.query_parameter("token")) };
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim().to_owned())),
        _ => Err(Refusal::new("401 Unauthorized", "Authorization must be: Bearer TOKEN")),
    }
}

/// 16 bytes in base64 are 22 characters and two equals signs.
fn is_nonce(key: &str) -> bool {
    let (digits, padding) = key.split_at_checked(22).unwrap_or(("", ""));
    padding == "==" && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

#[cfg(test)]
mod tests {
    use super::super::request::{Head, parse};
    use super::*;

    const GOOD: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn outcome(head: &str, origins: &[&str]) -> Result<Upgrade, &'static str> {
        let Head::Request(request, _) = parse(head.as_bytes()) else { panic!("{head}") };
        let origins: Vec<_> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        check(&request, &origins, false).map_err(|refusal| &refusal.status[..3])
    }

    fn changed(from: &str, to: &str) -> Result<Upgrade, &'static str> {
        assert!(GOOD.contains(from));
        outcome(&GOOD.replace(from, to), &[])
    }

    #[test]
    fn the_example_of_the_rfc_is_answered_as_the_rfc_says() {
        let upgrade = outcome(GOOD, &[]).unwrap();
        assert!(upgrade.response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert_eq!(upgrade.token, None);
    }

    #[test]
    fn compression_is_agreed_on_where_it_is_allowed_and_offered() {
        let line = "Sec-WebSocket-Extensions: permessage-deflate; ";
        for (offered, allowed) in [(true, true), (true, false), (false, true)] {
            let offer =
                if offered { "Host: h\r\nSec-WebSocket-Extensions: permessage-deflate" } else { "Host: h" };
            let head = GOOD.replace("Host: h", offer);
            let Head::Request(request, _) = parse(head.as_bytes()) else { panic!("{head}") };
            let upgrade = check(&request, &[], allowed).unwrap();
            assert_eq!(upgrade.deflate.is_some(), offered && allowed);
            assert_eq!(upgrade.response.contains(line), offered && allowed);
            assert!(upgrade.response.ends_with("\r\n\r\n") && !upgrade.response.contains("\r\n\r\n\r\n"));
        }
    }

    #[test]
    fn each_flaw_has_its_status() {
        assert_eq!(changed("GET", "POST"), Err("405"));
        assert_eq!(changed("Upgrade: websocket", "Upgrade: h2c"), Err("426"));
        assert_eq!(changed("Version: 13", "Version: 8"), Err("426"));
        assert_eq!(changed("Host: h\r\n", ""), Err("400"));
        assert_eq!(changed("Host: h\r\n", "Host: h\r\nHost: i\r\n"), Err("400"));
        assert_eq!(changed("dGhlIHNhbXBsZSBub25jZQ==", "dGhl"), Err("400"));
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        assert_eq!(changed(key, &key.repeat(2)), Err("400"));
    }

    #[test]
    fn tokens_come_by_header_or_query() {
        let token = |upgrade: Result<Upgrade, _>| upgrade.unwrap().token;
        assert_eq!(token(changed("Host: h", "Host: h\r\nAuthorization: bearer a.b")).as_deref(), Some("a.b"));
        assert_eq!(token(changed("/ws", "/ws?token=c.d")).as_deref(), Some("c.d"));
        assert_eq!(changed("Host: h", "Host: h\r\nAuthorization: Basic eA=="), Err("401"));
    }

    #[test]
    fn foreign_origins_are_forbidden_where_there_is_a_list() {
        let origin = |value: &str| GOOD.replace("Host: h", &format!("Host: h\r\nOrigin: {value}"));
        assert!(outcome(&origin("https://good.example"), &["https://good.example"]).is_ok());
        assert!(outcome(GOOD, &["https://good.example"]).is_ok());
        for foreign in ["https://bad.example", "null", "https://good.example.evil"] {
            assert_eq!(outcome(&origin(foreign), &["https://good.example"]), Err("403"), "{foreign}");
        }
    }
}
