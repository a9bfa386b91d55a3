//! Very many at once: a cluster's clients dropped together, a room of thousands, shards that flood each other.
//!
//! A test binary of its own, because it needs most of the descriptors that a process may have; one test at a time.

#[path = "../contract/harness/mod.rs"]
#[macro_use]
#[allow(dead_code, unused_macros, reason = "the harness has more than these tests need")]
mod harness;

#[path = "../hostile/arena.rs"]
#[allow(dead_code, reason = "the arena has more than these tests need")]
mod arena;

#[path = "../hostile/pair.rs"]
mod pair;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::arena::{Arena, allow_descriptors, connect};
use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::raw::{FIN, RawSocket, TEXT, UPGRADE, frame};
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;

/// Milliseconds in which no test looks at each of its clients: they need not answer pings.
const PATIENT: &str = "600000";

/// Held by the test that runs.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A masked text frame.
fn text(message: &Value) -> Vec<u8> {
    frame(FIN | TEXT, message.to_string().as_bytes())
}

/// Calls of `command` that Redis has carried out.
fn calls(redis: &RedisServer, command: &str) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// Has `count` clients upgrade and join their rooms, all at once; those that get 503 come again after a second.
#[track_caller]
fn all_come_in(port: u16, count: usize, join: impl Fn(usize) -> Value) -> Vec<(usize, RawSocket, Value)> {
    let (mut inside, mut outside) = (Vec::new(), (0..count).collect::<Vec<_>>());
    for round in 0.. {
        assert!(round < 60, "{} are still outside", outside.len());
        let mut sockets: Vec<_> = outside
            .drain(..)
            .map(|number| {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server accepts");
                // One that is refused at once may be closed already.
                let _ = stream.write_all(&[UPGRADE.as_bytes(), &text(&join(number))].concat());
                (number, RawSocket::over(stream))
            })
            .collect();
        for (number, mut socket) in sockets.drain(..) {
            // What the refused one had sent may have its connection reset before the answer is read.
            match socket.try_response().map(|response| response.status) {
                Some(101) => {
                    let joined = socket.expect("room_joined");
                    inside.push((number, socket, joined));
                }
                Some(503) | None => outside.push(number),
                Some(other) => panic!("status {other}"),
            }
        }
        if outside.is_empty() {
            break;
        }
        thread::sleep(Duration::from_secs(1));
    }
    inside
}

#[test]
fn ten_thousand_dropped_at_once_are_all_back_and_have_missed_nothing() {
    const CLIENTS: usize = 10_000;
    const ROOMS: usize = 20;
    let _alone = alone();
    allow_descriptors(CLIENTS as u64 + 200);
    let redis = RedisServer::start();
    let settings =
        [("HISTORY_ROOMS", "h*"), ("ACCEPT_RATE", "3000"), ("SHARDS", "2"), ("PING_INTERVAL", PATIENT)];
    let server = Server::in_cluster(&redis, "a", &settings);
    let pair = [Client::connect(&server), Client::connect(&server)];
    let mut arena = Arena::around(server, pair);
    let mut speaker = Client::connect(&arena.server);
    let epochs: Vec<_> = (0..ROOMS).map(|room| speaker.join(&format!("h{room}"))["epoch"].clone()).collect();
    let room = |number: usize| format!("h{}", number % ROOMS);
    let crowd =
        all_come_in(arena.port(), CLIENTS, |number| json!({"type": "join_room", "roomId": room(number)}));
    arena.assert_healthy("a crowd");
    for (_, socket, _) in crowd {
        socket.shutdown();
    }
    for room in 0..ROOMS {
        for number in 0..5 {
            let message = json!({"type": "room_message", "roomId": format!("h{room}"), "data": number});
            assert_eq!(speaker.request(message)["type"], "message_ack");
        }
    }
    eventually("all that were dropped have gone", || {
        (arena.server.metric("tableforge_websocket_connections_total") == Some(3.0)).then_some(())
    });
    // Nobody is left in the rooms: what was said there is in Redis alone.
    (0..ROOMS).for_each(|room| speaker.leave(&format!("h{room}")));
    let before = calls(&redis, "xrevrange");
    let crowd = all_come_in(arena.port(), CLIENTS, |number| {
        let since = json!({"epoch": epochs[number % ROOMS], "offset": 0});
        json!({"type": "join_room", "roomId": room(number), "since": since})
    });
    for (_, _, joined) in &crowd {
        let offsets: Vec<_> = joined["messages"]
            .as_array()
            .unwrap_or_else(|| panic!("recovered: {joined}"))
            .iter()
            .map(|message| message["offset"].as_u64())
            .collect();
        assert_eq!(offsets, (1..=5).map(Some).collect::<Vec<_>>(), "{joined}");
    }
    let reads = calls(&redis, "xrevrange") - before;
    // Refused as too many at once; each came again after that.
    arena.note_unseen_ends(503, 20 * CLIENTS as u64);
    assert!(reads <= 2 * ROOMS as u64, "{reads} reads of {ROOMS} rooms for {CLIENTS} clients");
    arena.assert_healthy("a crowd that came back");
    drop((crowd, speaker));
    arena.assert_restored();
}

