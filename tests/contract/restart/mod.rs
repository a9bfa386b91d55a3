//! A rolling restart of a whole cluster under load: nothing is lost, and clients come back one by one.

mod crowd;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use checker::record::{Final, Record, Room};
use checker::{CURRENT_WITHIN_MS, Checker};
use serde_json::Value;

use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::{DEADLINE, free_port, http, token};
use crowd::{Crowd, message_of, position_of};

const CLIENTS: u32 = 300;

/// An instance on a port of its own, which it has again after a restart.
fn start(redis: &RedisServer, id: &str, port: u16) -> Server {
    let settings = [
        ("INACTIVE_THRESHOLD", "5000"),
        ("SHARDS", "2"),
        ("HISTORY_ROOMS", "*"),
        ("HISTORY_PAGE", "10000"),
        ("DRAIN_TIMEOUT", "8000"),
        ("API_KEY", "key"),
        token::REQUIRED[0],
        token::REQUIRED[1],
    ];
    Server::in_cluster_on(port, redis, id, &settings)
}

/// The whole history of a room.
fn history(port: u16, room: Room) -> Final {
    let request = format!(
        "GET /api/v1/rooms/r{}/history?limit=10000 HTTP/1.1\r\nHost: x\r\nX-API-Key: key\r\n\r\n",
        room.0
    );
    let answer = http::exchange(port, request.as_bytes()).expect("an answer");
    let page: Value = serde_json::from_str(&answer.body).expect("JSON");
    let messages = page["messages"].as_array().unwrap_or_else(|| panic!("a list: {page}")).iter();
    let messages =
        messages.map(|one| (one["offset"].as_u64().expect("an offset"), message_of(one))).collect();
    Final { room, position: position_of(&page).expect("a position"), messages }
}

/// How many clients came in each second.
fn by_second(returns: &mut [Duration]) -> Vec<usize> {
    returns.sort_unstable();
    let (first, last) = (returns[0], returns[returns.len() - 1]);
    let mut seconds = vec![0; (last - first).as_secs() as usize + 1];
    returns.iter().for_each(|at| seconds[(*at - first).as_secs() as usize] += 1);
    seconds
}

#[test]
fn a_rolling_restart_loses_nothing_and_clients_come_back_one_by_one() {
    let redis = RedisServer::start();
    let ports = [free_port(), free_port(), free_port()];
    let mut servers: Vec<_> =
        ["a", "b", "c"].iter().zip(ports).map(|(id, port)| start(&redis, id, port)).collect();
    let mut crowd = Crowd::new(ports, CLIENTS);
    while !crowd.is_settled() {
        crowd.turn();
        assert!(crowd.now_ms() < DEADLINE.as_millis() as u64, "all clients are in their rooms");
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let restarts = scope.spawn(|| {
            for (server, (id, port)) in servers.iter_mut().zip(["a", "b", "c"].iter().zip(ports)) {
                server.terminate();
                *server = start(&redis, id, port);
            }
            over.store(true, SeqCst);
        });
        while !over.load(SeqCst) && !restarts.is_finished() {
            crowd.turn();
            std::thread::sleep(Duration::from_millis(2));
        }
        restarts.join().expect("every instance drains and comes back");
    });
    crowd.speaks = false;
    let until = crowd.now_ms() + DEADLINE.as_millis() as u64;
    while !crowd.is_settled() {
        crowd.turn();
        assert!(crowd.now_ms() < until, "all clients are back and have their acks");
    }
    let finals: Vec<_> = crowd.rooms().map(|room| history(ports[0], room)).collect();
    while !crowd.is_current(|room| finals[room.0 as usize].position) && crowd.now_ms() < until {
        crowd.turn();
    }
    let messages: usize = finals.iter().map(|last| last.messages.len()).sum();
    let mut checker = Checker::new();
    let mut last_sent = 0;
    for (at_ms, record) in crowd.records.drain(..) {
        if matches!(record, Record::Sent { .. }) {
            last_sent = at_ms;
        }
        checker.record(at_ms, record);
    }
    // Everyone was waited for, so nothing has to be waited for any more.
    let violations = checker.finish(last_sent.max(crowd.now_ms()) + CURRENT_WITHIN_MS + 1, &finals);
    assert_eq!(violations, []);
    assert_eq!(crowd.unrecovered, 0, "everyone was given what it had missed");
    assert!(messages > 1000, "{messages} messages are a load");
    assert!(crowd.returns.len() >= CLIENTS as usize, "everyone came back, those who met two restarts twice");
    let seconds = by_second(&mut crowd.returns);
    let busiest = seconds.iter().max().expect("at least one second");
    assert!(
        busiest * seconds.len() <= 2 * crowd.returns.len(),
        "the busiest second has over twice the average: {seconds:?}"
    );
}
