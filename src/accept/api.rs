//! Requests to `/api/` and their answers: what is asked for, by whom, and in which form the answer goes back.

use std::fmt::Write;

use serde_json::{Value, json};

use super::request::Request;
use crate::identity::{InstanceId, RoomId, UserId};
use crate::limits;

/// Where all of this begins.
const BASE: &str = "/api/v1/";

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Publish to a room.
    PublishToRoom(RoomId),
    /// Send to a user.
    SendToUser(UserId),
    /// Send to everyone.
    Broadcast,
    /// The busiest rooms of the cluster, at most so many.
    Rooms(usize),
    /// How many are in a room.
    Room(RoomId),
    /// Who is in a room.
    Members(RoomId),
    /// A room's past.
    History(RoomId, Page),
    /// The instances of the cluster.
    Instances,
    /// A user's connections.
    User(UserId),
    /// Close a user's connections.
    Disconnect(UserId),
    /// Close a user's connections and keep the user out.
    Ban(UserId),
    /// Let a user in again.
    Unban(UserId),
    /// Who is banned.
    Bans,
    /// Send an instance's clients away and stop it.
    Drain(InstanceId),
}

/// Which part of a room's past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Messages after this one (in reverse: before it): the epoch as a number, and the offset.
    pub since: Option<(u64, u64)>,
    /// Messages at most, if the caller says so.
    pub limit: Option<usize>,
    /// Newest first.
    pub reverse: bool,
}

impl Route {
    /// Whether the request brings a JSON body that must be there.
    pub fn needs_body(&self) -> bool {
        matches!(self, Self::PublishToRoom(_) | Self::SendToUser(_) | Self::Broadcast | Self::Ban(_))
    }
}

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it asks for.
    pub route: Route,
    /// Bytes of its body.
    pub body_bytes: usize,
    /// Whether the client waits for `100 Continue` before it sends the body (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
}

/// An answer: a status with its phrase, one more header line or nothing, and JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code and its phrase.
    pub status: &'static str,
    /// One more header line with its line end, or nothing.
    pub header: &'static str,
    /// The body.
    pub body: String,
}

impl Answer {
    /// Success, with this body.
    pub fn ok(body: &Value) -> Self {
        Self::raw(body.to_string())
    }

    /// Success, with a body that is JSON already.
    pub fn raw(body: String) -> Self {
        Self { status: "200 OK", header: "", body }
    }

    /// The request was taken and goes on.
    pub fn accepted(body: &Value) -> Self {
        Self { status: "202 Accepted", header: "", body: body.to_string() }
    }

    /// A failure: `code` for programs, `message` says what was wrong and what would be right.
    pub fn error(status: &'static str, code: &str, message: &str) -> Self {
        let body = json!({ "error": { "code": code, "message": message } }).to_string();
        Self { status, header: "", body }
    }

    /// With one more header line, which has its line end.
    #[must_use]
    pub fn with_header(self, header: &'static str) -> Self {
        Self { header, ..self }
    }

    /// 400.
    pub fn invalid(message: &str) -> Self {
        Self::error("400 Bad Request", "invalid_request", message)
    }

    /// 503: nothing was done.
    pub fn unavailable(message: &str) -> Self {
        Self::error("503 Service Unavailable", "unavailable", message).with_header("Retry-After: 1\r\n")
    }

    /// 503: nobody knows what became of it.
    pub fn timed_out() -> Self {
        let message = "no answer in time: what became of it is unknown";
        Self::error("503 Service Unavailable", "timeout", message).with_header("Retry-After: 1\r\n")
    }

    /// 408: the body did not come.
    pub fn slow_body() -> Self {
        Self::error("408 Request Timeout", "timeout", "the request's body was not complete in time")
    }

    /// The complete response.
    pub fn encode(&self) -> String {
        let Self { status, header, body } = self;
        let mut text = String::with_capacity(body.len() + 160);
        let _ = write!(
            text,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n{header}\r\n{body}",
            body.len()
        );
        text
    }
}

/// Whether the request is for this interface.
pub fn is_api(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

/// The key or token that the request brings: `Authorization: Bearer …` or `X-API-Key`.
pub fn credential<'a>(request: &Request<'a>) -> Option<&'a str> {
    if let Ok(Some(key)) = request.one("x-api-key") {
        return Some(key);
    }
    let value = request.one("authorization").ok()??;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Understands a request's head. `most` is the size of the largest body that is taken, in bytes.
