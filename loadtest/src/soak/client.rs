//! A client: keeps to its rooms, comes back, and notes what it lives through.

use std::collections::{BTreeMap, BTreeSet};

use checker::record::{Member, Message, Position, Record, Recovery, Room};
use fastrand::Rng;
use serde_json::{Value, json};

use crate::Ms;
use crate::socket::{Incoming, Socket};
use crate::tally::{Tally, count};

/// Milliseconds for a server to answer the upgrade.
const HANDSHAKE: Ms = 4_000;

/// Milliseconds after which a join that was not answered is asked for again, by another connection.
const JOIN: Ms = 8_000;

/// What a client wants of a room, and what it knows of it.
#[derive(Clone, Copy, Debug)]
struct Wish {
    echo: bool,
    /// Up to where it has read, in a room with history.
    since: Option<Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away { until: Ms, by_choice: bool },
    Greeting { since: Ms },
    Open,
}

/// What a client notes.
pub(crate) type Notes = Vec<Record>;

/// A message that came, and what its sender put into it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) room: Room,
    /// When it was sent.
    pub(crate) sent: Ms,
    /// By way of which host.
    pub(crate) host: usize,
}

pub(crate) struct Client {
    pub(crate) member: Member,
    token: String,
    state: State,
    socket: Option<Socket>,
    /// The host that it is, or was last, connected to.
    pub(crate) host: usize,
    /// The how-manieth process of the host it is connected to.
    pub(crate) process: u32,
    session: u32,
    /// Does not read before this time.
    pub(crate) reads_from: Ms,
    wishes: BTreeMap<Room, Wish>,
    inside: BTreeSet<Room>,
    leaving: BTreeSet<Room>,
    /// Messages sent to each room.
    sent: BTreeMap<Room, u64>,
    /// Joins to be asked for again.
    again: Vec<(Ms, Room)>,
    /// Joins that were asked for and not answered.
    asked: BTreeMap<Room, Ms>,
    /// Messages whose outcome is not known, and when to send them again once the room is joined.
    unknown: BTreeMap<(Room, u64), Ms>,
    unanswered: BTreeSet<(Room, u64)>,
    /// How many are in a room, as it was last told on asking.
    pub(crate) counts: BTreeMap<Room, u64>,
    pub(crate) heard: Vec<Heard>,
}

impl Client {
    pub(crate) fn new(member: Member, token: String, until: Ms) -> Self {
        Self {
            member,
            token,
            state: State::Away { until, by_choice: true },
            socket: None,
            host: 0,
            process: 0,
            session: 0,
            reads_from: 0,
            wishes: BTreeMap::new(),
            inside: BTreeSet::new(),
            leaving: BTreeSet::new(),
            sent: BTreeMap::new(),
            again: Vec::new(),
            asked: BTreeMap::new(),
            unknown: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            counts: BTreeMap::new(),
            heard: Vec::new(),
        }
    }

    pub(crate) fn wants_to_connect(&self, now: Ms) -> bool {
        matches!(self.state, State::Away { until, .. } if until <= now)
    }

    /// Whether it is away because it wants to be.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.state, State::Away { by_choice: true, .. })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Comes back soon, if it is away.
    pub(crate) fn recall(&mut self, at: Ms) {
        if let State::Away { until, by_choice } = &mut self.state {
            (*until, *by_choice) = (at.min(*until), false);
        }
    }

    pub(crate) fn wishes(&self) -> impl Iterator<Item = Room> {
        self.wishes.keys().copied()
    }

    pub(crate) fn is_inside(&self, room: Room) -> bool {
        self.inside.contains(&room)
    }

    pub(crate) fn socket(&self) -> Option<&Socket> {
        self.socket.as_ref()
    }

    /// Connects to a host, or tries again at `again`.
    pub(crate) fn connect(
        &mut self,
        host: usize,
        (port, process): (u16, u32),
        (now, again): (Ms, Ms),
    ) -> bool {
        let Some(socket) = Socket::open(port, &self.token) else {
            self.state = State::Away { until: again, by_choice: false };
            return false;
        };
        (self.host, self.process, self.socket) = (host, process, Some(socket));
        (self.state, self.reads_from) = (State::Greeting { since: now }, 0);
        self.session += 1;
        true
    }

