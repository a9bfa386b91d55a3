//! The HTTP interface (docs/http.md): `/health`, `/ready`, `/stats`, `/metrics` and the console page.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::raw::RawSocket;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::{free_port, http};

#[test]
fn health_says_that_it_serves() {
    let server = Server::start(&[("INSTANCE_ID", "north-1")]);
    let mut client = Client::connect(&server);
    client.join("r");
    let health = server.get_json("/health");
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(health["instanceId"], "north-1", "{health}");
    assert_eq!((&health["connections"], &health["rooms"]), (&json!(1), &json!(1)), "{health}");
    assert!(health["uptime"].as_f64().is_some_and(|seconds| (0.0..600.0).contains(&seconds)), "{health}");
}

#[test]
fn stats_have_load_memory_and_the_size_of_the_cluster() {
    let server = Server::start(&[("INSTANCE_ID", "north-1")]);
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(&server)).collect();
    clients[0].join("r");
    clients[1].join("q");
    let stats = server.get_json("/stats");
    assert_eq!(stats["instanceId"], "north-1", "{stats}");
    assert_eq!((&stats["connections"], &stats["rooms"]), (&json!(3), &json!(2)), "{stats}");
    assert_eq!(stats["totalInstances"], 1, "alone is a cluster of one: {stats}");
    let (used, total) = (stats["memory"]["used"].as_u64(), stats["memory"]["total"].as_u64());
    assert!(used.is_some_and(|bytes| bytes > 1_000_000), "{stats}");
    assert!(total > used, "{stats}");
    assert!(stats["uptime"].as_f64().is_some_and(|seconds| (0.0..600.0).contains(&seconds)), "{stats}");
}

#[test]
fn stats_and_metrics_know_the_cluster() {
    let redis = RedisServer::start();
    let servers = ["a", "b", "c"].map(|id| Server::in_cluster(&redis, id, &[]));
    for server in &servers {
        crate::harness::eventually("three instances", || {
            (server.get_json("/stats")["totalInstances"] == 3).then_some(())
        });
    }
}

#[test]
fn metrics_are_prometheus_text_and_count() {
    let server = Server::start(&[("INSTANCE_ID", "north-1"), ("SHARDS", "2")]);
    let response = http::get(server.port, "/metrics");
    assert_eq!(response.status, 200);
    assert!(
        response.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")),
        "{response:?}"
    );
    for name in ["connections", "rooms", "messages_sent"] {
        let name = format!("tableforge_websocket_{name}_total");
        let line = response.body.lines().find(|line| line.starts_with(&format!("{name}{{")));
        assert!(
            line.is_some_and(|line| line.contains("instance_id=\"north-1\"")),
            "{name}: {}",
            response.body
        );
        assert!(response.body.contains(&format!("# TYPE {name} ")), "{name} has a type");
        assert!(response.body.contains(&format!("# HELP {name} ")), "{name} says what it is");
    }
    let (mut one, mut two) = (Client::connect(&server), Client::connect(&server));
    one.join("r");
    two.join("r");
    let sent = server.metric("tableforge_websocket_messages_sent_total").expect("the metric");
    for number in 0..10 {
        one.say("r", number);
        two.expect_said("r", number);
    }
    crate::harness::eventually("ten deliveries are counted", || {
        let now = server.metric("tableforge_websocket_messages_sent_total").expect("the metric");
        (now >= sent + 10.0).then_some(())
    });
    assert_eq!(server.metric("tableforge_websocket_connections_total"), Some(2.0));
    assert_eq!(server.metric("tableforge_websocket_rooms_total"), Some(1.0));
}

#[test]
fn every_line_of_metrics_is_well_formed_and_every_metric_named_once() {
    let server = Server::start(&[]);
    let text = http::get(server.port, "/metrics").body;
    let mut types = std::collections::HashSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned()), "{name} has two types");
        } else if !line.starts_with('#') {
            let (key, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = key.split('{').next().expect("a name");
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(types.contains(name) || types.contains(base), "{line} has no type");
        }
    }
    assert!(text.ends_with('\n'), "the format ends every line");
}