#[test]
fn a_room_of_eighteen_thousand_works() {
    const MEMBERS: usize = 18_000;
    let _alone = alone();
    allow_descriptors(MEMBERS as u64 + 200);
    let mut arena = Arena::start(&[("SHARDS", "2"), ("PING_INTERVAL", PATIENT)]);
    let crowd = all_come_in(arena.port(), MEMBERS, |_| json!({"type": "join_room", "roomId": "huge"}));
    let mut speaker = Client::connect(&arena.server);
    let joined = speaker.join_with(json!({"type": "join_room", "roomId": "huge", "members": true}));
    assert_eq!(joined["memberCount"], MEMBERS + 1);
    assert_eq!(joined["members"].as_array().map(Vec::len), Some(MEMBERS + 1));
    arena.assert_healthy("a huge room");
    speaker.say("huge", "to all");
    for (_, mut socket, _) in crowd {
        assert_eq!(socket.expect("room_message")["data"], "to all");
    }
    arena.assert_healthy("a message to a huge room");
    eventually("the room is empty again", || {
        let members = speaker.request(json!({"type": "room_members", "roomId": "huge"}));
        (members["memberCount"] == 1).then_some(())
    });
    drop(speaker);
    arena.assert_restored();
}

/// A connection in the room, and a second handle on it.
fn member_of(port: u16, room: &str) -> (RawSocket, TcpStream) {
    let (mut socket, stream) = connect(port);
    crate::arena::upgrade(&mut socket);
    socket.send(&text(&json!({"type": "join_room", "roomId": room})));
    socket.expect("room_joined");
    (socket, stream)
}

#[test]
fn shards_that_flood_each_other_do_not_wait_for_each_other() {
    let _alone = alone();
    // Nobody is closed for what waits: what is too much is dropped between the shards, and told.
    let settings =
        [("SHARDS", "4"), ("OUTBOX_BYTES", "268435456"), ("OUTBOX_AGE", PATIENT), ("PING_INTERVAL", PATIENT)];
    let mut arena = Arena::start(&settings);
    const MEMBERS: usize = 24;
    const MESSAGES: usize = 4_000;
    let mut members: Vec<_> = (0..MEMBERS).map(|_| member_of(arena.port(), "flood")).collect();
    let message = text(&json!({"type": "room_message", "roomId": "flood", "data": "x".repeat(50)}));
    let burst = message.repeat(100);
    // What a shard refuses because it has fallen behind is delivered to nobody.
    let refused = AtomicUsize::new(0);
    let heard: Vec<(usize, bool)> = thread::scope(|scope| {
        let writers: Vec<_> = members
            .iter()
            .map(|(_, stream)| {
                let (mut stream, burst) = (stream.try_clone().expect("a descriptor is free"), &burst);
                scope.spawn(move || {
                    (0..MESSAGES / 100).for_each(|_| stream.write_all(burst).expect("the server reads"));
                    stream.write_all(&text(&json!({"type": "ping"}))).expect("the server reads");
                })
            })
            .collect();
        let readers: Vec<_> = members
            .iter_mut()
            .map(|(socket, stream)| {
                let refused = &refused;
                scope.spawn(move || {
                    let (mut messages, mut own, mut resync, mut own_done) = (0, 0, false, false);
                    let expected = (MEMBERS - 1) * MESSAGES;
                    while !own_done || (messages + refused.load(SeqCst) - own < expected && !resync) {
                        let event = socket.event();
                        match event["type"].as_str() {
                            Some("room_message") => messages += 1,
                            Some("room_resync") => resync = true,
                            Some("pong") => {
                                // Something comes for as long as others have not heard all their refusals.
                                own_done = true;
                                stream.write_all(&text(&json!({"type": "ping"}))).expect("the server reads");
                            }
                            Some("error") => {
                                assert_eq!(event["code"], "unavailable", "{event}");
                                own += 1;
                                refused.fetch_add(1, SeqCst);
                            }
                            _ => {}
                        }
                    }
                    (messages, resync)
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().expect("the flood is taken"));
        arena.assert_healthy("a flood across all shards");
        readers.into_iter().map(|reader| reader.join().expect("all is heard or told")).collect()
    });
    let dropped = arena.server.metric("tableforge_mesh_dropped_total").expect("a counter");
    let told = heard.iter().any(|(_, resync)| *resync);
    assert_eq!(told, dropped > 0.0, "{dropped} frames were dropped, {heard:?}");
    for (socket, stream) in members {
        let _ = stream.shutdown(Shutdown::Both);
        drop(socket);
    }
    arena.assert_restored();
}
