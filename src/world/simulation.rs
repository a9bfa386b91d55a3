//! One world from its beginning to its judgement.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checker::Checker;
use checker::record::{Final, Member, Message, Position, Record, Room};
use checker::violation::Violation;

use super::client::{self, Client, Notes};
use super::fault::Fault;
use super::host::{Host, Socket, Sockets};
use super::ledger::Entry;
use super::pipe::Ms;
use super::random::Random;
use super::redis::{RedisModel, Role};
use super::uplink::Clock;
use crate::command::authorize::TokenVerifier;
use crate::config::{HistorySettings, RedisSettings, RoomPattern, Settings};
use crate::identity::InstanceId;

const HOSTS: usize = 3;
const SHARDS: usize = 4;
const CLIENTS: u32 = 50;
const ROOMS: u64 = 8;
/// Of these, the first ones with history.
const WITH_HISTORY: u32 = 5;

/// Connections that a user may have: more than there ever are, and so they are counted.
const CONNECTIONS_PER_USER: u32 = 100;

/// Milliseconds in which everything comes up undisturbed.
const BEGINNING: Ms = 2_000;
/// Milliseconds in which things go wrong.
const SAFETY: Ms = 15_000;
/// Milliseconds in which everything must become well, and then stay so while messages are still sent.
const LIVENESS: Ms = 14_000;
/// Milliseconds of those after which nothing more is told about the faults.
const SETTLED: Ms = 8_000;
/// Milliseconds without new messages at the end.
const QUIET: Ms = 11_000;

const SECRET: &str = "a-secret-of-at-least-32-bytes-for-tests";

/// A fault of the test itself: what a client is given is changed on the way to the checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    Drop,
    Duplicate,
    Swap,
    Fork,
}

/// What became of a world.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) violations: Vec<Violation>,
    /// Rooms in which a member was told a wrong count at the end: room, told, right.
    pub(super) wrong_counts: Vec<(Room, u64, u64)>,
    /// Who holds the wrong users as present at the end, by what it was told without asking: in words.
    pub(super) wrong_presence: Vec<String>,
    /// Users whose connections are counted wrongly at the end: in words.
    pub(super) wrong_sessions: Vec<String>,
    /// Calls about them that came too late.
    pub(super) late_sessions: u64,
    /// All that happened to the clients, in one number.
    pub(super) trace: u64,
    pub(super) received: u64,
    /// Batches that hosts have taken from others' lanes, those of killed ones left out.
    pub(super) over_lanes: u64,
    pub(super) faults: Vec<(Ms, Fault)>,
    /// What happened in the room that was asked for.
    pub(super) log: Vec<String>,
}

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        let told = self.wrong_counts.is_empty() && self.wrong_presence.is_empty();
        self.violations.is_empty() && told && self.wrong_sessions.is_empty()
    }
}

pub(super) struct Simulation {
    random: Random,
    clock: Clock,
    settings: Vec<Settings>,
    verifier: Arc<TokenVerifier>,
    redis: RedisModel,
    hosts: Vec<Option<Host>>,
    /// When a killed host comes back.
    back_at: [Ms; HOSTS],
    sockets: Sockets,
    next_socket: u32,
    clients: Vec<Client>,
    checker: Checker,
    /// Acknowledged messages that their host may not have passed on yet: host, when, room, message.
    unsure: Vec<(usize, Ms, Room, Message)>,
    /// Clients whose host was killed: acknowledgements that still reach them are as unsure.
    orphans: BTreeSet<usize>,
    trace: std::hash::DefaultHasher,
    /// Takes effect once, when all is well again and nothing else explains it.
    plant: Option<Plant>,
    kept_back: Option<Record>,
    /// Members of rooms with history that were told of a loss, and not where their room goes on: what they do not get
    /// after that need not be a fault.
    unplaced: BTreeSet<(Member, Room)>,
    received: u64,
    wrong_presence: Vec<String>,
    faults: Vec<(Ms, Fault)>,
    fault_at: Ms,
    /// Clients come and go until then.
    rush_until: Ms,
    logged: Option<Room>,
    log: Vec<String>,
}

impl Simulation {
    /// Runs the world of `seed`. `base` is any instant: the made-up clock counts from there.
    pub(super) fn run(seed: u64, base: Instant, plant: Option<Plant>) -> Outcome {
        Self::new(seed, base, plant).live()
    }

