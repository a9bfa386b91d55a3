//! A slow reader, a flood and a huge room: whoever causes it is bounded, the others go on.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::raw::RawSocket;
use crate::harness::server::Server;

/// A connection whose kernel takes in as little as possible while nobody reads.
fn small_stream(port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor is free");
    socket.set_recv_buffer_size(4096).expect("the option exists");
    let address: std::net::SocketAddr = ([127, 0, 0, 1], port).into();
    socket.connect(&address.into()).expect("the server takes connections");
    socket.into()
}

/// Two clients in a room of their own that pass a ball to and fro while `others_act` runs, and a
/// hundred times at least.
#[track_caller]
fn while_a_healthy_pair_plays(server: &Server, others_act: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let (mut left, mut right) = (Client::connect(server), Client::connect(server));
    left.join("healthy");
    right.join("healthy");
    thread::scope(|scope| {
        let pair = scope.spawn(|| {
            let mut rounds = 0;
            while rounds < 100 || !over.load(Relaxed) {
                left.say("healthy", rounds);
                right.expect_said("healthy", rounds);
                right.say("healthy", rounds);
                left.expect_said("healthy", rounds);
                rounds += 1;
            }
        });
        let finished = Finished(&over);
        others_act();
        drop(finished);
        pair.join().expect("the healthy pair goes on");
    });
}

/// Ends the pair's play also when the others' part fails.
struct Finished<'a>(&'a AtomicBool);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[track_caller]
fn floods_a_reader_that_stopped(shards: usize, more: &[(&str, &str)]) {
    let shards = shards.to_string();
    let server = Server::start(&[&[("SHARDS", shards.as_str())], more].concat());
    let mut sender = Client::connect(&server);
    sender.join("r");
    let mut slow = Client::over(small_stream(server.port), "/ws", &[]).expect("the server upgrades");
    slow.join("r");
    let socket_id = slow.socket_id.clone();
    let mut slow = RawSocket::over(slow.into_stream());
    while_a_healthy_pair_plays(&server, || {
        let payload = "x".repeat(32_000);
        // 96 MB: more than any kernel keeps for one connection.
        let closed = (0..3_000).any(|_| {
            sender.say("r", payload.as_str());
            sender.has_received("user_left_room")
        });
        // The last of it may still be under way; without a decision at the bound nothing would come.
        let left = sender.expect("user_left_room");
        assert_eq!(left["socketId"], *socket_id, "closed during the flood: {closed}");
    });
    assert_eq!(slow.expect_close(), 4003);
}

#[test]
fn a_reader_that_stops_is_closed_with_4003_when_too_many_bytes_wait() {
    floods_a_reader_that_stopped(1, &[("OUTBOX_BYTES", "262144"), ("OUTBOX_AGE", "600000")]);
}

#[test]
fn a_reader_that_stops_is_closed_with_4003_on_several_shards_too() {
    floods_a_reader_that_stopped(4, &[("OUTBOX_BYTES", "262144"), ("OUTBOX_AGE", "600000")]);
}

#[test]
fn a_reader_that_stops_is_closed_with_4003_when_bytes_wait_too_long() {
    floods_a_reader_that_stopped(1, &[("OUTBOX_BYTES", "1000000000"), ("OUTBOX_AGE", "500")]);
}

#[test]
fn a_flood_of_messages_does_not_stop_others() {
    let server = Server::with_shards(4);
    let mut senders: Vec<_> = (0..4).map(|_| Client::connect(&server)).collect();
    senders.iter_mut().for_each(|sender| drop(sender.join("flooded")));
    let mut listener = Client::connect(&server);
    listener.join("flooded");
    while_a_healthy_pair_plays(&server, || {
        thread::scope(|scope| {
            for sender in &mut senders {
                scope.spawn(|| {
                    for number in 0..2_000 {
                        sender.say("flooded", number);
                        sender.has_received("room_message");
                    }
                });
            }
            for _ in 0..8_000 {
                listener.expect("room_message");
            }
        });
    });
}

#[test]
fn a_flood_without_a_reader_is_bounded_and_does_not_stop_others() {
    let server = Server::start(&[("OUTBOX_BYTES", "262144")]);
    while_a_healthy_pair_plays(&server, || {
        let mut flood = RawSocket::over(small_stream(server.port));
        flood.send(crate::harness::raw::UPGRADE.as_bytes());
        assert_eq!(flood.response().status, 101);
        let ping = crate::harness::raw::frame(0x81, br#"{"type":"ping"}"#).repeat(1_000);
        // The server must stop taking more from a peer that takes no answers, or close it.
        assert!(flood.is_cut_off_sending(&ping), "requests are answered to nobody without end");
        let used = server.get_json("/stats")["memory"]["used"].as_u64().expect("bytes");
        assert!(used < 300_000_000, "{used} bytes for one flood");
    });
}

#[test]
fn who_sends_more_than_an_overloaded_shard_can_read_is_closed_with_4005() {
    // So large that nobody is taken for a slow reader.
    let outbox = [("SHARDS", "1"), ("OUTBOX_BYTES", "67108864"), ("OUTBOX_AGE", "600000")];
    let server = Server::start(&outbox);
    let message = br#"{"type":"room_message","roomId":"r","data":1}"#;
    let messages = crate::harness::raw::frame(0x81, message).repeat(1_000);
    // Whoever is not closed by then waits for it in vain.
    let until = Instant::now() + Duration::from_secs(60);
    thread::scope(|scope| {
        for _ in 0..8 {
            let stream =
                TcpStream::connect(("127.0.0.1", server.port)).expect("the server takes connections");
            let mut sending = stream.try_clone().expect("a descriptor is free");
            let mut flood = RawSocket::over(stream);
            flood.send(crate::harness::raw::UPGRADE.as_bytes());
            assert_eq!(flood.response().status, 101);
            let messages = &messages;
            scope.spawn(move || while Instant::now() < until && sending.write_all(messages).is_ok() {});
            scope.spawn(move || {
                assert_eq!(flood.expect_close(), 4005);
                flood.shutdown();
            });
        }
    });
    assert_eq!(server.metric("tableforge_websocket_unread_closes_total"), Some(8.0));
    while_a_healthy_pair_plays(&server, || ());
}

#[test]
fn a_huge_room_does_not_stop_others() {
    const MEMBERS: usize = 300;
    const MESSAGES: usize = 100;
    let server = Server::with_shards(4);
    let mut crowd: Vec<_> = (0..MEMBERS).map(|_| Client::connect(&server)).collect();
    crowd.iter_mut().for_each(|client| drop(client.join("huge")));
    while_a_healthy_pair_plays(&server, || {
        for number in 0..MESSAGES {
            crowd[number % MEMBERS].say("huge", number);
        }
        for (own, member) in crowd.iter_mut().enumerate() {
            let expected = if own < MESSAGES { MESSAGES - 1 } else { MESSAGES };
            for _ in 0..expected {
                member.expect("room_message");
            }
        }
    });
}

#[test]
fn idle_connections_come_and_go_without_a_trace() {
    let server = Server::with_shards(4);
    for _ in 0..5 {
        let mut crowd: Vec<_> = (0..100).map(|_| Client::connect(&server)).collect();
        for (number, client) in crowd.iter_mut().enumerate() {
            client.ask(json!({"type": "join_room", "roomId": format!("r{}", number % 7)}));
        }
        crowd.into_iter().for_each(Client::vanish);
    }
    eventually("everything is gone", || {
        let stats = server.get_json("/stats");
        (stats["connections"] == 0 && stats["rooms"] == 0).then_some(())
    });
}
