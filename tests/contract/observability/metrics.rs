//! What the counters, gauges and histograms count.

use std::time::Instant;

use serde_json::json;

use super::sum;
use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::http;
use crate::harness::raw::RawSocket;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;

#[track_caller]
fn await_sum(server: &Server, name: &str, labels: &[&str], expected: f64) {
    eventually(&format!("{name} {labels:?} is {expected}"), || {
        (sum(server.port, name, labels) == expected).then_some(())
    });
}

#[test]
fn ends_are_counted_by_who_ended_them_and_code() {
    let server = Server::start(&[("MAX_MESSAGE_BYTES", "1024"), ("SHARDS", "2")]);
    let closes = "tableforge_websocket_closes_total";
    Client::connect(&server).close();
    await_sum(&server, closes, &["by=\"client\"", "code=\"1000\""], 1.0);
    Client::connect(&server).vanish();
    await_sum(&server, closes, &["by=\"nobody\"", "code=\"1006\""], 1.0);
    let mut large = Client::connect(&server);
    large.say("r", "x".repeat(2000));
    assert_eq!(large.expect_close(), 1009);
    await_sum(&server, closes, &["by=\"server\"", "code=\"1009\""], 1.0);
    await_sum(&server, "tableforge_limits_reached_total", &["limit=\"max_message_bytes\""], 1.0);
    assert_eq!(sum(server.port, closes, &[]), 3.0, "each once");
    assert_eq!(sum(server.port, "tableforge_websocket_connections", &[]), 0.0);
}

#[test]
fn refusals_are_counted_by_status_and_limits_by_setting() {
    let server = Server::start(&[
        ("WS_MAX_CONNECTIONS", "1"),
        ("MAX_ROOMS_PER_CONNECTION", "1"),
        ("MESSAGE_RATE", "1"),
        ("MESSAGE_BURST", "20"),
    ]);
    assert_eq!(sum(server.port, "tableforge_websocket_connections_limit", &[]), 1.0);
    let mut client = Client::connect(&server);
    assert_eq!(Client::open(server.port, "/ws", &[]).err(), Some(503));
    let limit =
        |limit: &str| sum(server.port, "tableforge_limits_reached_total", &[&format!("limit=\"{limit}\"")]);
    client.join("a");
    client.expect_refused(json!({"type": "join_room", "roomId": "b"}), "too_many_rooms");
    assert_eq!((limit("ws_max_connections"), limit("max_rooms_per_connection")), (1.0, 1.0));
    assert_eq!((limit("message_rate"), limit("join_rate")), (0.0, 0.0));
    // More than it may send in a minute.
    client.send_at_once(&vec![json!({"type": "ping"}); 100]);
    eventually("the rate is exceeded", || (limit("message_rate") > 0.0).then_some(()));
    let responses = "tableforge_http_responses_total";
    assert_eq!(sum(server.port, responses, &["status=\"503\""]), 1.0);
    assert_eq!(http::get(server.port, "/nothing").status, 404);
    assert_eq!(sum(server.port, responses, &["status=\"404\""]), 1.0);
}

#[test]
fn each_message_is_in_the_histograms_of_latency_and_fan_out() {
    let server = Server::with_shards(1);
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(&server)).collect();
    clients.iter_mut().for_each(|client| drop(client.join("r")));
    let flushed = "tableforge_websocket_receive_to_flush_seconds_count";
    let before = sum(server.port, flushed, &[]);
    let started = Instant::now();
    for number in 0..20 {
        clients[0].say("r", number);
        clients[1].expect_said("r", number);
        clients[2].expect_said("r", number);
    }
    eventually("twenty messages more are counted", || {
        (sum(server.port, flushed, &[]) == before + 20.0).then_some(())
    });
    let spent = sum(server.port, "tableforge_websocket_receive_to_flush_seconds_sum", &[]);
    assert!(spent > 0.0 && spent < started.elapsed().as_secs_f64() + 5.0, "{spent} s");
    let receivers = "tableforge_websocket_fan_out_receivers";
    assert_eq!(sum(server.port, &format!("{receivers}_bucket"), &["le=\"2\""]), 20.0);
    assert_eq!(sum(server.port, &format!("{receivers}_bucket"), &["le=\"1\""]), 0.0);
    assert_eq!(sum(server.port, &format!("{receivers}_sum"), &[]), 40.0);
    let (flushes, bytes) = (
        sum(server.port, "tableforge_websocket_flush_bytes_count", &[]),
        sum(server.port, "tableforge_websocket_flush_bytes_sum", &[]),
    );
    assert!(flushes >= 20.0 && bytes > 20.0 * 2.0 * 100.0, "{flushes} flushes of {bytes} bytes");
}

