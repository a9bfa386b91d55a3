//! A real redis-server and instances whose shards are played by the test.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use tableforge::config::{HistorySettings, RedisSettings, RoomPattern};
use tableforge::identity::{ConnectionId, InstanceId, RoomId, ShardId, UserId};
use tableforge::metrics::UplinkCells;
use tableforge::room::history::Position;
use tableforge::room::route::RoomRoute;
use tableforge::shard::envelope::{
    Asker, Envelope, Join, Joined, LinkState, Member, Presence, Publication, ReadHistory, Store,
    StoreOutcome, Target, UplinkCommand,
};
use tableforge::shard::outlet::{Outlet, Waker};
use tableforge::uplink::UplinkError;
use tableforge::uplink::driver::{Ports, UplinkHandle, start};
use tableforge::uplink::history::HistoryRules;
use tableforge::uplink::registry::Load;

/// How long an expected event may take: far longer than it does, so that a busy machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A redis-server of the test's own, without persistence, ended with the test.
pub struct Redis {
    child: Child,
    pub port: u16,
}

impl Redis {
    pub fn start() -> Self {
        Self::on(free_port(), &[])
    }

    pub fn on(port: u16, options: &[&str]) -> Self {
        let mut child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            // A replica writes down what it gets from its primary: not where others look for their data.
            .args(["--dir", &std::env::temp_dir().to_string_lossy()])
            .args(["--repl-diskless-load", "swapdb", "--dbfilename", &format!("tableforge-test-{port}.rdb")])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-server is installed");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("Ready to accept connections")));
        assert!(ready, "redis-server did not start on port {port}");
        // The pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port }
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("redis-server can be killed");
        self.child.wait().expect("redis-server ends");
    }