    /// The connection is over, by whoever's doing; what is left of it.
    pub(crate) fn part(&mut self, until: Ms, by_choice: bool, now: Ms, notes: &mut Notes) -> Option<Socket> {
        let member = self.member;
        notes.push(Record::Closed { member });
        notes.extend(std::mem::take(&mut self.leaving).into_iter().map(|room| Record::Left { member, room }));
        self.state = State::Away { until, by_choice };
        self.inside.clear();
        self.again.clear();
        self.asked.clear();
        // Only in a room with history may a message be sent twice.
        let kept = std::mem::take(&mut self.unanswered);
        let numbered = |room: &Room| self.wishes.get(room).is_some_and(|wish| wish.since.is_some());
        self.unknown.extend(kept.into_iter().filter(|(room, _)| numbered(room)).map(|key| (key, now)));
        self.socket.take()
    }

    /// Messages without an answer.
    pub(crate) fn unanswered(&self) -> u64 {
        self.unanswered.len() as u64
    }

    fn say(&mut self, message: &Value) {
        if let Some(socket) = &mut self.socket {
            socket.say(&message.to_string());
        }
    }

    fn wish_as_json(&self, room: Room) -> Option<Value> {
        let wish = self.wishes.get(&room)?;
        let mut json = json!({"roomId": room_name(room), "echo": wish.echo});
        if let Some(since) = wish.since {
            json["since"] = json!({"epoch": format!("{:016x}", since.epoch), "offset": since.offset});
        }
        Some(json)
    }

    fn ask_to_join(&mut self, room: Room, now: Ms) {
        let Some(mut message) = self.wish_as_json(room) else { return };
        message["type"] = "join_room".into();
        message["messageId"] = format!("j{}", room.0).into();
        self.asked.insert(room, now);
        self.say(&message);
    }

    pub(crate) fn join(&mut self, room: Room, echo: bool, now: Ms) {
        if self.wishes.contains_key(&room) || self.leaving.contains(&room) {
            return;
        }
        self.wishes.insert(room, Wish { echo, since: None });
        if self.is_open() {
            self.ask_to_join(room, now);
        }
    }

    pub(crate) fn leave(&mut self, room: Room) {
        if self.is_open() && self.inside.remove(&room) {
            self.wishes.remove(&room);
            self.leaving.insert(room);
            let (name, id) = (room_name(room), format!("l{}", room.0));
            self.say(&json!({"type": "leave_room", "roomId": name, "messageId": id}));
        }
    }

    pub(crate) fn ask_for_members(&mut self, room: Room) {
        let (name, id) = (room_name(room), format!("w{}", room.0));
        self.say(&json!({"type": "room_members", "roomId": name, "messageId": id}));
    }

    /// A room that it is in, at random.
    pub(crate) fn some_room(&self, random: &mut Rng) -> Option<Room> {
        let count = self.inside.len();
        (self.is_open() && count > 0)
            .then(|| self.inside.iter().nth(random.usize(..count)).copied())
            .flatten()
    }

    pub(crate) fn publish(&mut self, room: Room, now: Ms, notes: &mut Notes) {
        let number = *self.sent.entry(room).and_modify(|number| *number += 1).or_insert(0);
        self.send(room, number, now, notes);
    }

    fn send(&mut self, room: Room, number: u64, now: Ms, notes: &mut Notes) {
        let message = Message { sender: self.member, number };
        notes.push(Record::Sent { room, message, session: self.session });
        self.unanswered.insert((room, number));
        let data = json!({"s": self.member.0, "n": number, "h": self.host, "t": now});
        let (name, id) = (room_name(room), format!("m{}.{number}", room.0));
        self.say(&json!({"type": "room_message", "roomId": name, "messageId": id, "data": data}));
    }

