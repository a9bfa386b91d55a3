//! Correlation ids in answers and in the log, and what the log looks like.

use serde_json::Value;

use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::http::{self, Response};
use crate::harness::raw::{RawSocket, UPGRADE};
use crate::harness::server::Server;

/// The answer to `request` with one more header line.
#[track_caller]
fn ask(port: u16, request: &str, header: &str) -> Response {
    let mut socket = RawSocket::connect(port);
    let (head, rest) = request.split_once("\r\n").expect("a request line");
    socket.send(format!("{head}\r\n{header}{rest}").as_bytes());
    socket.response()
}

fn lines(server: &Server) -> Vec<Value> {
    let output = server.process.output();
    output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn the_id_of_a_request_is_in_its_answer_and_in_the_log() {
    let server = Server::start(&[("LOG_LEVEL", "debug"), ("INSTANCE_ID", "north-1")]);
    let headers = [("x-request-id", "4f6c3b1e-77aa:1.2_3")];
    let client = Client::open(server.port, "/ws", &headers).expect("the server upgrades");
    let (socket, other) = (client.socket_id.clone(), Client::connect(&server));
    let (other_socket, _) = (other.socket_id.clone(), client.close());
    drop(other);
    for (connection, request) in [(&socket, "4f6c3b1e-77aa:1.2_3"), (&other_socket, &*other_socket)] {
        for message in ["a connection is open", "a connection has ended"] {
            let line = eventually(message, || {
                lines(&server)
                    .into_iter()
                    .find(|line| line["message"] == message && line["connection"] == **connection)
            });
            assert_eq!(line["request"], request, "{line}");
            assert_eq!((&line["instance"], &line["shard"]), (&"north-1".into(), &0.into()), "{line}");
            assert_eq!((&line["level"], line["timestamp"].is_string()), (&"DEBUG".into(), true), "{line}");
        }
    }
}

#[test]
fn a_line_about_a_connection_names_it_and_its_request() {
    let server = Server::start(&[]);
    let mut client = Client::open(server.port, "/ws", &[("x-request-id", "visit-7")]).expect("it upgrades");
    client.expect_refused(serde_json::json!({"type": "join_room", "roomId": "no room"}), "invalid_room");
    let line = eventually("the refusal is logged", || {
        lines(&server).into_iter().find(|line| line["message"] == "a client names no room")
    });
    assert_eq!(line["connection"], *client.socket_id, "{line}");
    assert_eq!(line["request"], "visit-7", "{line}");
}

#[test]
fn every_answer_to_an_upgrade_or_a_call_has_an_id() {
    let server = Server::start(&[("API_KEY", "key"), ("ALLOWED_ORIGINS", "https://good.example")]);
    let call = "GET /api/v1/instances HTTP/1.1\r\nHost: x\r\n\r\n";
    let allowed = "GET /api/v1/instances HTTP/1.1\r\nHost: x\r\nX-API-Key: key\r\n\r\n";
    let foreign = UPGRADE.replace("Host:", "Origin: https://bad.example\r\nHost:");
    for (request, status) in [(UPGRADE, 101), (&*foreign, 403), (call, 401), (allowed, 200)] {
        let given = ask(server.port, request, "X-Request-Id: given-1\r\n");
        assert_eq!((given.status, given.header("x-request-id")), (status, Some("given-1")), "{given:?}");
        let (one, two) = (ask(server.port, request, ""), ask(server.port, request, ""));
        let ids = [&one, &two].map(|response| response.header("x-request-id").expect("an id").to_owned());
        assert!(ids[0] != ids[1] && ids[0].len() == 22, "{ids:?}");
    }
    let health = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(ask(server.port, health, "X-Request-Id: given-1\r\n").header("x-request-id"), None);
}

#[test]
fn an_id_that_could_do_harm_is_replaced() {
    let server = Server::start(&[("LOG_LEVEL", "debug")]);
    let long = "a".repeat(65);
    for harmful in
        ["<script>", "a b", "\"quoted\"", "a%0d%0ab", "caf\u{e9}", long.as_str(), "", "a\r\nX-Request-Id: b"]
    {
        let response = ask(server.port, UPGRADE, &format!("X-Request-Id: {harmful}\r\n"));
        let id = response.header("x-request-id").expect("an id");
        assert!(id.len() == 22 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{harmful}: {id}");
    }
    assert!(!server.process.output().contains("<script"), "nor is it in the log");
}

#[test]
fn calls_on_the_separate_port_have_ids_and_orders_are_logged_with_them() {
    let admin = crate::harness::free_port();
    let settings = [("API_KEY", "key"), ("ADMIN_PORT", &*admin.to_string())];
    let server = Server::start(&settings);
    let call = "DELETE /api/v1/users/ann/ban HTTP/1.1\r\nHost: x\r\nX-API-Key: key\r\n\r\n";
    let given = ask(admin, call, "X-Request-Id: order-66\r\n");
    assert_eq!((given.status, given.header("x-request-id")), (200, Some("order-66")), "{given:?}");
    let made_up = [ask(admin, call, ""), ask(admin, call, "")];
    let ids = made_up.map(|response| response.header("x-request-id").expect("an id").to_owned());
    assert_ne!(ids[0], ids[1]);
    for id in ["order-66", &ids[0]] {
        eventually("the order is in the log", || {
            lines(&server).into_iter().find(|line| line["request"] == id && line["level"] == "INFO")
        });
    }
}

#[test]
fn repetitions_are_left_out_counted_and_told() {
    let server = Server::start(&[("API_KEY", "key"), ("LOG_REPEATS", "3")]);
    let call = "DELETE /api/v1/users/ann/ban HTTP/1.1\r\nHost: x\r\nX-API-Key: key\r\n\r\n";
    // More than three in each of the windows that a slow machine may need for them.
    for _ in 0..40 {
        assert_eq!(http::exchange(server.port, call.as_bytes()).expect("an answer").status, 200);
    }
    let told = eventually("how many were left out", || {
        let left_out = |line: &Value| line["left_out"].as_u64();
        let told: u64 = lines(&server).iter().filter_map(left_out).sum();
        (told > 0).then_some(told)
    });
    let orders =
        lines(&server).iter().filter(|line| line["message"] == "an administrator's order").count() as u64;
    assert!((3..40).contains(&orders) && told <= 40 - orders, "{orders} logged, {told} left out");
    assert!(server.metric("tableforge_log_lines_left_out_total") >= Some(told as f64));
}
