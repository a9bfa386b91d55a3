//! The administrative interface (docs/http.md): over HTTP, between instances, on its own port, from a shell.

mod administration;
mod command_line;
mod description;
mod port;
mod publishing;
mod refusals;

use serde_json::Value;

use crate::harness::http::{self, Response};

/// The key of every server in these tests.
const KEY: &str = "a key of the tests";

/// The settings of a server that knows the key.
const WITH_KEY: [(&str, &str); 1] = [("API_KEY", KEY)];

/// The answer to a request with the key, and a JSON body unless it is empty.
#[track_caller]
fn call(port: u16, method: &str, path: &str, body: &str) -> Response {
    call_as(port, &format!("Authorization: Bearer {KEY}\r\n"), method, path, body)
}

/// The same with other header lines.
#[track_caller]
fn call_as(port: u16, headers: &str, method: &str, path: &str, body: &str) -> Response {
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{kind}{headers}\r\n{body}"
    );
    http::exchange(port, request.as_bytes()).unwrap_or_else(|why| panic!("{method} {path}: {why}"))
}

/// The JSON of an answer, whose status must be `status`.
#[track_caller]
fn json_of(response: &Response, status: u16) -> Value {
    assert_eq!(response.status, status, "{}", response.body);
    assert_eq!(response.header("content-type"), Some("application/json"), "{response:?}");
    serde_json::from_str(&response.body).unwrap_or_else(|why| panic!("{why}: {}", response.body))
}

/// The JSON of the answer to a `GET`, which must succeed.
#[track_caller]
fn get(port: u16, path: &str) -> Value {
    json_of(&call(port, "GET", path, ""), 200)
}

/// The JSON of the answer to a `POST`, which must succeed.
#[track_caller]
fn post(port: u16, path: &str, body: &str) -> Value {
    json_of(&call(port, "POST", path, body), 200)
}
