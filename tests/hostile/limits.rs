//! More than one may: connections of an address and of a user, joins, bytes, and what a room or the server takes.

use std::net::TcpStream;

use serde_json::json;

use crate::arena::Arena;
use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::http;
use crate::harness::raw::{RawSocket, UPGRADE};
use crate::harness::server::Server;
use crate::harness::token;

/// An upgrade request that a proxy passes on for `client`.
fn forwarded(client: &str) -> String {
    UPGRADE.replacen("\r\n", &format!("\r\nX-Forwarded-For: {client}\r\n"), 1)
}

/// The status of the answer to `bytes`, and the socket.
#[track_caller]
fn asked(port: u16, bytes: &[u8]) -> (u16, RawSocket) {
    let mut socket = RawSocket::connect(port);
    socket.send(bytes);
    (socket.response().status, socket)
}

#[test]
fn one_connection_too_many_from_an_address_gets_429_on_whatever_shard() {
    let server = Server::start(&[("MAX_CONNECTIONS_PER_ADDRESS", "10"), ("SHARDS", "4")]);
    let pair = [Client::connect(&server), Client::connect(&server)];
    let mut arena = Arena::around(server, pair);
    let crowd: Vec<_> = (0..8).map(|_| Client::connect(&arena.server)).collect();
    for _ in 0..20 {
        let response = http::exchange(arena.port(), UPGRADE.as_bytes()).expect("an answer");
        assert_eq!(response.status, 429);
        arena.note_end(429);
        assert!(
            response.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()),
            "{response:?}"
        );
    }
    assert_eq!(arena.server.metric("tableforge_websocket_connections_refused_total"), Some(20.0));
    arena.assert_healthy("with all places taken");
    for client in crowd {
        client.vanish();
        let newcomer = eventually("the place is free", || {
            Client::open(arena.port(), "/ws", &[]).map_err(|status| arena.note_end(status)).ok()
        });
        newcomer.close();
    }
    arena.assert_restored();
}

#[test]
fn refused_requests_take_no_place() {
    let mut arena = Arena::start(&[("MAX_CONNECTIONS_PER_ADDRESS", "3")]);
    for _ in 0..20 {
        assert_eq!(http::get(arena.port(), "/ws").status, 426);
        arena.note_end(426);
        assert_eq!(http::get(arena.port(), "/health").status, 200);
    }
    Client::connect(&arena.server).close();
    arena.assert_healthy("refused requests");
    arena.assert_restored();
}

#[test]
fn without_the_setting_loopback_addresses_have_no_limit() {
    let port = crate::harness::free_port();
    let mut command = crate::harness::server::command("serve", port, &[]);
    command.env_remove("MAX_CONNECTIONS_PER_ADDRESS");
    let process = crate::harness::process::Process::start("tableforge", &mut command);
    eventually("the server is ready", || {
        http::try_get(port, "/ready").filter(|response| response.status == 200)
    });
    let server = Server { port, process };
    let crowd: Vec<_> = (0..150).map(|_| Client::connect(&server)).collect();
    drop(crowd);
}

#[test]
fn a_trusted_proxy_speaks_for_its_clients_and_nobody_else_does() {
    let limits = [("MAX_CONNECTIONS_PER_ADDRESS", "2")];
    let trusting = Server::start(&[&limits[..], &[("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8")]].concat());
    let mut open = Vec::new();
    for (client, status) in [
        ("192.0.2.1", 101),
        ("192.0.2.1", 101),
        ("192.0.2.1", 429),
        ("192.0.2.2", 101),
        // What a client makes up stands left of what the proxies say.
        ("8.8.8.8, 192.0.2.1", 429),
        ("8.8.8.8, 192.0.2.1, 10.0.0.7", 429),
        ("2001:db8:0:1::1", 101),
        ("2001:db8:0:1::2", 101),
        ("2001:db8:0:1::3", 429),
        ("2001:db8:0:2::3", 101),
    ] {
        let (got, socket) = asked(trusting.port, forwarded(client).as_bytes());
        assert_eq!(got, status, "{client}");
        open.push(socket);
    }
    let wary = Server::start(&limits);
    let answers: Vec<_> =
        (1..=3).map(|n| asked(wary.port, forwarded(&format!("192.0.2.{n}")).as_bytes())).collect();
    assert_eq!(answers.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [101, 101, 429]);
}

/// A header of the PROXY protocol, version 2, for a client of 192.0.2.0/24.
fn preface(host: u8) -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".as_slice(), &[192, 0, 2, host, 10, 0, 0, 1, 0, 1, 0, 2]].concat()
}