///
/// # Errors
/// The answer to a request that is refused.
pub fn parse(request: &Request<'_>, most: usize) -> Result<Call, Answer> {
    let route = route(request)?;
    if request.one("transfer-encoding") != Ok(None) {
        let message = "send the body with Content-Length, not in chunks";
        return Err(Answer::error("411 Length Required", "length_required", message));
    }
    let length =
        request.one("content-length").map_err(|_| Answer::invalid("Content-Length is there twice"))?;
    let body_bytes = match length {
        None => 0,
        Some(text) if text.bytes().all(|digit| digit.is_ascii_digit()) && !text.is_empty() => {
            text.parse().unwrap_or(usize::MAX)
        }
        Some(_) => return Err(Answer::invalid("Content-Length is not a number")),
    };
    if body_bytes > most {
        let message = format!("the body has more than {most} bytes: raise MAX_MESSAGE_BYTES, or send less");
        return Err(Answer::error("413 Content Too Large", "too_large", &message));
    }
    let kind = request.one("content-type").map_err(|_| Answer::invalid("Content-Type is there twice"))?;
    let is_json = |kind: &str| {
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    };
    if body_bytes > 0 && !kind.is_none_or(is_json) {
        let message = "the body must be application/json";
        return Err(Answer::error("415 Unsupported Media Type", "unsupported_media_type", message));
    }
    if body_bytes == 0 && route.needs_body() {
        return Err(Answer::invalid("this needs a JSON body"));
    }
    Ok(Call { route, body_bytes, expects_continue: request.lists("expect", "100-continue") })
}

fn route(request: &Request<'_>) -> Result<Route, Answer> {
    let not_found =
        || Answer::error("404 Not Found", "not_found", "there is no such call; docs/openapi.json lists all");
    let rest = request.path.strip_prefix(BASE).ok_or_else(not_found)?;
    let parts: Vec<&str> = rest.split('/').collect();
    let (allowed, route): (&[&str], _) = match parts[..] {
        ["broadcast"] => (&["POST"], Ok(Route::Broadcast)),
        ["instances"] => (&["GET"], Ok(Route::Instances)),
        ["bans"] => (&["GET"], Ok(Route::Bans)),
        ["rooms"] => (&["GET"], listed_rooms(request)),
        ["rooms", name] => (&["GET"], room(name).map(Route::Room)),
        ["rooms", name, "messages"] => (&["POST"], room(name).map(Route::PublishToRoom)),
        ["rooms", name, "members"] => (&["GET"], room(name).map(Route::Members)),
        ["rooms", name, "history"] => {
            (&["GET"], room(name).and_then(|room| Ok(Route::History(room, page(request)?))))
        }
        ["users", name] => (&["GET"], user(name).map(Route::User)),
        ["users", name, "messages"] => (&["POST"], user(name).map(Route::SendToUser)),
        ["users", name, "disconnect"] => (&["POST"], user(name).map(Route::Disconnect)),
        ["users", name, "ban"] if request.method == "DELETE" => (&["DELETE"], user(name).map(Route::Unban)),
        ["users", name, "ban"] => (&["POST", "DELETE"], user(name).map(Route::Ban)),
        ["instances", name, "drain"] => (&["POST"], instance(name).map(Route::Drain)),
        _ => return Err(not_found()),
    };
    if allowed.contains(&request.method) {
        return route;
    }
    let header = match allowed {
        ["GET"] => "Allow: GET\r\n",
        ["POST"] => "Allow: POST\r\n",
        _ => "Allow: POST, DELETE\r\n",
    };
    let answer =
        Answer::error("405 Method Not Allowed", "method_not_allowed", "the Allow header has the methods");
    Err(answer.with_header(header))
}

fn room(name: &str) -> Result<RoomId, Answer> {
    super::request::percent_decode(name).and_then(|name| RoomId::parse(&name)).ok_or_else(|| {
        let message = "a room's name has 1 to 128 bytes of A-Z a-z 0-9 _ . : -";
        Answer::error("400 Bad Request", "invalid_room", message)
    })
}

fn user(name: &str) -> Result<UserId, Answer> {
    let user = super::request::percent_decode(name).and_then(|name| UserId::parse(&name));
    user.ok_or_else(|| Answer::invalid("a user id has 1 to 256 bytes of UTF-8, percent-encoded"))
}

fn instance(name: &str) -> Result<InstanceId, Answer> {
    let instance = super::request::percent_decode(name).and_then(|name| InstanceId::parse(&name));
    instance.ok_or_else(|| Answer::invalid("an instance's name has 1 to 128 bytes of A-Z a-z 0-9 _ . : -"))
}

fn number(request: &Request<'_>, name: &str) -> Result<Option<u64>, Answer> {
    let Some(text) = request.query_parameter(name) else { return Ok(None) };
    let number = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    number.map(Some).ok_or_else(|| Answer::invalid(&format!("{name} must be a whole number")))
}

fn limit(request: &Request<'_>) -> Result<Option<usize>, Answer> {
    match number(request, "limit")? {
        Some(0) => Err(Answer::invalid("limit must be 1 or more")),
        limit => Ok(limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))),
    }
}

fn listed_rooms(request: &Request<'_>) -> Result<Route, Answer> {
    Ok(Route::Rooms(limit(request)?.unwrap_or(20).min(limits::LISTED_ROOMS)))
}