    /// As [`Self::run`], and tells in [`Outcome::log`] what happened in one room.
    pub(super) fn run_logged(seed: u64, base: Instant, room: Room) -> Outcome {
        Self { logged: Some(room), ..Self::new(seed, base, None) }.live()
    }

    /// As [`Self::run`], and every other fault is a rush.
    pub(super) fn run_with_rushes(seed: u64, base: Instant) -> Outcome {
        let mut world = Self::new(seed, base, None);
        world.redis.rushes = true;
        world.live()
    }

    fn live(mut self) -> Outcome {
        let world = &mut self;
        let (healed, quiet) = (BEGINNING + SAFETY, BEGINNING + SAFETY + LIVENESS);
        let end = quiet + QUIET;
        world.checker.record(0, Record::FaultsBegin);
        let mut asked = false;
        while world.clock.now < end {
            let before = world.clock.now;
            world.clock.now += world.random.within(1..10);
            let now = world.clock.now;
            if (BEGINNING..healed).contains(&now) {
                world.go_wrong();
            } else if now >= healed && before < healed {
                world.heal();
            }
            world.bring_back();
            world.redis.turn(now);
            world.turn_hosts();
            world.turn_clients(now < quiet, now < healed);
            if now + 1_000 >= end && !std::mem::replace(&mut asked, true) {
                world.ask_for_members();
            }
        }
        self.judge()
    }

    fn new(seed: u64, base: Instant, plant: Option<Plant>) -> Self {
        let mut random = Random::new(seed);
        let clock = Clock { base, now: 0 };
        let settings: Vec<_> = {
            let kept =
                (random.within(10..200) as usize, Duration::from_millis(random.within(3_000..300_000)));
            (0..HOSTS).map(|host| settings(host, kept)).collect()
        };
        let verifier = Arc::new(TokenVerifier::new(&settings[0]).expect("a secret is set"));
        let hosts = (0..HOSTS)
            .map(|number| Some(Host::new(number, &settings[number], &verifier, &mut random, clock)))
            .collect();
        let clients = (0..CLIENTS).map(|number| {
            let mut client = Client::new(Member(number), token(number), random.within(100..1_500));
            for _ in 0..random.within(1..4) {
                client.join(Room(random.below(ROOMS) as u32), random.chance(300));
            }
            client
        });
        let clients = clients.collect();
        let redis = RedisModel::new(Random::new(random.next()));
        Self {
            random,
            clock,
            settings,
            verifier,
            redis,
            hosts,
            back_at: [0; HOSTS],
            sockets: Sockets::new(),
            next_socket: 0,
            clients,
            checker: Checker::new(),
            unsure: Vec::new(),
            orphans: BTreeSet::new(),
            trace: std::hash::DefaultHasher::new(),
            plant,
            kept_back: None,
            unplaced: BTreeSet::new(),
            received: 0,
            wrong_presence: Vec::new(),
            faults: Vec::new(),
            fault_at: 0,
            rush_until: 0,
            logged: None,
            log: Vec::new(),
        }
    }

    // ── what goes wrong ───────────────────────────────────────────────────────────────────

    fn go_wrong(&mut self) {
        let now = self.clock.now;
        if now < self.rush_until && self.random.chance(20) {
            self.drop_clients(10);
        }
        if self.fault_at == 0 {
            self.fault_at = now + self.random.below(2_000);
        }
        if now < self.fault_at {
            return;
        }
        self.fault_at = now + self.random.within(100..4_000);
        let fault = match self.redis.rushes && self.random.chance(500) {
            true => Fault::draw_rush(&mut self.random),
            false => Fault::draw(&mut self.random),
        };
        self.faults.push((now, fault));
        match fault {
            Fault::LinkDropped { host, ingress, publisher } => {
                for (role, hit) in [(Role::Ingress, ingress), (Role::Publisher, publisher)] {
                    if hit {
                        self.redis.drop_connections(host, Some(role), now);
                    }
                }
            }
            Fault::RedisSlow { by, lasts } => self.redis.slow = (by, now + lasts),
            Fault::RedisEmpty { lasts } => self.redis.restart_empty(now + lasts, now),
            Fault::RedisFailover { lasts } => self.redis.fail_over(now + lasts, now),
            Fault::StreamsEvicted => self.redis.evict(),
            Fault::ScriptsForgotten => self.redis.forget_scripts(),
            Fault::RedisFull { lasts } => self.redis.fill_up(now + lasts),
            Fault::CutOff { host, lasts } => self.redis.cut_off(host, now + lasts),
            Fault::Rush { host, lasts } => {
                self.redis.cut_off(host, now + lasts);
                self.rush_until = now + lasts;
            }
            Fault::Killed { host, lasts } => self.kill(host, now + lasts),
            Fault::ShardStalled { host, shard, lasts } => {
                if let Some(host) = &mut self.hosts[host] {
                    host.stall(shard, now + lasts);
                }
            }
            Fault::ClientsDropped { every } => self.drop_clients(every),
            Fault::ReaderStalled { client, lasts } => {
                let client = &self.clients[client % self.clients.len()];
                if let Some(socket) = client.socket.and_then(|socket| self.sockets.get_mut(&socket)) {
                    socket.down.held_until = now + lasts;
                }
            }
        }
    }