#[test]
fn the_proxy_protocol_names_the_client_even_byte_by_byte() {
    let settings =
        [("MAX_CONNECTIONS_PER_ADDRESS", "1"), ("TRUSTED_PROXIES", "127.0.0.1"), ("PROXY_PROTOCOL", "true")];
    let server = Server::start_behind_proxy(&settings, &preface(9));
    let request = |host| [&preface(host)[..], UPGRADE.as_bytes()].concat();
    let (status, first) = asked(server.port, &request(1));
    assert_eq!(status, 101);
    assert_eq!(asked(server.port, &request(1)).0, 429);
    let mut dripping = RawSocket::connect(server.port);
    request(2).chunks(1).for_each(|byte| dripping.send(byte));
    assert_eq!(dripping.response().status, 101);
    for hostile in [
        UPGRADE.as_bytes().to_vec(),
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n".to_vec(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x04\x01\x02\x03\x04".to_vec(),
    ] {
        assert_eq!(asked(server.port, &hostile).0, 400, "{}", hostile.escape_ascii());
    }
    drop((first, dripping));
}

impl Server {
    /// Starts a server that answers nobody without `preface`.
    #[track_caller]
    fn start_behind_proxy(settings: &[(&str, &str)], preface: &[u8]) -> Self {
        let port = crate::harness::free_port();
        let mut command = crate::harness::server::command("serve", port, settings);
        let process = crate::harness::process::Process::start("tableforge", &mut command);
        let request = [preface, b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"].concat();
        eventually("the server is ready", || {
            TcpStream::connect(("127.0.0.1", port)).ok()?;
            http::exchange(port, &request).ok().filter(|response| response.status == 200)
        });
        Self { port, process }
    }
}

#[test]
fn one_connection_too_many_of_a_user_gets_4504_on_whatever_shard_and_however_it_authenticates() {
    let settings = [("MAX_CONNECTIONS_PER_USER", "3"), ("SHARDS", "4"), ("JWT_SECRET", token::SECRET)];
    let mut arena = Arena::start(&settings);
    let ann = token::of("ann");
    let mut connections: Vec<_> = (0..3).map(|_| Client::connect_as(&arena.server, &ann)).collect();
    for _ in 0..10 {
        let (status, mut socket) =
            asked(arena.port(), UPGRADE.replace("/ws", &format!("/ws?token={ann}")).as_bytes());
        assert_eq!((status, socket.expect_close()), (101, 4504));
        let mut late = Client::connect(&arena.server);
        late.send(&json!({"type": "authenticate", "token": ann}));
        assert_eq!(late.expect_close(), 4504);
        (0..2).for_each(|_| arena.note_end(4504));
    }
    Client::connect_as(&arena.server, &token::of("bob")).close();
    connections.iter_mut().for_each(|client| drop(client.join("r")));
    connections.pop().expect("three").close();
    let again = eventually("there is room for another", || {
        let mut socket = RawSocket::connect(arena.port());
        socket.send(UPGRADE.replace("/ws", &format!("/ws?token={ann}")).as_bytes());
        assert_eq!(socket.response().status, 101);
        let greeted =
            socket.frame().is_some_and(|frame| frame.payload.starts_with(b"{\"type\":\"connection_est"));
        if !greeted {
            arena.note_end(4504);
        }
        greeted.then_some(socket)
    });
    drop((again, connections));
    arena.assert_healthy("too many connections of a user");
    arena.assert_restored();
}

/// Sends `count` of what `message` makes; how many were refused with `rate_limited`.
#[track_caller]
fn limited(client: &mut Client, count: usize, message: impl Fn(usize) -> serde_json::Value) -> usize {
    let ids: Vec<_> = (0..count).map(|n| client.ask(message(n))).collect();
    let replies = ids.iter().map(|id| client.reply_to(id));
    let refused = replies.filter(|reply| reply["type"] == "error").inspect(|reply| {
        assert_eq!(reply["code"], "rate_limited", "{}", reply.text);
        assert!(reply["retryAfterMs"].as_u64() > Some(0), "{}", reply.text);
    });
    refused.count()
}

#[test]
fn joins_over_the_rate_are_refused_and_in_the_end_closed_for() {
    let mut arena =
        Arena::start(&[("JOIN_RATE", "1"), ("JOIN_BURST", "5"), ("MAX_ROOMS_PER_CONNECTION", "0")]);
    let mut client = Client::connect(&arena.server);
    let refused = limited(&mut client, 100, |n| json!({"type": "join_room", "roomId": format!("r{n}")}));
    assert!((50..=95).contains(&refused), "{refused}");
    assert_eq!(limited(&mut client, 20, |_| json!({"type": "ping"})), 0, "only joins are over their rate");
    let joins: Vec<_> = (0..3_000).map(|n| json!({"type": "join_room", "roomId": format!("s{n}")})).collect();
    client.send_at_once(&joins);
    assert_eq!(client.expect_close(), 4005);
    arena.note_end(4005);
    arena.assert_healthy("joins without end");
    arena.assert_restored();
}

#[test]
fn bytes_over_the_rate_are_refused_and_the_largest_message_passes() {
    let mut arena = Arena::start(&[("BYTE_RATE", "1024"), ("MAX_MESSAGE_BYTES", "8192")]);
    let mut client = Client::connect(&arena.server);
    let large = json!({"type": "ping", "x": "x".repeat(8_000)});
    let refused = limited(&mut client, 10, |_| large.clone());
    assert!((4..=8).contains(&refused), "{refused}");
    drop(client);
    arena.assert_healthy("bytes over the rate");
    arena.assert_restored();
}

#[test]
fn a_user_an_address_and_a_room_have_rates_over_all_connections() {
    for (setting, same_user) in [("USER_MESSAGE_RATE", true), ("ADDRESS_MESSAGE_RATE", false)] {
        let settings = [(setting, "10"), ("SHARDS", "4"), ("JWT_SECRET", token::SECRET)];
        let server = Server::start(&[&settings[..], &[("MAX_CONNECTIONS_PER_ADDRESS", "1000")]].concat());
        let user = |n: usize| token::of(&if same_user { "ann".to_owned() } else { format!("user-{n}") });
        let refused: usize = (0..10)
            .map(|n| limited(&mut Client::connect_as(&server, &user(n)), 10, |_| json!({"type": "ping"})))
            .sum();
        assert!((20..=80).contains(&refused), "{setting}: {refused} of 100");
    }
    let mut arena = Arena::start(&[("ROOM_MESSAGE_RATE", "10"), ("SHARDS", "4")]);
    let outsider_message = |_| json!({"type": "room_message", "roomId": "crowded", "data": 1});
    let mut outsider = Client::connect(&arena.server);
    for _ in 0..100 {
        outsider.expect_refused(outsider_message(0), "not_in_room");
    }
    let mut members: Vec<_> = (0..5).map(|_| Client::connect(&arena.server)).collect();
    members.iter_mut().for_each(|client| drop(client.join("crowded")));
    assert_eq!(limited(&mut members[0], 5, outsider_message), 0, "outsiders use up nothing");
    let refused: usize = members.iter_mut().map(|client| limited(client, 20, outsider_message)).sum();
    assert!((20..=85).contains(&refused), "{refused} of 100");
    drop((outsider, members));
    arena.assert_healthy("a crowded room");
    arena.assert_restored();
}

#[test]
fn the_instance_takes_what_its_share_of_the_global_rate_is() {
    let server = Server::start(&[("GLOBAL_MESSAGE_RATE", "10"), ("SHARDS", "2")]);
    let mut senders: Vec<_> = (0..4).map(|_| Client::connect(&server)).collect();
    let message = |_| json!({"type": "user_message", "targetUserId": "nobody", "data": 1});
    let refused: usize = senders.iter_mut().map(|client| limited(client, 20, message)).sum();
    assert!((20..=60).contains(&refused), "{refused} of 80");
}

#[test]
fn upgrades_over_the_accept_rate_get_503_and_the_rest_is_unaffected() {
    let mut arena = Arena::start(&[("ACCEPT_RATE", "20")]);
    let answers: Vec<_> = (0..200).map(|_| asked(arena.port(), UPGRADE.as_bytes()).0).collect();
    let refused = answers.iter().filter(|status| **status == 503).count();
    assert!(refused > 50, "{refused} of 200");
    assert!(answers.iter().all(|status| [101, 503].contains(status)), "{answers:?}");
    // More than the rate and its reserve, while it is used up: what asks how the server is does not count.
    for _ in 0..100 {
        for path in ["/health", "/ready", "/metrics"] {
            assert_eq!(http::get(arena.port(), path).status, 200, "{path}");
        }
    }
    arena.assert_healthy("a rush");
    eventually("newcomers are let in again", || {
        (asked(arena.port(), UPGRADE.as_bytes()).0 == 101).then_some(())
    });
}
