//! Instances publish their load, and an overloaded one sends new clients to others that have room.

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::http::{self, Response};
use crate::harness::raw::UPGRADE;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::{eventually, free_port};

const KEY: (&str, &str) = ("API_KEY", "key");

/// Overloaded from five connections on.
const SMALL: [(&str, &str); 3] = [KEY, ("WS_MAX_CONNECTIONS", "10"), ("OVERLOAD_CONNECTIONS", "50")];

fn is_overloaded(server: &Server) -> bool {
    let ready = http::get(server.port, "/ready");
    ready.status == 503 && ready.body.contains("overloaded")
}

fn upgrade(server: &Server, query: &str) -> Response {
    let request = UPGRADE.replace("/ws", &format!("/ws{query}"));
    http::exchange(server.port, request.as_bytes()).expect("an answer")
}

/// What `server` says of the instance called `id`.
fn facts(server: &Server, id: &str) -> serde_json::Value {
    let request = "GET /api/v1/instances HTTP/1.1\r\nHost: x\r\nX-API-Key: key\r\n\r\n";
    let answer = http::exchange(server.port, request.as_bytes()).expect("an answer");
    let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    let list = body["instances"].as_array().expect("a list");
    list.iter().find(|facts| facts["instanceId"] == id).cloned().unwrap_or_default()
}

#[test]
fn an_overloaded_instance_sends_new_clients_elsewhere_until_there_is_relief() {
    let redis = RedisServer::start();
    let a = Server::in_cluster(&redis, "a", &SMALL);
    let b = Server::in_cluster(&redis, "b", &[KEY]);
    let mut clients: Vec<_> = (0..5).map(|_| Client::connect(&a)).collect();
    eventually("it says that it is overloaded", || is_overloaded(&a).then_some(()));
    let refused = upgrade(&a, "");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    Client::connect(&b).join("r");
    clients[0].join("r");
    let seen = facts(&b, "a");
    assert_eq!(
        [&seen["connections"], &seen["capacity"], &seen["overloaded"]],
        [&json!(5), &json!(10), &json!(true)],
        "{seen}"
    );
    assert!(a.metric("tableforge_websocket_steered_total") >= Some(1.0));
    assert_eq!(http::get(a.port, "/health").status, 200, "it is not ill");
    clients.truncate(4);
    eventually("clients are welcome again", || (!is_overloaded(&a)).then_some(()));
    Client::connect(&a).join("r");
}

#[test]
fn with_an_address_they_are_redirected_to_the_instance_with_the_most_room() {
    let redis = RedisServer::start();
    let a = Server::in_cluster(&redis, "a", &SMALL);
    let port = free_port();
    let url = format!("ws://127.0.0.1:{port}");
    let b = Server::in_cluster_on(port, &redis, "b", &[KEY, ("ADVERTISE_URL", &url)]);
    let _clients: Vec<_> = (0..5).map(|_| Client::connect(&a)).collect();
    eventually("it says that it is overloaded", || is_overloaded(&a).then_some(()));
    let moved = upgrade(&a, "?token=x&y=z");
    assert_eq!(moved.status, 307, "{moved:?}");
    assert_eq!(moved.header("location"), Some(&*format!("{url}/ws?token=x&y=z")), "{moved:?}");
    assert_eq!(facts(&a, "b")["url"], url);
    Client::connect(&b).join("r");
}

#[test]
fn where_everyone_is_as_loaded_clients_stay_welcome() {
    let redis = RedisServer::start();
    let a = Server::in_cluster(&redis, "a", &SMALL);
    let b = Server::in_cluster(&redis, "b", &SMALL);
    let _of_b: Vec<_> = (0..3).map(|_| Client::connect(&b)).collect();
    let _of_a: Vec<_> = (0..5).map(|_| Client::connect(&a)).collect();
    eventually("there is room at the other one", || is_overloaded(&a).then_some(()));
    let _more: Vec<_> = (0..2).map(|_| Client::connect(&b)).collect();
    eventually("now there is none", || (!is_overloaded(&a)).then_some(()));
    Client::connect(&a).join("r");
}
