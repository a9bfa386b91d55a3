//! A server under attack: a healthy pair of clients on it, and what it must come back to.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::http;
use crate::harness::raw::{RawSocket, UPGRADE};
use crate::harness::server::Server;
use crate::pair::Pair;

/// A server, and two clients of it that do nothing wrong.
pub struct Arena {
    // Dropped before the server: the pair's last round needs it.
    pair: Pair,
    /// The server.
    pub server: Server,
    /// Descriptors that the server has open for itself and the pair.
    descriptors: usize,
    /// What was counted before anything hostile.
    before: BTreeMap<u16, u64>,
    /// How often at least and at most the server has ended something with each code or status since.
    ended: BTreeMap<u16, (u64, u64)>,
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
        let pair = Pair::start(pair);
        let mut arena =
            Self { pair, server, descriptors: 0, before: BTreeMap::new(), ended: BTreeMap::new() };
        arena.assert_healthy("nothing hostile");
        arena.descriptors = arena.descriptors_now();
        arena.before = arena.counted();
        arena
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Checks that the pair still passes messages both ways, each exactly once, and has done so all the while.
    pub fn assert_healthy(&mut self, after: &str) {
        self.pair.assert_healthy(after);
    }

    /// The server has closed a connection with this code, or answered a request with this status.
    pub fn note_end(&mut self, with: u16) {
        self.note_ends(with, 1, 1);
    }

    /// The server may have ended up to `most` with this code or status: the peer did not stay to see it.
    pub fn note_unseen_ends(&mut self, with: u16, most: u64) {
        self.note_ends(with, 0, most);
    }

    fn note_ends(&mut self, with: u16, least: u64, most: u64) {
        let ended = self.ended.entry(with).or_default();
        *ended = (ended.0 + least, ended.1 + most);
    }

    /// Checks that only the pair is left, in the metrics and among the server's descriptors, and that the server has
    /// counted what it has ended: everything noted, and nothing else.
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
        self.assert_counted();
        assert_eq!(
            self.server.metric("tableforge_panics_total"),
            Some(0.0),
            "no panic, not even a contained one"
        );
        drop(self.pair.end());
    }

    /// Every end is counted before its connection is gone.
    #[track_caller]
    fn assert_counted(&self) {
        let rises: BTreeMap<_, _> =
            self.counted().into_iter().map(|(with, count)| (with, count - self.before[&with])).collect();
        for (with, rise) in &rises {
            let (least, most) = self.ended.get(with).copied().unwrap_or_default();
            assert!((least..=most).contains(rise), "{with}: {rise}, not {least} to {most}; {rises:?}");
        }
        let uncounted = self.ended.keys().find(|with| !rises.contains_key(with));
        assert_eq!(uncounted, None, "no counter for what the server has ended something with");
    }

    /// How many connections the server has closed, by code, and requests it has answered, by status. Without status
    /// 200, which is what this very question gets.
    fn counted(&self) -> BTreeMap<u16, u64> {
        let text = http::get(self.port(), "/metrics").body;
        let counts = text.lines().filter_map(|line| {
            let sample = line.strip_prefix("tableforge_")?;
            let (_, sample) = sample
                .strip_prefix("websocket_closes_total{")
                .and_then(|sample| sample.split_once("by=\"server\",code=\""))
                .or_else(|| sample.strip_prefix("http_responses_total{")?.split_once("status=\""))?;
            let (with, count) = sample.split_once("\"} ")?;
            Some((with.parse().ok()?, count.parse().expect("a counter is a whole number")))
        });
        counts.filter(|(with, _)| *with != 200).collect()
    }

    /// The server, and the pair's clients, which do nothing any more.
    pub fn into_parts(self) -> (Server, [Client; 2]) {
        (self.server, self.pair.end())
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