    /// Sends the process a signal, by name without SIG.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill runs").success());
    }

    /// Ends one of an instance's connections from Redis's side.
    pub fn kill_connection(&self, instance: &str, role: &str) {
        let mut client = self.client();
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut client).expect("CLIENT LIST works");
        let name = format!("name=tableforge-{instance}-{role} ");
        let line = list.lines().find(|line| line.contains(&name)).expect("the connection is there");
        let id = line.split(' ').next().and_then(|word| word.strip_prefix("id=")).expect("an id comes first");
        let killed: i64 =
            redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).query(&mut client).expect("CLIENT KILL works");
        assert_eq!(killed, 1);
    }

    pub fn client(&self) -> redis::Connection {
        self.connect("")
    }

    pub fn client_as(&self, user: &str, password: &str) -> redis::Connection {
        self.connect(&format!("{user}:{password}@"))
    }

    fn connect(&self, who: &str) -> redis::Connection {
        let address = format!("redis://{who}127.0.0.1:{}/", self.port);
        let client = redis::Client::open(address).expect("a valid address");
        client.get_connection().expect("redis-server answers")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

pub fn settings(port: u16) -> RedisSettings {
    RedisSettings {
        host: "127.0.0.1".into(),
        port,
        username: None,
        password: None,
        db: 0,
        tls: false,
        ca_file: None,
        cert_file: None,
        key_file: None,
        prefix: "tf:".into(),
        timeout: Duration::from_secs(5),
        batch_age: Duration::from_micros(500),
        batch_bytes: 64 * 1024,
        batch_compress_bytes: 1_024,
        lane_peers: 16,
        heartbeat_interval: Duration::from_millis(200),
        cleanup_interval: Duration::from_millis(200),
        inactive_threshold: Duration::from_secs(30),
        counts_connections: false,
    }
}

/// History for all rooms: `size` messages, kept for a minute.
pub fn rules(size: usize) -> HistoryRules {
    let rooms = vec![RoomPattern::parse("*").unwrap()];
    let settings = HistorySettings { rooms, size, ttl: Duration::from_secs(60), memory: 64 << 20, page: 300 };
    HistoryRules { settings, reply_bytes: 512 * 1024 }
}

pub fn room(name: &str) -> RoomId {
    RoomId::parse(name).unwrap()
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

pub fn member(name: &str) -> Member {
    Member { user: user(name), name: None, socket: format!("socket-{name}").into() }
}

/// An instance of two shards; the test is the shards.
pub struct Instance {
    handle: Option<UplinkHandle>,
    pub shards: Vec<Receiver<Envelope>>,
    /// Answers to what was to be stored.
    answered: Vec<Receiver<Envelope>>,
    commands: Sender<UplinkCommand>,
    waker: Arc<Waker>,
    publications: Sender<Publication>,
    pub cells: Arc<UplinkCells>,
    /// Who joins on this instance. Redis 7.0 sends the presence of an own join in front of the answer
    /// and later ones behind it, so [`Instance::next`] leaves it out.
    own: RefCell<HashSet<UserId>>,
}

impl Instance {
    /// Starts an instance and brings it up.
    pub fn up(name: &str, settings: &RedisSettings) -> Self {
        let instance = Self::try_start(name, settings, 1_024).expect("the uplink starts");
        instance.expect_link(LinkState::Restoring);
        instance.restored();
        instance.expect_link(LinkState::Up);
        instance
    }

    /// As [`Instance::up`], with history for the rooms that `rules` name.
    pub fn with_history(name: &str, settings: &RedisSettings, rules: HistoryRules) -> Self {
        let instance = Self::begin(name, settings, rules, 1_024).expect("the uplink starts");
        instance.expect_link(LinkState::Restoring);
        instance.restored();
        instance.expect_link(LinkState::Up);
        instance
    }

    pub fn try_start(name: &str, settings: &RedisSettings, capacity: usize) -> Result<Self, UplinkError> {
        Self::begin(name, settings, HistoryRules::none(), capacity)
    }

    fn begin(
        name: &str,
        settings: &RedisSettings,
        rules: HistoryRules,
        capacity: usize,
    ) -> Result<Self, UplinkError> {
        let (mut outlets, mut shards) = (Vec::new(), Vec::new());
        let (mut answers, mut answered) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (outlet, receiver) = Outlet::new(100_000, Waker::new().unwrap());
            answers.push(outlet);
            answered.push(receiver);
            let (outlet, receiver) = Outlet::new(capacity, Waker::new().unwrap());
            outlets.push(outlet);
            shards.push(receiver);
        }
        let (commands, for_ingress) = bounded(10_000);
        let (publications, for_publisher) = bounded(10_000);
        let (waker, cells) = (Waker::new().unwrap(), Arc::new(UplinkCells::default()));
        let ports = Ports {
            shards: outlets,
            answers,
            commands: for_ingress,
            waker: Arc::clone(&waker),
            publications: for_publisher,
            cells: Arc::clone(&cells),
            tracer: None,
        };
        let id = InstanceId::parse(name).unwrap();
        let handle = start(settings, rules, &id, 7, ports, Load::default, None)?;
        Ok(Self {
            handle: Some(handle),
            shards,
            answered,
            commands,
            waker,
            publications,
            cells,
            own: RefCell::default(),
        })
    }

    pub fn stop(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.stop();
        }
    }

    pub fn command(&self, command: UplinkCommand) {
        self.commands.send(command).expect("the ingress runs");
        self.waker.wake();
    }

    pub fn publish(&self, target: Target, event: &str) {
        let event = Bytes::copy_from_slice(event.as_bytes());
        self.publications.send(Publication::Event { target, event }).expect("the publisher runs");
    }

    /// The way to the publisher, for another thread.
    pub fn publications(&self) -> Sender<Publication> {
        self.publications.clone()
    }

    /// The next envelope for a shard, presence of own joins left out.
    pub fn next(&self, shard: usize) -> Envelope {
        loop {
            match self.any(shard) {
                Envelope::Presence(p) if p.joined && self.own.borrow().contains(&p.member.user) => {}
                envelope => return envelope,
            }
        }
    }

    /// The next envelope for a shard.
    pub fn any(&self, shard: usize) -> Envelope {
        self.shards[shard].recv_timeout(PATIENCE).expect("an envelope comes")
    }

    pub fn expect_link(&self, state: LinkState) {
        for shard in 0..self.shards.len() {
            match self.next(shard) {
                Envelope::Link(got) => assert_eq!(got, state),
                other => panic!("expected the link to be {state:?}, got {other:?}"),
            }
        }
    }

    pub fn restored(&self) {
        for shard in 0..self.shards.len() {
            self.command(UplinkCommand::Restored { shard: ShardId(shard as u8) });
        }
    }

    /// Asks for a join of a connection on shard 0, without waiting for the answer.
    pub fn ask_join(&self, room: &RoomId, who: &str, enters: bool) -> Arc<RoomRoute> {
        self.ask_resume(room, who, enters, None)
    }

    /// As [`Instance::ask_join`], resuming at `since`.
    pub fn ask_resume(
        &self,
        room: &RoomId,
        who: &str,
        enters: bool,
        since: Option<Position>,
    ) -> Arc<RoomRoute> {
        self.own.borrow_mut().insert(user(who));
        let route = Arc::new(RoomRoute::default());
        route.add(ShardId(0));
        let join = Join {
            room: room.clone(),
            asker: asker(who),
            member: member(who),
            want_members: true,
            since,
            again: false,
        };
        self.command(UplinkCommand::Join { join: Box::new(join), enters, route: Arc::clone(&route) });
        route
    }

    /// Gives a message to be stored, without waiting for the answer.
    pub fn ask_store(&self, room: &RoomId, who: &str, message_id: Option<&str>, text: &str) {
        let message_id = message_id.map(Into::into);
        let store = Store {
            trace: None,
            room: room.clone(),
            asker: Asker { connection: connection(), message_id },
            user: user(who),
            sender: Some(connection()),
            event: Bytes::from(format!("{{\"data\":\"{text}\"}}")),
        };
        self.publications.send(Publication::Store(Box::new(store))).expect("the publisher runs");
    }

    /// Stores a message and waits for what becomes of it.
    pub fn store(&self, room: &RoomId, who: &str, message_id: &str, text: &str) -> StoreOutcome {
        self.ask_store(room, who, Some(message_id), text);
        self.outcome().1
    }

    /// The next answer to what was to be stored: the `messageId`, and what became of it.
    pub fn outcome(&self) -> (String, StoreOutcome) {
        match self.answered[0].recv_timeout(PATIENCE).expect("an answer comes") {
            Envelope::Stored { asker, outcome, .. } => {
                (asker.message_id.map(String::from).unwrap_or_default(), outcome)
            }
            other => panic!("expected the answer to a message, got {other:?}"),
        }
    }

    /// Joins resuming at `since`, and waits for the answer.
    pub fn resume(&self, room: &RoomId, who: &str, since: Position) -> Box<Joined> {
        self.ask_resume(room, who, true, Some(since));
        self.joined()
    }

    /// Asks for a page of the room's past and waits for it.
    pub fn page(
        &self,
        room: &RoomId,
        since: Option<Position>,
        limit: usize,
        reverse: bool,
    ) -> Option<(Position, Vec<String>)> {
        let request = ReadHistory { room: room.clone(), asker: asker("page"), since, limit, reverse };
        self.command(UplinkCommand::ReadHistory(Box::new(request)));
        loop {
            match self.next(0) {
                Envelope::History { page, .. } => {
                    let texts = |frames: Vec<Bytes>| frames.iter().map(|frame| text(frame)).collect();
                    return page.map(|page| (page.position, texts(page.frames)));
                }
                Envelope::Presence(_) => {}
                other => panic!("expected a page, got {other:?}"),
            }
        }
    }

    /// Joins and waits for the answer; whoever is told about the join, reads that by themselves.
    pub fn join(&self, room: &RoomId, who: &str, enters: bool) -> Box<Joined> {
        self.ask_join(room, who, enters);
        self.joined()
    }

    /// The next `Joined`, leaving out presence in front of it.
    pub fn joined(&self) -> Box<Joined> {
        loop {
            match self.next(0) {
                Envelope::Joined(joined) => return joined,
                Envelope::Presence(_) => {}
                other => panic!("expected an answer to a join, got {other:?}"),
            }
        }
    }

    /// What a home shard says of one room when the link is back.
    pub fn restore(&self, room: &RoomId, route: &Arc<RoomRoute>, members: &[&str], newcomers: &[&str]) {
        let [members, newcomers] =
            [members, newcomers].map(|names| names.iter().map(|n| member(n)).collect());
        let (room, route) = (room.clone(), Arc::clone(route));
        self.command(UplinkCommand::Restore { room, route, members, newcomers, told: false });
    }

    pub fn leave(&self, room: &RoomId, who: &str, last: bool) {
        self.command(UplinkCommand::Leave { room: room.clone(), member: member(who), last });
    }

    /// The text of the next room message of shard 0, leaving out presence in front of it.
    pub fn room_text(&self) -> String {
        loop {
            match self.next(0) {
                Envelope::RoomFrame { frame, .. } => return text(&frame),
                Envelope::Presence(_) => {}
                other => panic!("expected a room message, got {other:?}"),
            }
        }
    }

    pub fn presence(&self) -> Box<Presence> {
        match self.next(0) {
            Envelope::Presence(presence) => presence,
            other => panic!("expected presence, got {other:?}"),
        }
    }

    pub fn resync(&self) -> (Option<RoomId>, &'static str) {
        match self.next(0) {
            Envelope::RoomResync { room, reason, .. } => (room, reason),
            other => panic!("expected a resync, got {other:?}"),
        }
    }

    /// Waits until everything that was asked before has been carried out.
    pub fn settle(&self) {
        self.command(UplinkCommand::ListMembers { room: room("nobody"), asker: asker("settle") });
        loop {
            if let Envelope::Members { room, .. } = self.next(0)
                && room.as_str() == "nobody"
            {
                return;
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn asker(message_id: &str) -> Asker {
    Asker { connection: connection(), message_id: Some(message_id.into()) }
}

pub fn connection() -> ConnectionId {
    ConnectionId { shard: ShardId(0), slot: 3, generation: 1 }
}

/// The payload of an unmasked text frame.
pub fn text(frame: &[u8]) -> String {
    assert_eq!(frame[0], 0x81, "a final text frame");
    let skip = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    String::from_utf8(frame[skip..].to_vec()).expect("text")
}

/// Publishes plain JSON like any other program.
pub fn foreign(redis: &Redis, channel: &str, payload: &[u8]) -> u64 {
    redis::cmd("PUBLISH").arg(channel).arg(payload).query(&mut redis.client()).expect("PUBLISH works")
}