#[test]
fn several_requests_may_use_one_connection() {
    let server = Server::start(&[]);
    let mut socket = RawSocket::over(TcpStream::connect(("127.0.0.1", server.port)).expect("a connection"));
    let request =
        |connection: &str| format!("GET /health HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n");
    socket.send(request("keep-alive").as_bytes());
    let first = socket.response();
    assert_eq!(first.status, 200);
    if first.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
        socket.assert_ends();
        return;
    }
    socket.send(request("close").as_bytes());
    assert_eq!(socket.response().status, 200);
    socket.assert_ends();
}

/// The head of the answer to a request with that first line, and everything that follows it up to the connection's end.
#[track_caller]
fn whole_answer(port: u16, line: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server takes connections");
    stream.set_read_timeout(Some(crate::harness::DEADLINE)).expect("the time is not zero");
    stream.write_all(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()).expect("the connection is open");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the server ends the connection");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{line}: {text:?}"));
    (head.to_owned(), body.to_owned())
}

#[test]
fn head_gets_no_body_whatever_the_answer() {
    let admin = free_port();
    let server = Server::start(&[("ADMIN_PORT", &*admin.to_string()), ("API_KEY", "key")]);
    let cases = [
        (server.port, "/health", "200"),
        (server.port, "/ready", "200"),
        (server.port, "/stats", "200"),
        (server.port, "/metrics", "404"),
        (server.port, "/nothing", "404"),
        (server.port, "/ws", "405"),
        (server.port, "/api/v1/instances", "404"),
        (admin, "/metrics", "200"),
        (admin, "/nothing", "404"),
        (admin, "/api/v1/instances", "401"),
    ];
    for (port, path, status) in cases {
        let (head, body) = whole_answer(port, &format!("HEAD {path} HTTP/1.1"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
        assert_eq!(body, "", "{path}: {head}");
        assert!(head.contains("Content-Length: ") && !head.contains("Content-Length: 0"), "{path}: {head}");
    }
    for port in [server.port, admin] {
        let (head, body) = whole_answer(port, "HEAD /health HTTP/1.0");
        assert!(head.starts_with("HTTP/1.1 505 ") && body.is_empty(), "{head} {body}");
        let (head, body) = whole_answer(port, "GET /nothing HTTP/1.1");
        assert!(head.starts_with("HTTP/1.1 404 ") && !body.is_empty(), "GET has it: {head}");
    }
}

#[test]
fn a_server_that_is_not_ready_says_when_to_ask_again() {
    let server = Server::start(&[("WS_MAX_CONNECTIONS", "1")]);
    let client = Client::connect(&server);
    let full = http::get(server.port, "/ready");
    assert!(full.status == 503 && full.body.contains("full"), "{full:?}");
    assert_eq!(full.header("retry-after"), Some("5"), "{full:?}");
    drop(client);
    crate::harness::eventually("there is room again", || {
        http::try_get(server.port, "/ready").filter(|answer| answer.status == 200)
    });
}

#[test]
fn a_query_does_not_change_the_path() {
    let server = Server::start(&[]);
    assert_eq!(http::get(server.port, "/health?probe=1").status, 200);
}

#[test]
fn no_token_of_a_url_appears_in_the_output() {
    let mut server =
        Server::start(&[&crate::harness::token::REQUIRED[..], &[("LOG_LEVEL", "trace")]].concat());
    let token = crate::harness::token::of("ann");
    Client::open(server.port, &format!("/ws?token={token}"), &[]).expect("the server takes the token");
    let refused = Client::open(server.port, "/ws?token=a-very-secret-thing", &[]);
    assert_eq!(refused.err(), Some(401));
    let metrics = http::get(server.port, "/metrics").body;
    server.terminate();
    let output = server.process.output();
    for secret in [token.as_str(), "a-very-secret-thing"] {
        assert!(!output.contains(secret) && !metrics.contains(secret), "the token is in a log or metric");
    }
}
