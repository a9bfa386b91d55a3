//! A Redis that understands what the uplink says, and fails when it is told to.

use std::collections::{BTreeMap, BTreeSet};

use redis::{Script, Value};

use super::ledger::{Ledger, LedgerCall};
use super::pipe::{Ms, Pipe};
use super::random::Random;
use super::register::{OUTDATED, Operation, Publishes, Register, Reply};
use super::sessions::SessionCall;
use crate::uplink::wire::{Decoder, Inbound};

/// The scripts whose calls are not about presence.
const HISTORY: &str = include_str!("../uplink/history.lua");
const SESSIONS: &str = include_str!("../uplink/sessions.lua");

/// Milliseconds after which what was on its way over a closed connection arrives at the latest.
const LATE: Ms = 2_000;

/// Which of an instance's connections one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Ingress,
    Publisher,
}

/// One connection, with both directions of its socket.
#[derive(Default)]
pub(super) struct Connection {
    owner: Option<(usize, Role)>,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    decoder: Decoder,
    channels: BTreeSet<Vec<u8>>,
    /// The client has given it up: what it had sent is still carried out.
    abandoned: bool,
}

/// Everything that it keeps.
#[derive(Clone, Default)]
struct Data {
    register: Register,
    ledger: Ledger,
}

/// The server.
pub(super) struct RedisModel {
    connections: BTreeMap<u32, Connection>,
    next: u32,
    scripts: BTreeSet<String>,
    data: Data,
    /// States of before, for a replica that lags behind.
    past: Vec<(Ms, Data)>,
    /// Changes with each restart and failover, as `master_replid` does.
    primary: u64,
    /// The name of `history.lua`.
    history: String,
    /// The name of `sessions.lua`.
    sessions: String,
    /// Whether instances are cut off while they have much to say, which then comes late.
    pub(super) rushes: bool,
    /// Calls of it that came too late.
    late_sessions: u64,
    /// Refuses connections until then.
    down_until: Ms,
    /// Refuses writes until then.
    full_until: Ms,
    /// Adds so much to every answer, until then.
    pub(super) slow: (u64, Ms),
    /// Instances that cannot reach it, until then.
    cut_off: BTreeMap<usize, Ms>,
    /// Whether what a connection publishes to itself comes before the reply, as in older versions.
    pushes_first: bool,
    random: Random,
}

impl RedisModel {
    pub(super) fn new(mut random: Random) -> Self {
        Self {
            connections: BTreeMap::new(),
            next: 0,
            scripts: BTreeSet::new(),
            data: Data::default(),
            past: Vec::new(),
            primary: 0,
            history: Script::new(HISTORY).get_hash().to_owned(),
            sessions: Script::new(SESSIONS).get_hash().to_owned(),
            rushes: false,
            late_sessions: 0,
            down_until: 0,
            full_until: 0,
            slow: (0, 0),
            cut_off: BTreeMap::new(),
            pushes_first: random.chance(500),
            random,
        }
    }

    fn is_cut_off(&self, instance: usize, now: Ms) -> bool {
        self.cut_off.get(&instance).is_some_and(|until| *until > now)
    }

    /// A new connection, unless Redis is down or out of reach.
    pub(super) fn connect(&mut self, instance: usize, role: Role, now: Ms) -> Option<u32> {
        if self.down_until > now || self.is_cut_off(instance, now) {
            return None;
        }
        self.next += 1;
        let connection = Connection { owner: Some((instance, role)), ..Connection::default() };
        self.connections.insert(self.next, connection);
        Some(self.next)
    }

    pub(super) fn connection(&mut self, number: u32) -> Option<&mut Connection> {
        self.connections.get_mut(&number)
    }

