//! Spans over OTLP: what is followed, where it belongs, and that nobody waits for a collector.

use serde_json::{Value, json};

use super::collector::{Collector, attribute};
use super::sum;
use crate::harness::client::Client;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::{eventually, http};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Headers of a request that belongs to [`TRACE`].
fn traced() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

/// A span called `name` of an instance, with this value of an attribute.
#[track_caller]
fn expect(collector: &Collector, instance: &str, name: &str, key: &str, value: &str) -> Value {
    collector.expect(&format!("{name} on {instance} with {key} {value}"), |span| {
        span["instance"] == instance && span["name"] == name && attribute(span, key) == value
    })
}

#[test]
fn a_trace_goes_on_from_the_upgrade_to_the_delivery_on_another_instance() {
    let (redis, collector) = (RedisServer::start(), Collector::start());
    let endpoint = collector.endpoint();
    let settings = [("OTLP_ENDPOINT", &*endpoint), ("TRACE_SAMPLE", "0"), ("HISTORY_ROOMS", "kept-*")];
    let servers = ["a", "b"].map(|id| Server::in_cluster(&redis, id, &settings));
    let headers = [("traceparent", &*traced()), ("x-request-id", "from-the-proxy")];
    let mut one = Client::open(servers[0].port, "/ws", &headers).expect("the server upgrades");
    let mut two = Client::connect(&servers[1]);
    for room in ["r", "kept-r"] {
        one.join(room);
        two.join(room);
        one.say(room, "traced");
        two.expect_said(room, "traced");
        two.say(room, "not traced");
        one.expect_said(room, "not traced");
    }
    let upgrade = expect(&collector, "a", "upgrade", "url.path", "/ws");
    assert_eq!((&upgrade["traceId"], &upgrade["parentSpanId"]), (&json!(TRACE), &json!(CALLER)), "{upgrade}");
    assert_eq!(attribute(&upgrade, "http.response.status_code"), "101", "{upgrade}");
    assert_eq!(attribute(&upgrade, "tableforge.request_id"), "from-the-proxy");
    assert_eq!(attribute(&upgrade, "tableforge.connection"), one.socket_id.as_str());
    for room in ["r", "kept-r"] {
        let join = expect(&collector, "a", "join", "tableforge.room", room);
        let publish = expect(&collector, "a", "publish", "tableforge.room", room);
        let deliver = expect(&collector, "b", "deliver", "tableforge.room", room);
        for span in [&join, &publish, &deliver] {
            assert_eq!(span["traceId"], TRACE, "{span}");
            assert_eq!(attribute(span, "tableforge.request_id"), "from-the-proxy", "{span}");
            let time = |key: &str| span[key].as_str().expect("text").parse::<u64>().expect("a number");
            assert!(0 < time("startTimeUnixNano") && time("startTimeUnixNano") <= time("endTimeUnixNano"));
        }
        assert_eq!(deliver["parentSpanId"], publish["spanId"], "{deliver}");
        assert_eq!(publish["status"], Value::Null, "{publish}");
    }
    assert!(collector.all().iter().all(|span| span["traceId"] == TRACE), "nothing else is followed");
}

#[test]
fn a_call_of_the_api_is_followed_to_the_other_instance() {
    let (redis, collector) = (RedisServer::start(), Collector::start());
    let endpoint = collector.endpoint();
    let admin = crate::harness::free_port().to_string();
    let settings = [("OTLP_ENDPOINT", &*endpoint), ("TRACE_SAMPLE", "0"), ("API_KEY", "key")];
    let main = Server::in_cluster(&redis, "a", &settings);
    let apart = Server::in_cluster(&redis, "b", &[&settings[..], &[("ADMIN_PORT", &*admin)]].concat());
    let mut on_main = Client::connect(&main);
    let mut on_apart = Client::connect(&apart);
    on_main.join("r");
    on_apart.join("r");
    let publish = |port: u16, id: &str| {
        let (traceparent, body) = (traced(), json!({"data": id}).to_string());
        let request = format!(
            "POST /api/v1/rooms/r/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: key\r\n\
             traceparent: {traceparent}\r\nX-Request-Id: {id}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let response = http::exchange(port, request.as_bytes()).expect("an answer");
        assert_eq!((response.status, response.header("x-request-id")), (200, Some(id)), "{response:?}");
    };
    publish(main.port, "call-1");
    publish(admin.parse().expect("a port"), "call-2");
    for data in ["call-1", "call-2"] {
        on_main.expect_said("r", data);
        on_apart.expect_said("r", data);
    }
    for (id, from, to) in [("call-1", "a", "b"), ("call-2", "b", "a")] {
        let call = expect(&collector, from, "call", "tableforge.request_id", id);
        let publish = expect(&collector, from, "publish", "tableforge.request_id", id);
        let deliver = expect(&collector, to, "deliver", "tableforge.request_id", id);
        assert_eq!((&call["traceId"], &call["parentSpanId"]), (&json!(TRACE), &json!(CALLER)), "{call}");
        assert_eq!(attribute(&call, "http.response.status_code"), "200", "{call}");
        assert_eq!(publish["parentSpanId"], call["spanId"], "{publish}");
        assert_eq!(deliver["parentSpanId"], publish["spanId"], "{deliver}");
    }
}

#[test]
fn a_part_of_everything_is_sampled_without_a_parent() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let server = Server::start(&[("OTLP_ENDPOINT", &endpoint), ("TRACE_SAMPLE", "1")]);
    let mut client = Client::connect(&server);
    client.join("r");
    client.say("r", 1);
    for name in ["upgrade", "join", "publish"] {
        let span = collector.expect(name, |span| span["name"] == name);
        assert_eq!(span["parentSpanId"], Value::Null, "{span}");
    }
    let declined = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")];
    let mut declined = Client::open(server.port, "/ws", &declined).expect("the server upgrades");
    declined.join("r");
    declined.say("r", 2);
    client.expect_said("r", 2);
    Client::connect(&server).join("later");
    expect(
        &collector,
        server.get_json("/stats")["instanceId"].as_str().expect("a name"),
        "join",
        "tableforge.room",
        "later",
    );
    assert!(collector.all().iter().all(|span| span["traceId"] != TRACE), "whoever says no is not followed");
}

#[test]
fn nobody_waits_for_a_collector_that_is_not_there() {
    let endpoint = format!("http://127.0.0.1:{}", crate::harness::free_port());
    let mut server = Server::start(&[("OTLP_ENDPOINT", &endpoint), ("TRACE_SAMPLE", "1")]);
    let mut client = Client::connect(&server);
    client.join("r");
    for number in 0..100 {
        let reply = client.request(json!({"type": "room_message", "roomId": "r", "data": number}));
        assert_eq!(reply["type"], "message_ack", "{}", reply.text);
    }
    eventually("the spans are counted as dropped", || {
        let dropped = sum(server.port, "tableforge_trace_spans_dropped_total", &[]);
        (dropped >= 100.0 && sum(server.port, "tableforge_trace_export_failures_total", &[]) >= 1.0)
            .then_some(())
    });
    server.terminate();
    assert!(server.process.output().contains("OTLP_ENDPOINT does not take spans"), "it is in the log");
}