    fn send_again(&mut self, now: Ms, tally: &mut Tally, notes: &mut Notes) {
        if !self.is_open() || self.unknown.is_empty() {
            return;
        }
        let inside = &self.inside;
        let due = self.unknown.iter().filter(|((room, _), at)| **at <= now && inside.contains(room));
        for (room, number) in due.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.unknown.remove(&(room, number));
            tally.sent_again += 1;
            self.send(room, number, now, notes);
        }
    }

    /// Reads what has come and sends what is due; whether the connection is over.
    pub(crate) fn turn(&mut self, now: Ms, random: &mut Rng, tally: &mut Tally, notes: &mut Notes) -> bool {
        let mut incoming = Vec::new();
        let (mut ended, mut closed) = (false, None);
        if now >= self.reads_from {
            let Some(socket) = &mut self.socket else { return false };
            ended = socket.receive(&mut incoming);
            for one in incoming {
                match one {
                    Incoming::Message(value) if closed.is_none() => {
                        self.heard(&value, random, now, tally, notes);
                    }
                    Incoming::Message(_) => {}
                    Incoming::Close(code) => closed = closed.or(Some(code)),
                }
            }
        }
        for (_, room) in self.again.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.ask_to_join(room, now);
        }
        self.send_again(now, tally, notes);
        if let Some(socket) = &mut self.socket {
            socket.flush();
        }
        let late = matches!(self.state, State::Greeting { since } if now > since + HANDSHAKE)
            || self.asked.values().any(|asked| now > asked + JOIN);
        if ended || late || closed.is_some() {
            let refused = self.socket.as_ref().and_then(|socket| socket.refused);
            let how = match (closed, refused) {
                (Some(code), _) => code.to_string(),
                (None, Some(status)) => format!("HTTP {status}"),
                (None, None) if late && !ended => "given up".to_owned(),
                (None, None) => "cut".to_owned(),
            };
            count(&mut tally.closes, &how);
            return true;
        }
        false
    }

    fn heard(&mut self, value: &Value, random: &mut Rng, now: Ms, tally: &mut Tally, notes: &mut Notes) {
        let room = value["roomId"].as_str().and_then(room_of);
        let member = self.member;
        match (value["type"].as_str().unwrap_or_default(), room) {
            ("connection_established", _) => self.greeted(now, random),
            ("room_joined", Some(room)) => self.joined(room, value, tally, notes),
            ("room_left", Some(room)) => {
                self.leaving.remove(&room);
                notes.push(Record::Left { member, room });
            }
            ("room_message", Some(room)) => {
                tally.deliveries += 1;
                let offset = value["offset"].as_u64();
                notes.push(Record::Received { member, room, offset, message: message_of(value) });
                let number = |field: &str| value["data"][field].as_u64().unwrap_or_default();
                self.heard.push(Heard { room, sent: number("t"), host: number("h") as usize });
                if let (Some(offset), Some(wish)) = (offset, self.wishes.get_mut(&room))
                    && let Some(since) = &mut wish.since
                {
                    since.offset = offset;
                }
            }
            ("room_resync", Some(room)) => {
                count(&mut tally.resyncs, value["reason"].as_str().unwrap_or("none"));
                let position = position_of(value);
                notes.push(Record::Resynced { member, room, position });
                if let Some(wish) = self.wishes.get_mut(&room) {
                    wish.since = position;
                }
            }
            ("message_ack", Some(room)) => {
                if let Some(message) = self.own(value) {
                    tally.acked += 1;
                    self.unanswered.remove(&(room, message.number));
                    notes.push(Record::Acked { room, message, offset: value["offset"].as_u64() });
                }
            }
            ("room_members", Some(room)) => {
                self.counts.insert(room, value["memberCount"].as_u64().unwrap_or_default());
            }
            ("error", _) => self.refused_request(value, random, now, tally, notes),
            _ => {}
        }
    }

    /// Asks for its rooms, one by one or all with one message.
    fn greeted(&mut self, now: Ms, random: &mut Rng) {
        self.state = State::Open;
        let rooms: Vec<_> = self.wishes.keys().copied().collect();
        if random.bool() || rooms.is_empty() {
            return rooms.into_iter().for_each(|room| self.ask_to_join(room, now));
        }
        self.asked.extend(rooms.iter().map(|room| (*room, now)));
        let all: Vec<_> = rooms.into_iter().filter_map(|room| self.wish_as_json(room)).collect();
        self.say(&json!({"type": "resume", "rooms": all, "messageId": "resume"}));
    }

    fn joined(&mut self, room: Room, value: &Value, tally: &mut Tally, notes: &mut Notes) {
        self.asked.remove(&room);
        let Some(wish) = self.wishes.get_mut(&room) else { return };
        tally.joins += 1;
        let position = position_of(value);
        let recovery = match (wish.since, value["recovered"].as_bool()) {
            (Some(since), Some(true)) => {
                let all = value["messages"].as_array().into_iter().flatten();
                let numbered = |one: &Value| (one["offset"].as_u64().unwrap_or_default(), message_of(one));
                let messages: Vec<_> = all.map(numbered).collect();
                tally.recovered += 1;
                tally.recovered_messages += messages.len() as u64;
                Recovery::Full { since, messages }
            }
            (Some(_), _) => {
                count(&mut tally.not_recovered, value["reason"].as_str().unwrap_or("none"));
                Recovery::None
            }
            _ => Recovery::None,
        };
        tally.resumes += u64::from(wish.since.is_some());
        wish.since = position;
        let echo = wish.echo;
        self.inside.insert(room);
        notes.push(Record::Joined { member: self.member, room, echo, position, recovery });
    }

    /// The message of this client that a reply is about.
    fn own(&self, value: &Value) -> Option<Message> {
        let (_, number) = value["messageId"].as_str()?.strip_prefix('m')?.split_once('.')?;
        Some(Message { sender: self.member, number: number.parse().ok()? })
    }

    fn refused_request(
        &mut self,
        value: &Value,
        random: &mut Rng,
        now: Ms,
        tally: &mut Tally,
        notes: &mut Notes,
    ) {
        let id = value["messageId"].as_str().unwrap_or_default();
        let code = value["code"].as_str().unwrap_or_default();
        // A room of a `resume` is named by itself.
        if let Some(room) = value["roomId"].as_str().and_then(room_of).filter(|_| id.is_empty()) {
            count(&mut tally.joins_refused, code);
            self.asked.remove(&room);
            return self.again.push((now + random.u64(200..800), room));
        }
        let number = |text: &str| text.split('.').next().and_then(|number| number.parse().ok()).map(Room);
        let (kind, room) = (id.get(..1).unwrap_or_default(), id.get(1..).and_then(number));
        match (kind, room, self.own(value)) {
            ("m", Some(room), Some(message)) => {
                self.unanswered.remove(&(room, message.number));
                if code == "timeout" {
                    tally.unknown += 1;
                    self.unknown.insert((room, message.number), now + random.u64(100..2_000));
                } else {
                    count(&mut tally.failed, code);
                    notes.push(Record::Failed { room, message });
                }
            }
            ("j", Some(room), _) => {
                count(&mut tally.joins_refused, code);
                self.asked.remove(&room);
                self.again.push((now + random.u64(200..800), room));
            }
            ("w", Some(room), _) => self.ask_for_members(room),
            ("r", ..) => self.again.extend(self.asked.keys().map(|room| (now + 500, *room))),
            _ => panic!("an error that nothing explains: {value}"),
        }
    }
}

/// The message whose event this is.
pub(crate) fn message_of(value: &Value) -> Message {
    let data = &value["data"];
    let sender = Member(data["s"].as_u64().unwrap_or(u64::MAX) as u32);
    Message { sender, number: data["n"].as_u64().unwrap_or_default() }
}

/// The position that a message of the server tells.
pub(crate) fn position_of(value: &Value) -> Option<Position> {
    let epoch = u64::from_str_radix(value["epoch"].as_str()?, 16).ok()?;
    Some(Position { epoch, offset: value["offset"].as_u64()? })
}

/// Whether a room has history: five of eight have.
pub(crate) fn has_history(room: Room) -> bool {
    room.0 % 8 < 5
}

/// What the servers call a room. [`crate::cluster::HISTORY_ROOMS`] matches those with history.
pub(crate) fn room_name(room: Room) -> String {
    format!("{}-{}", if has_history(room) { "h" } else { "p" }, room.0)
}

fn room_of(name: &str) -> Option<Room> {
    name.get(2..)?.parse().ok().map(Room)
}
