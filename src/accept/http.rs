//! Answers to plain HTTP requests: health, readiness, figures, and the console page.

use std::fmt::Write;

use serde_json::json;

use super::request::{Refusal, Request};
use crate::instance::{Instance, Phase};
use crate::metrics;

const CONSOLE: &str = include_str!("console.html");
const JSON: &str = "application/json";

/// The complete answer to a request for anything but `/ws` and `/api/`. `uptime_ms` is the time since the start.
pub fn respond(request: &Request<'_>, instance: &Instance, uptime_ms: u64) -> String {
    let separate = instance.settings.administration.port.is_some();
    if separate && request.path == "/metrics" {
        return refuse(&Refusal::new("404 Not Found", "this is served on ADMIN_PORT"));
    }
    respond_with(request, instance, uptime_ms, !separate)
}

/// As [`respond`], on the separate port, which serves everything.
pub fn respond_on_any(request: &Request<'_>, instance: &Instance, uptime_ms: u64) -> String {
    respond_with(request, instance, uptime_ms, true)
}

/// `response` with one more header line.
pub fn with_header(response: &str, name: &str, value: &str) -> String {
    let (status, rest) = response.split_once("\r\n").unwrap_or((response, ""));
    format!("{status}\r\n{name}: {value}\r\n{rest}")
}

/// `response` as it goes out to a request of that method: HEAD gets no body, whatever the status (RFC 9110, section
/// 9.3.2).
pub fn fitted(method: &str, mut response: String) -> String {
    if method == "HEAD"
        && let Some(end) = response.find("\r\n\r\n")
    {
        response.truncate(end + 4);
    }
    response
}

/// `names_rooms`: whether whoever asks may see names of rooms.
fn respond_with(request: &Request<'_>, instance: &Instance, uptime_ms: u64, names_rooms: bool) -> String {
    let uptime = uptime_ms / 1000;
    if !matches!(request.method, "GET" | "HEAD") {
        let reason = "this address answers GET";
        let refusal = Refusal { status: "405 Method Not Allowed", reason, header: "Allow: GET, HEAD\r\n" };
        return refuse(&refusal);
    }
    let (status, kind, body) = match request.path {
        "/health" => health(instance, uptime_ms),
        "/ready" => return ready(instance),
        "/stats" => ("200 OK", JSON, stats(instance, uptime, names_rooms)),
        "/metrics" => {
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", metrics::exposition(instance, uptime_ms))
        }
        "/" if instance.settings.console => ("200 OK", "text/html; charset=utf-8", CONSOLE.to_owned()),
        _ => {
            return refuse(&Refusal::new(
                "404 Not Found",
                "clients connect to /ws; see also /health and /metrics",
            ));
        }
    };
    response(status, kind, "", &body)
}

/// The complete answer for a refused request.
pub fn refuse(refusal: &Refusal) -> String {
    let body = json!({ "error": refusal.reason }).to_string();
    response(refusal.status, JSON, refusal.header, &body)
}

/// The complete answer to a client that another instance is to take.
pub fn redirect(request: &Request<'_>, to: &str) -> String {
    let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
    let location = format!("Location: {to}{}{query}\r\n", request.path);
    let body = json!({ "error": "this instance is overloaded: another one takes this client" }).to_string();
    response("307 Temporary Redirect", JSON, &location, &body)
}

fn response(status: &str, kind: &str, header: &str, body: &str) -> String {
    let mut text = String::with_capacity(body.len() + 160);
    let _ = write!(
        text,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n{header}\r\n{body}",
        length = body.len()
    );
    text
}

fn health(instance: &Instance, uptime_ms: u64) -> (&'static str, &'static str, String) {
    let stalled = instance.stalled_shards(uptime_ms);
    let (http, status) = match (stalled.is_empty(), instance.is_degraded()) {
        (false, _) => ("503 Service Unavailable", "unhealthy"),
        (true, true) => ("200 OK", "degraded"),
        (true, false) => ("200 OK", "healthy"),
    };
    let mut body = json!({
        "status": status,
        "instanceId": instance.id.as_str(),
        "connections": instance.connections(),
        "rooms": instance.rooms(),
        "uptime": uptime_ms / 1000,
    });
    if !stalled.is_empty() {
        body["stalledShards"] = json!(stalled);
    }
    (http, JSON, body.to_string())
}

fn ready(instance: &Instance) -> String {
    // A second is enough for another instance to be chosen; what the others mean to change takes longer.
    let (soon, later) = ("Retry-After: 1\r\n", "Retry-After: 5\r\n");
    let (reason, header) = match instance.phase() {
        Phase::Starting => ("starting", soon),
        Phase::Draining => ("draining", soon),
        Phase::Serving if instance.is_full() => ("full", later),
        Phase::Serving if instance.is_refused_by_redis() => ("refused by Redis", later),
        Phase::Serving if instance.is_overloaded() => ("overloaded", soon),
        Phase::Serving => return response("200 OK", JSON, "", &json!({ "ready": true }).to_string()),
    };
    let body = json!({ "ready": false, "reason": reason }).to_string();
    response("503 Service Unavailable", JSON, header, &body)
}

fn stats(instance: &Instance, uptime: u64, names_rooms: bool) -> String {
    let (used, total) = metrics::memory();
    let shards: Vec<_> = instance
        .shards
        .iter()
        .map(|cells| {
            json!({
                "connections": cells.connections.get(),
                "rooms": cells.rooms.get(),
                "messagesReceived": cells.messages_in.get(),
                "deliveries": cells.deliveries.get(),
            })
        })
        .collect();
    let mut stats = json!({
        "instanceId": instance.id.as_str(),
        "connections": instance.connections(),
        "rooms": instance.rooms(),
        "totalInstances": instance.instances(),
        "memory": { "used": used, "total": total },
        "uptime": uptime,
        "shards": shards,
    });
    if names_rooms {
        let rooms = instance.busiest_rooms().into_iter().map(|busy| {
            json!({
                "roomId": busy.room.as_str(),
                "connections": busy.connections,
                "deliveriesPerSecond": (busy.per_second * 10.0).round() / 10.0,
            })
        });
        stats["topRooms"] = rooms.collect();
    }
    stats.to_string()
}