#[test]
fn the_way_between_instances_is_measured() {
    let redis = RedisServer::start();
    let settings = [("HISTORY_ROOMS", "kept-*")];
    let servers = ["a", "b"].map(|id| Server::in_cluster(&redis, id, &settings));
    let (mut one, mut two) = (Client::connect(&servers[0]), Client::connect(&servers[1]));
    for room in ["r", "kept-r"] {
        one.join(room);
        two.join(room);
        for number in 0..5 {
            let data = json!(number);
            one.request(json!({"type": "room_message", "roomId": room, "data": data}));
            two.expect_said(room, data);
        }
    }
    let [a, b] = [servers[0].port, servers[1].port];
    let arrived = sum(b, "tableforge_redis_delivery_seconds_count", &[]);
    assert!(arrived >= 10.0, "each came by itself: {arrived}");
    // One machine has one clock.
    assert_eq!(sum(b, "tableforge_redis_clock_skewed_total", &[]), 0.0);
    assert_eq!(sum(a, "tableforge_redis_batch_messages_sum", &[]), 5.0);
    assert_eq!(sum(a, "tableforge_redis_store_messages_sum", &[]), 5.0);
    assert!(sum(a, "tableforge_redis_batch_bytes_sum", &[]) > 5.0 * 100.0);
    eventually("Redis has answered heartbeats", || {
        (sum(a, "tableforge_redis_reply_seconds_count", &[]) >= 2.0).then_some(())
    });
}

#[test]
fn recoveries_are_counted_by_outcome() {
    let server = Server::start(&[("HISTORY_ROOMS", "*")]);
    let mut client = Client::connect(&server);
    let joined = client.join("r");
    let since = json!({"epoch": joined["epoch"], "offset": 0});
    client.join_with(json!({"type": "join_room", "roomId": "r", "since": since}));
    let since = json!({"epoch": "0000000000000001", "offset": 0});
    client.join_with(json!({"type": "join_room", "roomId": "r", "since": since}));
    let outcome =
        |name: &str| sum(server.port, "tableforge_recoveries_total", &[&format!("outcome=\"{name}\"")]);
    assert_eq!((outcome("recovered"), outcome("epoch")), (1.0, 1.0));
}

#[test]
fn shards_and_the_process_say_how_they_are() {
    let server = Server::with_shards(4);
    for shard in 0..4 {
        let label = format!("shard=\"{shard}\"");
        assert!(sum(server.port, "tableforge_shard_last_turn_age_seconds", &[&label]) < 30.0);
        let busy = sum(server.port, "tableforge_shard_busy_seconds_total", &[&label]);
        assert!(busy < 60.0, "{busy}");
    }
    let port = server.port;
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later");
    let started = sum(port, "process_start_time_seconds", &[]);
    assert!((unix.as_secs_f64() - 600.0..=unix.as_secs_f64()).contains(&started), "{started}");
    assert!(sum(port, "process_cpu_seconds_total", &[]) > 0.0);
    assert!(sum(port, "process_resident_memory_bytes", &[]) > 1e6);
    eventually("open descriptors are known", || (sum(port, "process_open_fds", &[]) > 4.0).then_some(()));
    assert!(sum(port, "process_max_fds", &[]) >= sum(port, "process_open_fds", &[]));
    assert_eq!(sum(port, "tableforge_build_info", &["version=\"", "commit=\""]), 1.0);
}

#[test]
fn stats_name_the_rooms_with_the_most_traffic() {
    let admin = crate::harness::free_port().to_string();
    let plain = Server::start(&[]);
    let separate = Server::start(&[("ADMIN_PORT", &admin)]);
    for server in [&plain, &separate] {
        let (mut one, mut two) = (Client::connect(server), Client::connect(server));
        one.join("quiet");
        for room in ["busy", "busier"] {
            one.join(room);
            two.join(room);
        }
        let port = if std::ptr::eq(server, &separate) { admin.parse().expect("a port") } else { server.port };
        eventually("the rooms are listed by traffic", || {
            for number in 0..6 {
                one.say("busier", number);
                if number % 3 == 0 {
                    one.say("busy", number);
                }
            }
            two.drain();
            let stats = http::get(port, "/stats").body;
            let stats: serde_json::Value = serde_json::from_str(&stats).expect("JSON");
            let rooms = stats["topRooms"].as_array().expect("a list");
            let names: Vec<_> = rooms.iter().filter_map(|room| room["roomId"].as_str()).collect();
            let first = rooms.first()?;
            assert!(first["deliveriesPerSecond"].as_f64().is_some_and(|rate| rate > 0.0), "{stats}");
            (names == ["busier", "busy"] && first["connections"] == 2).then_some(())
        });
    }
    let open = separate.get_json("/stats");
    assert!(open.get("topRooms").is_none(), "with ADMIN_PORT names of rooms are shown there alone: {open}");
}

#[test]
fn nothing_that_a_client_makes_up_becomes_a_label() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server);
    client.join("made-up-room");
    let mut raw = RawSocket::upgraded(&server);
    // 4999 and a reason.
    raw.send_frame(0x88, b"\x13\x87made-up-reason");
    let closes = "tableforge_websocket_closes_total";
    await_sum(&server, closes, &["by=\"client\"", "code=\"other\""], 1.0);
    let text = http::get(server.port, "/metrics").body;
    assert!(!text.contains("made-up") && !text.contains("4999"), "{text}");
}
