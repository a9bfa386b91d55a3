//! The separate port, and what is said of a shard that stands still.

use serde_json::json;

use super::{KEY, WITH_KEY, call, get, json_of, post};
use crate::harness::client::Client;
use crate::harness::server::Server;
use crate::harness::{eventually, free_port, http};

#[test]
fn the_separate_port_serves_administration_and_the_main_one_does_not() {
    let port = free_port();
    let admin_port = port.to_string();
    let server = Server::start(&[WITH_KEY[0], ("ADMIN_PORT", &admin_port), ("SHARDS", "2")]);
    for path in ["/health", "/ready", "/stats"] {
        assert_eq!(http::get(server.port, path).status, 200, "{path}");
        assert_eq!(http::get(port, path).status, 200, "{path}");
    }
    assert_eq!(http::get(server.port, "/metrics").status, 404);
    assert!(http::get(port, "/metrics").body.contains("tableforge_websocket_connections_total"));
    assert_eq!(call(server.port, "GET", "/api/v1/instances", "").status, 404);
    assert_eq!(http::get(port, "/api/v1/instances").status, 401);
    assert_eq!(http::get(port, "/ws").status, 404, "clients connect to the main port");

    let mut ann = Client::connect(&server);
    ann.join("r");
    assert_eq!(get(port, "/api/v1/rooms/r")["memberCount"], 1);
    assert_eq!(get(port, "/api/v1/instances")["instances"][0]["connections"], 1);
    assert_eq!(post(port, "/api/v1/rooms/r/messages", r#"{"data":1}"#), json!({}));
    ann.expect_said("r", 1);
    let path = format!("/api/v1/users/{}/disconnect", ann.user_id);
    assert_eq!(post(port, &path, "")["disconnected"], 1);
    assert_eq!(ann.expect_close(), 4503);
    let answer = json_of(&call(port, "POST", "/api/v1/broadcast", "{"), 400);
    assert_eq!(answer["error"]["code"], "invalid_json", "{answer}");
}

#[test]
fn a_port_that_is_taken_stops_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let mut command =
        crate::harness::server::command("serve", free_port(), &[("ADMIN_PORT", &port), ("API_KEY", KEY)]);
    let mut process = crate::harness::process::Process::start("tableforge", &mut command);
    assert_eq!(process.wait().code(), Some(1));
    eventually("the reason is told", || process.output().contains("ADMIN_PORT").then_some(()));
}