    /// The client has closed the connection. What is still on its way may come much later, behind what is sent over
    /// the next connection.
    pub(super) fn abandon(&mut self, number: u32, now: Ms) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.abandoned = true;
            if self.random.chance(300) {
                let (held, late) = (connection.up.held_until, self.random.below(LATE));
                // Behind what comes over the next connection, even where a cut was what ended this one.
                let arrival = if self.rushes { held.max(now) + late } else { held.max(now + late) };
                connection.up.held_until = arrival;
            }
        }
    }

    fn latency(&mut self, now: Ms) -> Ms {
        let (more, until) = self.slow;
        let slow = if until > now { more } else { 0 };
        now + slow + self.random.below(3)
    }

    /// Carries out what has arrived.
    pub(super) fn turn(&mut self, now: Ms) {
        if self.past.last().is_none_or(|(at, _)| at + 200 <= now) {
            self.past.push((now, self.data.clone()));
            if self.past.len() > 10 {
                self.past.remove(0);
            }
        }
        let mut numbers: Vec<u32> = self.connections.keys().copied().collect();
        self.random.shuffle(&mut numbers);
        for number in numbers {
            self.serve(number, now);
        }
        self.connections.retain(|_, connection| !(connection.abandoned && connection.up.is_empty()));
    }

    fn serve(&mut self, number: u32, now: Ms) {
        let mut commands = Vec::new();
        let Some(connection) = self.connections.get_mut(&number) else { return };
        while let Some(bytes) = connection.up.receive(now) {
            let read = connection.decoder.feed(&bytes, |inbound| {
                if let Inbound::Reply(Ok(Value::Array(words))) = inbound {
                    commands.push(words);
                }
            });
            read.expect("the uplink speaks RESP");
        }
        for words in commands {
            let words: Vec<Vec<u8>> = words
                .into_iter()
                .map(|word| match word {
                    Value::BulkString(bytes) => bytes,
                    other => panic!("a command consists of strings: {other:?}"),
                })
                .collect();
            self.carry_out(number, &words, now);
        }
    }

    fn carry_out(&mut self, number: u32, words: &[Vec<u8>], now: Ms) {
        let mut reply = Vec::new();
        let mut publishes = Vec::new();
        match &words[0][..] {
            b"HELLO" | b"SELECT" | b"CLIENT" | b"PING" => reply.extend_from_slice(b"+OK\r\n"),
            b"SUBSCRIBE" | b"UNSUBSCRIBE" => self.subscribe(number, words, &mut reply),
            b"PUBLISH" => {
                let receivers = self.connections.values().filter(|other| other.channels.contains(&words[1]));
                reply.extend_from_slice(format!(":{}\r\n", receivers.count()).as_bytes());
                publishes.push((words[1].clone(), words[2].clone()));
            }
            b"EVAL" | b"EVALSHA" => publishes = self.evaluate(words, now, &mut reply),
            other => panic!("unknown command {}", String::from_utf8_lossy(other)),
        }
        if self.pushes_first {
            self.publish(&publishes, now);
            self.answer(number, &reply, now);
        } else {
            // Others may get it sooner or later than the caller its reply: other connections anyway.
            self.answer(number, &reply, now);
            self.publish(&publishes, now);
        }
    }

    fn answer(&mut self, number: u32, reply: &[u8], now: Ms) {
        let due = self.latency(now);
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.down.send(reply, due, &mut self.random);
        }
    }

    fn subscribe(&mut self, number: u32, words: &[Vec<u8>], reply: &mut Vec<u8>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let subscribe = words[0] == b"SUBSCRIBE";
        for channel in &words[1..] {
            let kind = if subscribe { "subscribe" } else { "unsubscribe" };
            if subscribe {
                connection.channels.insert(channel.clone());
            } else {
                connection.channels.remove(channel);
            }
            reply.extend_from_slice(
                format!(">3\r\n${}\r\n{kind}\r\n${}\r\n", kind.len(), channel.len()).as_bytes(),
            );
            reply.extend_from_slice(channel);
            reply.extend_from_slice(format!("\r\n:{}\r\n", connection.channels.len()).as_bytes());
        }
    }

    fn publish(&mut self, publishes: &[(Vec<u8>, Vec<u8>)], now: Ms) {
        for (channel, payload) in publishes {
            let mut push = format!(">3\r\n$7\r\nmessage\r\n${}\r\n", channel.len()).into_bytes();
            push.extend_from_slice(channel);
            push.extend_from_slice(format!("\r\n${}\r\n", payload.len()).as_bytes());
            push.extend_from_slice(payload);
            push.extend_from_slice(b"\r\n");
            let due = self.latency(now);
            for connection in self.connections.values_mut() {
                if connection.channels.contains(channel) {
                    connection.down.send(&push, due, &mut self.random);
                }
            }
        }
    }

    /// Runs a script.
    fn evaluate(&mut self, words: &[Vec<u8>], now: Ms, reply: &mut Vec<u8>) -> Publishes {
        let mut named = String::from_utf8_lossy(&words[1]).into_owned();
        if words[0] == b"EVAL" {
            named = Script::new(&named).get_hash().to_owned();
            self.scripts.insert(named.clone());
        } else if !self.scripts.contains(&named) {
            reply.extend_from_slice(b"-NOSCRIPT No matching script. Please use EVAL.\r\n");
            return Vec::new();
        }
        let (full, arguments) = (self.full_until > now, &words[3..]);
        if named == self.history {
            let (ledger, primary) = (&mut self.data.ledger, self.primary);
            let mut call = LedgerCall { ledger, arguments, now, primary, full, publishes: Vec::new() };
            match call.run() {
                Ok(answer) => answer.write(reply),
                Err(error) => reply.extend_from_slice(format!("-{error}\r\n").as_bytes()),
            }
            return call.publishes;
        }
        let register = &mut self.data.register;
        if named == self.sessions {
            let connections = &self.connections;
            let is_heard =
                |channel: &[u8]| connections.values().any(|other| other.channels.contains(channel));
            let mut call =
                SessionCall { register, arguments, full, is_heard: &is_heard, publishes: Vec::new() };
            let answer = call.run();
            self.late_sessions += u64::from(matches!(answer, Reply::Error(OUTDATED)));
            answer.write(reply);
            return call.publishes;
        }
        let mut operation = Operation { register, arguments, now, publishes: Vec::new() };
        if full && operation.writes() {
            reply.extend_from_slice(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n");
            return Vec::new();
        }
        operation.run().write(reply);
        operation.publishes
    }

    /// What is kept of the rooms with history.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.data.ledger
    }

    /// How many connections each user has on an instance, as they are counted.
    pub(super) fn sessions(&self, instance: &str) -> BTreeMap<String, usize> {
        let users = self.data.register.sessions.get(instance).into_iter().flatten();
        users.map(|(user, list)| (user.clone(), list.matches(' ').count())).collect()
    }

    /// How many calls about them came over a connection that was given up, behind the registration over the next one.
    pub(super) fn late_sessions(&self) -> u64 {
        self.late_sessions
    }
}

