//! A server under attack: a healthy pair of clients on it, and what it must come back to.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::raw::{RawSocket, UPGRADE};
use crate::harness::server::Server;

/// A room that nobody hostile is in.
const ROOM: &str = "healthy";

/// A server, and two clients of it that do nothing wrong.
pub struct Arena {
    /// The server.
    pub server: Server,
    pair: [Client; 2],
    rounds: u64,
    /// Descriptors that the server has open for itself and the pair.
    descriptors: usize,
}

impl Arena {
    /// Starts a server with `settings`; the pair needs no token.
    #[track_caller]
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let server = Server::start(settings);
        let left = Client::connect(&server);
        // On one shard: between two of them a flood of others may take the way, and the pair is told so.
        let mut others = std::iter::repeat_with(|| Client::connect(&server));
        let right = others.find(|other| shard_of(other) == shard_of(&left)).expect("there is no end of them");
        Self::around(server, [left, right])
    }

    /// Takes a server and two clients that exist.
    #[track_caller]
    pub fn around(server: Server, pair: [Client; 2]) -> Self {
        let mut arena = Self { server, pair, rounds: 0, descriptors: 0 };
        arena.pair.iter_mut().for_each(|client| drop(client.join(ROOM)));
        arena.assert_healthy("before anything hostile");
        arena.descriptors = arena.descriptors_now();
        arena
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Checks that the pair still passes messages both ways, each exactly once.
    #[track_caller]
    pub fn assert_healthy(&mut self, after: &str) {
        self.rounds += 1;
        let [left, right] = &mut self.pair;
        let ball = format!("{} {after}", self.rounds);
        left.say(ROOM, ball.as_str());
        right.expect_said(ROOM, ball.as_str());
        right.say(ROOM, ball.as_str());
        left.expect_said(ROOM, ball.as_str());
        left.assert_none("room_message");
        right.assert_none("room_message");
    }

    /// Checks that only the pair is left: in the metrics and among the server's descriptors.
    #[track_caller]
    pub fn assert_restored(mut self) {
        self.assert_healthy("everything hostile");
        eventually("only the healthy pair is connected", || {
            (self.server.metric("tableforge_websocket_connections_total") == Some(2.0)).then_some(())
        });
        eventually("only the healthy pair's room is left", || {
            (self.server.metric("tableforge_websocket_rooms_total") == Some(1.0)).then_some(())
        });
        eventually("all other descriptors are closed", || {
            (self.descriptors_now() <= self.descriptors).then_some(())
        });
        assert_eq!(
            self.server.metric("tableforge_panics_total"),
            Some(0.0),
            "no panic, not even a contained one"
        );
    }

    /// Bytes of memory that the server occupies.
    pub fn resident_bytes(&self) -> usize {
        let statm = fs::read_to_string(self.proc("statm")).expect("the server runs");
        let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
        pages * rustix::param::page_size()
    }

    fn descriptors_now(&self) -> usize {
        fs::read_dir(self.proc("fd")).expect("the server runs").count()
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.server.process.id())
    }
}

/// The two digits of a client's shard.
fn shard_of(client: &Client) -> &str {
    &client.socket_id[8..10]
}

/// A connection that has sent nothing, and a second handle on it.
#[track_caller]
pub fn connect(port: u16) -> (RawSocket, TcpStream) {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the server takes connections");
    let other = stream.try_clone().expect("a descriptor is free");
    (RawSocket::over(stream), other)
}

/// An upgraded connection that has heard the greeting, and a second handle on it.
#[track_caller]
pub fn upgraded(port: u16) -> (RawSocket, TcpStream) {
    let (mut socket, stream) = connect(port);
    upgrade(&mut socket);
    (socket, stream)
}

/// Upgrades, and takes the greeting.
#[track_caller]
pub fn upgrade(socket: &mut RawSocket) {
    socket.send(UPGRADE.as_bytes());
    assert_eq!(socket.response().status, 101);
    assert_eq!(socket.event()["type"], "connection_established");
}

/// A connection whose kernel takes in as little as possible while nobody reads.
#[track_caller]
pub fn connect_small(port: u16) -> RawSocket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor is free");
    socket.set_recv_buffer_size(4096).expect("the option exists");
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    socket.connect(&address.into()).expect("the server takes connections");
    RawSocket::over(socket.into())
}

/// Ends a connection with a reset instead of an orderly end.
pub fn reset((socket, stream): (RawSocket, TcpStream)) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("the option exists");
    drop((socket, stream));
}

/// Lets this process have as many descriptors as the system allows it: at least `count`.
#[track_caller]
pub fn allow_descriptors(count: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the hard limit is allowed");
    assert!(maximum.is_none_or(|maximum| maximum >= count), "this test needs {count} descriptors");
}