    fn kill(&mut self, number: usize, back_at: Ms) {
        let Some(mut host) = self.hosts[number].take() else { return };
        host.die(&mut self.sockets, &mut self.redis, self.clock);
        self.back_at[number] = back_at;
        let places = self.clients.iter().enumerate();
        let cut_off = places.filter(|(_, client)| client.host == number && client.socket.is_some());
        self.orphans.extend(cut_off.map(|(place, _)| place));
        // What a process had acknowledged and not yet passed on is lost with it.
        for (_, _, room, message) in self.unsure.extract_if(.., |(host, ..)| *host == number) {
            self.checker.record(self.clock.now, Record::Doubted { room, message });
        }
    }

    fn bring_back(&mut self) {
        for number in 0..HOSTS {
            if self.hosts[number].is_none() && self.back_at[number] <= self.clock.now {
                let settings = &self.settings[number];
                let host = Host::new(number, settings, &self.verifier, &mut self.random, self.clock);
                self.hosts[number] = Some(host);
            }
        }
    }

    fn drop_clients(&mut self, every: u64) {
        for place in 0..self.clients.len() {
            if self.random.below(every) == 0 && self.clients[place].socket.is_some() {
                let until = self.clock.now + self.random.below(1_000);
                let mut notes = Notes::new();
                self.clients[place].part(&mut self.sockets, until, self.clock.now, &mut notes);
                self.note(place, notes);
            }
        }
    }

    fn heal(&mut self) {
        self.redis.heal();
        self.back_at = [0; HOSTS];
        for socket in self.sockets.values_mut() {
            (socket.up.held_until, socket.down.held_until) = (0, 0);
        }
        self.checker.record(self.clock.now, Record::FaultsEnd);
    }

    // ── what goes on ──────────────────────────────────────────────────────────────────────

    fn turn_hosts(&mut self) {
        let mut order: Vec<_> = (0..HOSTS).collect();
        self.random.shuffle(&mut order);
        let now = self.clock.now;
        for number in order {
            let Some(host) = &mut self.hosts[number] else { continue };
            host.turn(&mut self.redis, &mut self.sockets, &mut self.random, self.clock);
            if host.uplink.is_drained() && !host.instance.is_degraded() {
                self.unsure.retain(|(sender, at, ..)| *sender != number || *at + 1_000 > now);
            }
        }
    }

    fn turn_clients(&mut self, talking: bool, roaming: bool) {
        let now = self.clock.now;
        for place in 0..self.clients.len() {
            let mut notes = Notes::new();
            if self.clients[place].wants_to_connect(now) {
                self.connect(place);
            }
            let client = &mut self.clients[place];
            client.turn(&mut self.sockets, &mut self.random, now, &mut notes);
            if talking
                && self.random.chance(2)
                && let Some(room) = client.some_room(&mut self.random)
            {
                for _ in 0..self.random.within(1..4) {
                    client.publish(room, &mut notes);
                }
            }
            if roaming && self.random.below(4_000) == 0 {
                client.join(Room(self.random.below(ROOMS) as u32), self.random.chance(300));
            }
            if roaming
                && self.random.below(4_000) == 0
                && let Some(room) = client.some_room(&mut self.random)
            {
                client.leave(room);
            }
            self.note(place, notes);
        }
        let used: BTreeSet<_> = self.clients.iter().filter_map(|client| client.socket).collect();
        self.sockets.retain(|number, socket| used.contains(number) || !socket.up.has_ended(now));
    }