/// What can go wrong with it.
impl RedisModel {
    /// Ends connections of `instance`, or all; of one role, or both.
    pub(super) fn drop_connections(&mut self, instance: Option<usize>, role: Option<Role>, now: Ms) {
        for connection in self.connections.values_mut() {
            let hit = connection.owner.is_some_and(|(owner, its_role)| {
                instance.is_none_or(|instance| instance == owner) && role.is_none_or(|role| role == its_role)
            });
            if hit {
                connection.up.break_off(now);
                connection.down.break_off(now);
                connection.channels.clear();
            }
        }
    }

    /// Everything is gone; back after a while.
    pub(super) fn restart_empty(&mut self, until: Ms, now: Ms) {
        self.drop_connections(None, None, now);
        (self.data, self.past) = (Data::default(), Vec::new());
        self.primary += 1;
        self.scripts.clear();
        self.down_until = until;
    }

    /// A replica takes over that had not heard of the latest writes.
    pub(super) fn fail_over(&mut self, until: Ms, now: Ms) {
        self.drop_connections(None, None, now);
        if !self.past.is_empty() {
            let place = self.random.below(self.past.len() as u64) as usize;
            self.data = self.past[place].1.clone();
        }
        self.primary += 1;
        self.past.clear();
        self.scripts.clear();
        self.down_until = until;
    }

    /// Some streams are evicted.
    pub(super) fn evict(&mut self) {
        let random = &mut self.random;
        self.data.ledger.evict(|| random.chance(500));
    }

    pub(super) fn forget_scripts(&mut self) {
        self.scripts.clear();
    }

    pub(super) fn fill_up(&mut self, until: Ms) {
        self.full_until = until;
    }

    /// No byte passes between the instance and Redis for a while.
    pub(super) fn cut_off(&mut self, instance: usize, until: Ms) {
        self.cut_off.insert(instance, until);
        for connection in self.connections.values_mut() {
            if connection.owner.is_some_and(|(owner, _)| owner == instance) {
                connection.up.held_until = until;
                connection.down.held_until = until;
            }
        }
    }

    /// Everything is put right.
    pub(super) fn heal(&mut self) {
        (self.down_until, self.full_until, self.slow) = (0, 0, (0, 0));
        self.cut_off.clear();
        for connection in self.connections.values_mut() {
            (connection.up.held_until, connection.down.held_until) = (0, 0);
        }
    }
}
