//! The limit of a user's connections holds over all instances.

use std::thread;

use serde_json::json;

use super::pair;
use crate::harness::eventually;
use crate::harness::raw::{CLOSE, FIN, RawSocket, TEXT, UPGRADE};
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::token::{self, SECRET};

/// Settings of instances where each user may have `most` connections.
fn limit(most: &str) -> [(&'static str, &str); 4] {
    [("JWT_SECRET", SECRET), ("MAX_CONNECTIONS_PER_USER", most), ("SHARDS", "2"), ("PING_INTERVAL", "600000")]
}

/// Connects as `user`: the connection, or nothing if it is closed with 4504 before anything is said.
#[track_caller]
pub fn admitted(server: &Server, user: &str) -> Option<RawSocket> {
    let mut socket = RawSocket::connect(server.port);
    socket.send(UPGRADE.replace("/ws", &format!("/ws?token={}", token::of(user))).as_bytes());
    assert_eq!(socket.response().status, 101);
    let frame = socket.frame().expect("a first frame");
    if frame.first == FIN | TEXT {
        return Some(socket);
    }
    assert_eq!((frame.first, frame.payload.first_chunk()), (FIN | CLOSE, Some(&4504_u16.to_be_bytes())));
    None
}

fn admits(server: &Server, user: &str) -> bool {
    admitted(server, user).is_some()
}

#[test]
fn a_race_on_two_instances_admits_exactly_as_many_as_may_be() {
    let redis = RedisServer::start();
    let servers = pair(&redis, &limit("5"));
    for round in 0..10 {
        let user = format!("user-{round}");
        let mut open: Vec<_> = thread::scope(|scope| {
            let rivals: Vec<_> = (0..16)
                .map(|number| {
                    let (server, user) = (&servers[number % 2], &user);
                    scope.spawn(move || admitted(server, user))
                })
                .collect();
            rivals.into_iter().filter_map(|rival| rival.join().expect("it is answered")).collect()
        });
        assert_eq!(open.len(), 5, "of 16 at once");
        assert!(!admits(&servers[0], &user) && !admits(&servers[1], &user));
        drop(open.pop());
        let another =
            eventually("the place is free on the other instance", || admitted(&servers[round % 2], &user));
        assert!(!admits(&servers[0], &user) && !admits(&servers[1], &user));
        drop((open, another));
    }
    eventually("nobody is counted any more", || {
        ["a", "b"]
            .iter()
            .all(|id| redis.command::<i64>(&["HLEN", &format!("tableforge:sessions:{id}")]) == 0)
            .then_some(())
    });
}

#[test]
fn connections_of_a_killed_instance_do_not_count() {
    let redis = RedisServer::start();
    let slow_to_forget = [("HEARTBEAT_INTERVAL", "200"), ("INACTIVE_THRESHOLD", "600000")];
    let [mut a, b] = pair(&redis, &[&limit("2")[..], &slow_to_forget].concat());
    // Whoever else listens to everything does not make it live.
    let _foreign = redis.eavesdrop("tableforge:*", "tableforge:instances");
    let of_a = [admitted(&a, "ann"), admitted(&a, "ann")];
    assert!(of_a.iter().all(Option::is_some) && !admits(&b, "ann"));
    a.process.kill();
    let first = eventually("the places are free", || admitted(&b, "ann"));
    // The same name again, before anyone has noticed the death.
    let a = Server::in_cluster(&redis, "a", &[&limit("2")[..], &slow_to_forget].concat());
    let second = admitted(&a, "ann").expect("the old process's connections are forgotten");
    assert!(!admits(&a, "ann") && !admits(&b, "ann"));
    drop((first, second));
}

#[test]
fn without_redis_each_instance_counts_its_own_and_later_all_together_again() {
    let mut redis = RedisServer::start();
    let [a, b] = pair(&redis, &limit("2"));
    let mut open = vec![admitted(&a, "ann").expect("the first"), admitted(&b, "ann").expect("the second")];
    assert!(!admits(&a, "ann") && !admits(&b, "ann"));
    redis.kill();
    for server in [&a, &b] {
        eventually("it is on its own", || (server.get_json("/health")["status"] == "degraded").then_some(()));
        open.push(admitted(server, "ann").expect("this instance has but one"));
        assert!(!admits(server, "ann"));
    }
    redis.restart();
    for server in [&a, &b] {
        eventually("it is back", || (server.get_json("/health")["status"] == "healthy").then_some(()));
    }
    assert!(!admits(&a, "ann") && !admits(&b, "ann"), "there are four");
    open.truncate(2);
    // One of each instance is left, in whichever order they were noticed.
    open.iter_mut().for_each(|socket| socket.send_text(r#"{"type":"ping"}"#));
    open.iter_mut().for_each(|socket| drop(socket.expect("pong")));
    assert!(!admits(&a, "ann") && !admits(&b, "ann"), "there are two");
    open.pop();
    open.push(eventually("there is one", || admitted(&a, "ann")));
    assert!(!admits(&a, "ann") && !admits(&b, "ann"));

    let _: () = redis.command(&["FLUSHALL"]);
    eventually("the count is back", || (!admits(&a, "ann") && !admits(&b, "ann")).then_some(()));
    redis.command::<()>(&["SCRIPT", "FLUSH"]);
    assert!(!admits(&a, "ann") && !admits(&b, "ann"));
}

/// Connects as a guest, and then authenticates as `user`: the connection, or nothing if it is closed with 4504.
#[track_caller]
fn admitted_late(server: &Server, user: &str) -> Option<RawSocket> {
    let mut socket = RawSocket::upgraded(server);
    socket.send_text(&json!({"type": "authenticate", "token": token::of(user)}).to_string());
    let frame = socket.frame().expect("an answer");
    if frame.first == FIN | TEXT {
        return Some(socket);
    }
    assert_eq!((frame.first, frame.payload.first_chunk()), (FIN | CLOSE, Some(&4504_u16.to_be_bytes())));
    None
}

#[test]
fn who_authenticates_late_counts_and_guests_do_not() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &limit("1"));
    let guests: Vec<_> = (0..5).map(|_| RawSocket::upgraded(&a)).collect();
    let first = admitted(&a, "ann").expect("the first");
    assert!(admitted_late(&b, "ann").is_none() && admitted_late(&a, "ann").is_none());
    drop(first);
    let late = eventually("the place is free", || admitted_late(&b, "ann"));
    assert!(!admits(&a, "ann"));
    drop((guests, late));
}
