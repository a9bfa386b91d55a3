//! Running out: descriptors, thousands of clients at once, the process's own end during a flood.

use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::json;

use crate::arena::{Arena, allow_descriptors, upgraded};
use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::raw::{CLOSE, FIN, RawSocket, TEXT, UPGRADE, frame};
use crate::harness::server::{Server, command};
use crate::harness::{eventually, free_port, http};

/// Milliseconds between two attempts to accept (`TICK_MS` of src/shard/sweep.rs).
const TICK_MS: u128 = 100;

/// A server that may have no more than `descriptors`.
#[track_caller]
fn with_descriptors(descriptors: usize) -> Server {
    let port = free_port();
    let plain = command("serve", port, &[]);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""));
    limited.arg(plain.get_program()).args(plain.get_args()).env_clear();
    limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let process = Process::start("tableforge", &mut limited);
    eventually("the server is ready", || {
        http::try_get(port, "/ready").filter(|response| response.status == 200)
    });
    Server { port, process }
}

#[test]
fn without_descriptors_accepting_pauses_and_goes_on_when_there_are_some() {
    let server = with_descriptors(40);
    let pair = [Client::connect(&server), Client::connect(&server)];
    let mut arena = Arena::around(server, pair);
    let since = Instant::now();
    // The kernel takes them all into the backlog.
    let waiting: Vec<_> = (0..100)
        .map(|_| TcpStream::connect(("127.0.0.1", arena.port())).expect("the backlog has room"))
        .collect();
    let said = |arena: &Arena| arena.server.process.output().contains("accepting pauses");
    eventually("the server says that it has no descriptors", || said(&arena).then_some(()));
    for _ in 0..200 {
        arena.assert_healthy("running out of descriptors");
    }
    // Those that were accepted may have been told that their time for a request is over.
    arena.note_unseen_ends(408, waiting.len() as u64);
    drop(waiting);
    Client::connect(&arena.server).join("r");
    // A loop without a pause would have failed thousands of times.
    let ticks = since.elapsed().as_millis() / TICK_MS;
    let attempts =
        arena.server.metric("tableforge_websocket_accept_pauses_total").expect("a counter") as u128;
    assert!((1..=ticks + 2).contains(&attempts), "{attempts} attempts in {ticks} ticks");
    arena.assert_restored();
}

#[test]
fn a_server_with_few_descriptors_is_full_before_it_has_none() {
    // Half of so few are for connections: more than the server uses itself are left.
    const FIT: usize = 64;
    let server = with_descriptors(2 * FIT);
    let mut crowd: Vec<_> = (0..FIT).map(|_| RawSocket::upgraded(&server)).collect();
    let mut late = RawSocket::connect(server.port);
    late.send(UPGRADE.as_bytes());
    let refused = late.response();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{refused:?}");
    assert!(refused.body.contains("full"), "{refused:?}");
    let ready = http::get(server.port, "/ready");
    assert!(ready.status == 503 && ready.body.contains("full"), "{ready:?}");
    assert_eq!(http::get(server.port, "/health").status, 200);
    assert_eq!(server.metric("tableforge_websocket_connections_limit"), Some(FIT as f64));
    assert_eq!(server.metric("tableforge_websocket_accept_pauses_total"), Some(0.0));
    drop(crowd.pop());
    eventually("there is room again", || {
        http::try_get(server.port, "/ready").filter(|response| response.status == 200)
    });
}

#[test]
fn thousands_that_come_and_go_at_once_leave_nothing_behind() {
    const COUNT: usize = 2_000;
    allow_descriptors(COUNT as u64 + 100);
    let mut arena = Arena::start(&[]);
    let join = frame(FIN | TEXT, br#"{"type":"join_room","roomId":"crowd"}"#);
    let arrival = [UPGRADE.as_bytes(), &join].concat();
    for _ in 0..3 {
        let mut crowd: Vec<_> = (0..COUNT).map(|_| RawSocket::connect(arena.port())).collect();
        crowd.iter_mut().for_each(|socket| socket.send(&arrival));
        arena.assert_healthy("a crowd");
        drop(crowd);
        arena.assert_healthy("a crowd that left");
    }
    let mut newcomer = Client::connect(&arena.server);
    eventually("the room is empty", || {
        let joined = newcomer.join("crowd");
        newcomer.leave("crowd");
        (joined["memberCount"] == 1).then_some(())
    });
    drop(newcomer);
    arena.assert_restored();
}

#[test]
fn memory_does_not_grow_with_every_crowd() {
    const COUNT: usize = 1_000;
    allow_descriptors(COUNT as u64 + 100);
    let mut arena = Arena::start(&[]);
    let mut after = Vec::new();
    for _ in 0..8 {
        let crowd: Vec<_> = (0..COUNT).map(|_| upgraded(arena.port()).0).collect();
        drop(crowd);
        arena.assert_healthy("a crowd");
        eventually("the crowd has gone", || {
            (arena.server.metric("tableforge_websocket_connections_total") == Some(2.0)).then_some(())
        });
        after.push(arena.resident_bytes());
    }
    // The first crowds fill pools and tables; a leak of 2 KiB per connection would be 8 MiB by the end.
    assert!(after[7] < after[3] + (8 << 20), "{after:?}");
    arena.assert_restored();
}

#[test]
fn sigterm_in_the_middle_of_a_flood() {
    let mut server = Server::with_shards(2);
    let mut watcher = Client::connect(&server);
    let mut silent = RawSocket::upgraded(&server);
    let mut half_open = RawSocket::connect(server.port);
    half_open.send(b"GET /ws HTTP/1.1\r\n");
    thread::scope(|scope| {
        // Each to a room of its own: one that hears others is closed early for what it does not read.
        let flooders = ["a", "b", "c"].map(|room| {
            let (mut socket, stream) = upgraded(server.port);
            socket.send_text(&json!({"type": "join_room", "roomId": room}).to_string());
            socket.expect("room_joined");
            let message = json!({"type": "room_message", "roomId": room, "data": "x".repeat(200)});
            let burst = frame(FIN | TEXT, message.to_string().as_bytes()).repeat(50);
            (scope.spawn(move || while socket.try_send(&burst).is_ok() {}), stream)
        });
        eventually("the flood has begun", || {
            (server.metric("tableforge_websocket_messages_received_total") > Some(10_000.0)).then_some(())
        });
        server.process.signal(Signal::TERM);
        assert!(watcher.expect("server_draining")["reconnectAfterMs"].is_u64());
        assert_eq!(watcher.expect_close(), 1012);
        let status = server.process.wait();
        assert!(status.success(), "{status}");
        for (flooder, stream) in flooders {
            // One that met a full window hears of the end only when its kernel probes again, much later.
            let _ = stream.shutdown(Shutdown::Both);
            flooder.join().expect("the flood ends");
        }
    });
    assert_eq!(silent.expect("server_draining")["type"], "server_draining");
    assert_eq!(silent.frame().expect("a close frame").first, FIN | CLOSE);
    half_open.assert_ends();
}