    fn connect(&mut self, place: usize) {
        let number = self.random.below(HOSTS as u64) as usize;
        self.next_socket += 1;
        let socket = self.next_socket;
        let accepted =
            self.hosts[number].as_mut().is_some_and(|host| host.accept(socket, &mut self.random, self.clock));
        if accepted {
            self.sockets.insert(socket, Socket::default());
            self.clients[place].connected(socket, number);
            self.orphans.remove(&place);
        } else {
            let until = self.clock.now + self.random.within(100..500);
            self.clients[place].refused(until);
        }
    }

    /// Tells the checker what a client has lived through, with what the test has planted.
    fn note(&mut self, place: usize, notes: Notes) {
        let (now, host) = (self.clock.now, self.clients[place].host);
        for record in notes {
            if self.logged.is_some_and(|room| {
                matches!(record, Record::Closed { .. })
                    || format!("{record:?}").contains(&format!("{room:?}"))
            }) {
                self.log.push(format!("{now:>6} ms at host {host}: {record:?}"));
            }
            self.trace.write_u64(now);
            self.trace.write(format!("{record:?}").as_bytes());
            if let Record::Acked { room, message, offset: None } = record
                && room.0 >= WITH_HISTORY
            {
                if self.orphans.contains(&place) {
                    continue;
                }
                self.unsure.push((host, now, room, message));
            }
            match record {
                Record::Resynced { member, room, position: None } if room.0 < WITH_HISTORY => {
                    self.unplaced.insert((member, room));
                }
                Record::Joined { member, room, .. } | Record::Resynced { member, room, .. } => {
                    self.unplaced.remove(&(member, room));
                }
                _ => {}
            }
            self.received += u64::from(matches!(record, Record::Received { .. }));
            match self.plant {
                Some(plant) if matches!(record, Record::Received { .. }) => self.spoil(plant, record),
                _ => self.checker.record(now, record),
            }
        }
    }

    fn spoil(&mut self, plant: Plant, record: Record) {
        let now = self.clock.now;
        let Record::Received { member, room, offset, message } = record else { return };
        if now < BEGINNING + SAFETY + SETTLED || self.unplaced.contains(&(member, room)) {
            return self.checker.record(now, record);
        }
        match plant {
            Plant::Drop => {}
            Plant::Duplicate => {
                self.checker.record(now, record.clone());
                self.checker.record(now, record);
            }
            Plant::Swap => match &self.kept_back {
                // Until the same member hears of the same sender again.
                None => {
                    self.kept_back = Some(record);
                    return;
                }
                Some(Record::Received { member: who, room: wher, message: first, .. })
                    if *who == member && *wher == room && first.sender == message.sender =>
                {
                    let first = self.kept_back.take();
                    self.checker.record(now, record);
                    first.into_iter().for_each(|first| self.checker.record(now, first));
                }
                Some(_) => return self.checker.record(now, record),
            },
            Plant::Fork => {
                let other =
                    Message { sender: Member(message.sender.0 ^ 1), number: message.number + 1_000_000 };
                self.checker.record(now, Record::Received { member, room, offset, message: other });
            }
        }
        self.plant = None;
    }

    // ── the judgement ─────────────────────────────────────────────────────────────────────

    /// Looks at who is held as present, and then lets everyone ask.
    fn ask_for_members(&mut self) {
        for client in self.clients.iter().filter(|client| client.is_open()) {
            for room in client.wishes.keys() {
                let others = self.clients.iter().filter(|other| other.member != client.member);
                let right = others.filter(|other| other.wishes.contains_key(room));
                let right: BTreeSet<_> = right.map(|other| format!("u{}", other.member.0)).collect();
                let mut held = client.present.get(room).cloned().flatten().unwrap_or_default();
                held.remove(&format!("u{}", client.member.0));
                if held != right {
                    let (missing, gone): (Vec<_>, Vec<_>) =
                        (right.difference(&held).collect(), held.difference(&right).collect());
                    let (member, host) = (client.member, client.host);
                    self.wrong_presence.push(format!(
                        "{member} at host {host} in {room}: lacks {missing:?}, still has {gone:?}"
                    ));
                }
            }
        }
        for client in self.clients.iter_mut().filter(|client| client.is_open()) {
            client.counts.clear();
            for room in client.wishes.keys().copied().collect::<Vec<_>>() {
                client.ask_for_members(room);
            }
        }
    }