fn page(request: &Request<'_>) -> Result<Page, Answer> {
    let epoch = match request.query_parameter("epoch") {
        Some(text) => {
            let valid = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let epoch = valid.then(|| u64::from_str_radix(&text, 16).ok()).flatten();
            Some(epoch.ok_or_else(|| Answer::invalid("epoch has 16 hexadecimal digits"))?)
        }
        None => None,
    };
    let since = match (epoch, number(request, "offset")?) {
        (Some(epoch), Some(offset)) => Some((epoch, offset)),
        (None, None) => None,
        _ => return Err(Answer::invalid("epoch and offset go together")),
    };
    let reverse = match request.query_parameter("reverse").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Answer::invalid("reverse is true or false")),
    };
    Ok(Page { since, limit: limit(request)?, reverse })
}

/// The optional text `reason` of a body, which is an object or empty, and its whole number `durationMs`.
///
/// # Errors
/// The answer to a body that is something else.
pub fn read_order(body: &[u8]) -> Result<(Option<String>, Option<u64>), Answer> {
    if body.is_empty() {
        return Ok((None, None));
    }
    let value: Value = serde_json::from_slice(body).map_err(|_| Answer::invalid("the body is not JSON"))?;
    let object = value.as_object().ok_or_else(|| Answer::invalid("the body must be an object"))?;
    let reason = match object.get("reason") {
        None => None,
        Some(Value::String(text))
            if text.len() <= limits::REASON_BYTES && !text.contains(char::is_control) =>
        {
            Some(text.clone())
        }
        Some(_) => {
            return Err(Answer::invalid("reason is text of at most 120 bytes, without control characters"));
        }
    };
    let duration = match object.get("durationMs") {
        None => None,
        Some(value) => match value.as_u64() {
            Some(ms) if (1..=limits::BAN_MS).contains(&ms) => Some(ms),
            _ => {
                return Err(Answer::invalid(
                    "durationMs is a whole number from 1 to 315360000000, ten years",
                ));
            }
        },
    };
    Ok((reason, duration))
}

#[cfg(test)]
mod tests {
    use super::super::request::{Head, parse as parse_head};
    use super::*;

    fn call(text: &str) -> Result<Call, Answer> {
        match parse_head(text.as_bytes()) {
            Head::Request(request, _) => parse(&request, 100),
            other => panic!("{other:?}"),
        }
    }

    fn status(text: &str) -> &'static str {
        &call(text).unwrap_err().status[..3]
    }

    #[test]
    fn names_in_the_path_are_decoded_after_it_is_split() {
        let user = call("GET /api/v1/users/a%2Fb%20c HTTP/1.1\r\n\r\n").unwrap().route;
        assert_eq!(user, Route::User(UserId::parse("a/b c").unwrap()));
        let room = call("GET /api/v1/rooms/t%3A1/members HTTP/1.1\r\n\r\n").unwrap().route;
        assert_eq!(room, Route::Members(RoomId::parse("t:1").unwrap()));
    }

    #[test]
    fn what_is_refused_has_the_status_that_says_why() {
        for (head, wanted) in [
            ("GET /api/v2/rooms", "404"),
            ("GET /api/v1/nothing", "404"),
            ("PUT /api/v1/broadcast", "405"),
            ("GET /api/v1/users/a/disconnect", "405"),
            ("GET /api/v1/rooms/a%20b", "400"),
            ("GET /api/v1/users/", "400"),
            ("GET /api/v1/rooms/r/history?epoch=1", "400"),
            ("GET /api/v1/rooms/r/history?limit=0", "400"),
            ("POST /api/v1/broadcast", "400"),
        ] {
            assert_eq!(status(&format!("{head} HTTP/1.1\r\n\r\n")), wanted, "{head}");
        }
        let post = |headers: &str| format!("POST /api/v1/broadcast HTTP/1.1\r\n{headers}\r\n");
        assert_eq!(status(&post("Transfer-Encoding: chunked\r\n")), "411");
        assert_eq!(status(&post("Content-Length: 101\r\n")), "413");
        assert_eq!(status(&post("Content-Length: 99999999999999999999\r\n")), "413");
        assert_eq!(status(&post("Content-Length: -1\r\n")), "400");
        assert_eq!(status(&post("Content-Length: 2\r\nContent-Type: text/plain\r\n")), "415");
        let call =
            call(&post("Content-Length: 2\r\nContent-Type: application/json; charset=utf-8\r\n")).unwrap();
        assert_eq!((call.body_bytes, call.expects_continue), (2, false));
    }

    #[test]
    fn an_order_has_a_reason_and_a_duration_within_bounds() {
        assert_eq!(read_order(b""), Ok((None, None)));
        let body = br#"{"reason":"spam","durationMs":60000}"#;
        assert_eq!(read_order(body), Ok((Some("spam".into()), Some(60_000))));
        for wrong in [&b"[]"[..], b"{", br#"{"durationMs":0}"#, br#"{"durationMs":1.5}"#, br#"{"reason":1}"#]
        {
            assert!(read_order(wrong).is_err());
        }
    }
}
