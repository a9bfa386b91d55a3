//! An instance of a cluster goes away: its clients are spread over time, and new ones are told to look elsewhere.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::http;
use crate::harness::raw::{RawSocket, UPGRADE};
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;

fn pair(redis: &RedisServer, settings: &[(&str, &str)]) -> [Server; 2] {
    let pair = ["a", "b"].map(|id| Server::in_cluster(redis, id, settings));
    for server in &pair {
        eventually("they know each other", || {
            (server.get_json("/stats")["totalInstances"] == 2).then_some(())
        });
    }
    pair
}

/// Clients, each with the delay that it was told once the server drains.
fn delays_of(clients: &mut [Client]) -> Vec<u64> {
    clients
        .iter_mut()
        .map(|client| client.expect("server_draining")["reconnectAfterMs"].as_u64().expect("a delay in ms"))
        .collect()
}

#[test]
fn each_client_has_a_time_of_its_own_and_is_closed_then() {
    const CLIENTS: usize = 20;
    let redis = RedisServer::start();
    let [mut a, _b] = pair(&redis, &[("SHARDS", "2")]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(&a)).collect();
    clients.iter_mut().for_each(|client| drop(client.join("r")));
    a.process.signal(Signal::TERM);
    let mut delays = delays_of(&mut clients);
    let mut order: Vec<_> = (0..CLIENTS).collect();
    order.sort_by_key(|place| delays[*place]);
    // Whoever still has time goes on as before.
    let last = order[CLIENTS - 1];
    assert_eq!(clients[last].request(json!({"type": "ping"}))["type"], "pong");
    for place in order {
        assert_eq!(clients[place].expect_close(), 1012);
    }
    delays.sort_unstable();
    let (first, last) = (delays[0], delays[CLIENTS - 1]);
    assert!((2_000..=8_000).contains(&last), "over some seconds: {delays:?}");
    let widest = delays.windows(2).map(|pair| pair[1] - pair[0]).max().expect("more than one");
    let even = last / CLIENTS as u64;
    // Each shard spreads its own clients, however many of them the kernel has given it.
    assert!(first <= 4 * even && widest <= 4 * even, "evenly: {delays:?}");
    assert!(a.process.wait().success());
}

#[test]
fn whoever_comes_meanwhile_is_sent_elsewhere_and_whoever_goes_may() {
    let redis = RedisServer::start();
    let [mut a, b] = pair(&redis, &[]);
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&a)).collect();
    a.process.signal(Signal::TERM);
    delays_of(&mut clients);
    let response = http::exchange(a.port, UPGRADE.as_bytes()).expect("an answer, not a reset");
    assert_eq!(response.status, 503, "{response:?}");
    assert!(
        response.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()),
        "{response:?}"
    );
    let ready = http::get(a.port, "/ready");
    assert!(ready.status == 503 && ready.body.contains("draining"), "{ready:?}");
    assert_eq!(ready.header("retry-after"), Some("1"), "{ready:?}");
    assert_eq!(http::get(a.port, "/health").status, 200, "it is not ill");
    let facts = b.metric("tableforge_instances");
    assert_eq!(facts, Some(2.0), "it is still there");
    // All go by themselves: nothing is left to wait for.
    clients.into_iter().for_each(|client| assert!(matches!(client.close(), 1000 | 1012)));
    assert!(a.process.wait().success());
    eventually("the other one is told", || (b.get_json("/stats")["totalInstances"] == 1).then_some(()));
}

#[test]
fn peers_that_never_answer_do_not_hold_up_the_end_in_a_cluster_either() {
    let redis = RedisServer::start();
    let [mut a, _b] = pair(&redis, &[("DRAIN_TIMEOUT", "2000")]);
    let _stuck: Vec<_> = (0..10).map(|_| RawSocket::upgraded(&a)).collect();
    redis.freeze();
    a.terminate();
    redis.resume();
}