    fn judge(self) -> Outcome {
        let finals = finals(&self.redis);
        let mut wrong_counts = Vec::new();
        for client in &self.clients {
            for (room, told) in &client.counts {
                let right =
                    self.clients.iter().filter(|client| client.wishes.contains_key(room)).count() as u64;
                if *told != right && !wrong_counts.contains(&(*room, *told, right)) {
                    wrong_counts.push((*room, *told, right));
                }
            }
        }
        Outcome {
            wrong_sessions: self.wrong_sessions(),
            late_sessions: self.redis.late_sessions(),
            violations: self.checker.finish(self.clock.now, &finals),
            wrong_counts,
            trace: self.trace.finish(),
            received: self.received,
            wrong_presence: self.wrong_presence,
            over_lanes: self.hosts.iter().flatten().map(Host::over_lanes).sum(),
            faults: self.faults,
            log: self.log,
        }
    }
}

impl Simulation {
    /// What Redis counts of users' connections and is not so. While it had no memory, it may have counted too few.
    fn wrong_sessions(&self) -> Vec<String> {
        let too_few_may_be = self.faults.iter().any(|(_, fault)| matches!(fault, Fault::RedisFull { .. }));
        let mut wrong = Vec::new();
        for (number, settings) in self.settings.iter().enumerate() {
            let mut right: BTreeMap<String, usize> = BTreeMap::new();
            for client in self.clients.iter().filter(|client| client.is_open() && client.host == number) {
                *right.entry(format!("u{}", client.member.0)).or_default() += 1;
            }
            let counted = self.redis.sessions(settings.instance_id.as_str());
            let users: BTreeSet<_> = right.keys().chain(counted.keys()).collect();
            for user in users {
                let [right, counted] =
                    [&right, &counted].map(|users| users.get(user).copied().unwrap_or_default());
                if counted > right || (counted < right && !too_few_may_be) {
                    wrong.push(format!("{user} has {right} connections to host {number}, {counted} count"));
                }
            }
        }
        wrong
    }
}

/// The rooms' histories as Redis has them.
fn finals(redis: &RedisModel) -> Vec<Final> {
    let number = |room: &str| room.strip_prefix('r').and_then(|number| number.parse().ok());
    let room = |(name, epoch, offset, kept): (&str, u64, u64, Vec<(u64, &Entry)>)| {
        let messages = kept.into_iter().map(|(offset, entry)| (offset, client::message_in(&entry.event)));
        let position = Position { epoch, offset };
        Final {
            room: Room(number(name).expect("rooms have numbers")),
            position,
            messages: messages.collect(),
        }
    };
    redis.ledger().rooms().map(room).collect()
}

fn token(member: u32) -> String {
    let claims = serde_json::json!({ "sub": format!("u{member}"), "exp": u32::MAX });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("HS256 needs only a secret")
}

fn settings(host: usize, (size, ttl): (usize, Duration)) -> Settings {
    let mut settings = Settings::for_tests();
    settings.instance_id = InstanceId::parse(&format!("i{host}")).expect("a valid name");
    settings.shards = SHARDS;
    settings.jwt_secret = Some(SECRET.to_owned());
    settings.message_rate = 0;
    settings.limits.max_connections_per_user = CONNECTIONS_PER_USER;
    let room = |number| RoomPattern::parse(&format!("r{number}")).expect("a room's name");
    let rooms = (0..WITH_HISTORY).map(room).collect();
    settings.history = HistorySettings { rooms, size, ttl, memory: 1 << 20, page: 100 };
    settings.redis = Some(RedisSettings {
        host: "redis".into(),
        port: 6379,
        username: None,
        password: None,
        tls: false,
        ca_file: None,
        cert_file: None,
        key_file: None,
        db: 0,
        prefix: "w:".into(),
        timeout: Duration::from_secs(1),
        batch_age: Duration::from_millis(1),
        batch_bytes: 64 << 10,
        batch_compress_bytes: 1 << 10,
        lane_peers: 16,
        heartbeat_interval: Duration::from_secs(1),
        cleanup_interval: Duration::from_secs(2),
        inactive_threshold: Duration::from_secs(5),
        counts_connections: true,
    });
    settings
}
