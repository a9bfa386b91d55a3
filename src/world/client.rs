//! A client in the world: it speaks WebSocket, keeps to its rooms, comes back, and notes what it lives through.

use std::collections::{BTreeMap, BTreeSet};

use checker::record::{Member, Message, Position, Record, Recovery, Room};
use serde_json::Value;

use super::host::{Socket, Sockets};
use super::pipe::Ms;
use super::random::Random;

/// What a client wants of a room, and what it knows of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    echo: bool,
    /// Up to where it has read, in a room with history.
    since: Option<Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away {
        until: Ms,
    },
    Greeting,
    Open,
    /// The server has said close.
    Closed,
}

pub(super) struct Client {
    pub(super) member: Member,
    token: String,
    state: State,
    pub(super) socket: Option<u32>,
    /// The host that it is connected to.
    pub(super) host: usize,
    session: u32,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    pub(super) wishes: BTreeMap<Room, Wish>,
    inside: BTreeSet<Room>,
    /// Rooms that it has asked to leave.
    leaving: BTreeSet<Room>,
    /// Messages sent to each room.
    sent: BTreeMap<Room, u64>,
    /// Joins to be asked for again.
    again: Vec<(Ms, Room)>,
    /// Messages whose outcome is not known, and when to send them again once the room is joined.
    unknown: BTreeMap<(Room, u64), Ms>,
    /// Messages that wait for their replies.
    unanswered: BTreeSet<(Room, u64)>,
    /// The count and the users in a room, as it was last told on asking.
    pub(super) counts: BTreeMap<Room, u64>,
    /// Who is in its rooms, by the lists that it got and the joins and leaves that it heard of since; nothing while
    /// it waits for a list.
    pub(super) present: BTreeMap<Room, Option<BTreeSet<String>>>,
}

/// What a client notes.
pub(super) type Notes = Vec<Record>;

impl Client {
    pub(super) fn new(member: Member, token: String, until: Ms) -> Self {
        Self {
            member,
            token,
            state: State::Away { until },
            socket: None,
            host: 0,
            session: 0,
            inbox: Vec::new(),
            outbox: Vec::new(),
            wishes: BTreeMap::new(),
            inside: BTreeSet::new(),
            leaving: BTreeSet::new(),
            sent: BTreeMap::new(),
            again: Vec::new(),
            unknown: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            counts: BTreeMap::new(),
            present: BTreeMap::new(),
        }
    }

    pub(super) fn wants_to_connect(&self, now: Ms) -> bool {
        matches!(self.state, State::Away { until } if until <= now)
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(super) fn connected(&mut self, socket: u32, host: usize) {
        (self.state, self.socket, self.host) = (State::Greeting, Some(socket), host);
        self.session += 1;
        self.inbox.clear();
        let request = format!(
            "GET /ws?token={} HTTP/1.1\r\nHost: w\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.token
        );
        self.outbox = request.into_bytes();
    }

    pub(super) fn refused(&mut self, until: Ms) {
        self.state = State::Away { until };
    }

    /// The connection is over, by whoever's doing.
    pub(super) fn part(&mut self, sockets: &mut Sockets, until: Ms, now: Ms, notes: &mut Notes) {
        if let Some(socket) = self.socket.take().and_then(|socket| sockets.get_mut(&socket)) {
            socket.up.finish(now);
            socket.down.break_off(now);
        }
        if self.state != State::Closed {
            notes.push(Record::Closed { member: self.member });
        }
        let member = self.member;
        notes.extend(std::mem::take(&mut self.leaving).into_iter().map(|room| Record::Left { member, room }));
        self.state = State::Away { until };
        self.inside.clear();
        self.again.clear();
        // Only in a room with history may a message be sent twice.
        let kept = std::mem::take(&mut self.unanswered);
        let known = |room: &Room| self.wishes.get(room).is_some_and(|wish| wish.since.is_some());
        self.unknown.extend(kept.into_iter().filter(|(room, _)| known(room)).map(|key| (key, now)));
        self.outbox.clear();
    }

    fn say(&mut self, text: &str) {
        let bytes = text.as_bytes();
        // FIN and text; masked with zeroes, which is a mask like any other.
        match bytes.len() {
            length @ 0..126 => self.outbox.extend_from_slice(&[0x81, 0x80 | length as u8, 0, 0, 0, 0]),
            length => {
                let [high, low] = (length as u16).to_be_bytes();
                self.outbox.extend_from_slice(&[0x81, 0xFE, high, low, 0, 0, 0, 0]);
            }
        }
        self.outbox.extend_from_slice(bytes);
    }

    fn ask_to_join(&mut self, room: Room) {
        let Some(wish) = self.wishes.get(&room) else { return };
        let since = wish.since.map_or(String::new(), |since| {
            format!(r#","since":{{"epoch":"{:016x}","offset":{}}}"#, since.epoch, since.offset)
        });
        let echo = wish.echo;
        let number = room.0;
        self.say(&format!(
            r#"{{"type":"join_room","roomId":"r{number}","echo":{echo},"members":true,"messageId":"j{number}"{since}}}"#
        ));
    }

    pub(super) fn join(&mut self, room: Room, echo: bool) {
        if self.wishes.contains_key(&room) {
            return;
        }
        self.wishes.insert(room, Wish { echo, since: None });
        if self.state == State::Open {
            self.ask_to_join(room);
        }
    }

    pub(super) fn leave(&mut self, room: Room) {
        if self.state == State::Open && self.inside.remove(&room) {
            self.wishes.remove(&room);
            self.leaving.insert(room);
            let number = room.0;
            self.say(&format!(r#"{{"type":"leave_room","roomId":"r{number}","messageId":"l{number}"}}"#));
        }
    }

    pub(super) fn ask_for_members(&mut self, room: Room) {
        let number = room.0;
        self.say(&format!(r#"{{"type":"room_members","roomId":"r{number}","messageId":"w{number}"}}"#));
    }

    /// A room that it is in, at random.
    pub(super) fn some_room(&self, random: &mut Random) -> Option<Room> {
        let count = self.inside.len() as u64;
        (self.state == State::Open && count > 0)
            .then(|| self.inside.iter().nth(random.below(count) as usize).copied())
            .flatten()
    }

    pub(super) fn publish(&mut self, room: Room, notes: &mut Notes) {
        let number = *self.sent.entry(room).and_modify(|number| *number += 1).or_insert(0);
        self.send(room, number, notes);
    }

    fn send(&mut self, room: Room, number: u64, notes: &mut Notes) {
        let message = Message { sender: self.member, number };
        notes.push(Record::Sent { room, message, session: self.session });
        self.unanswered.insert((room, number));
        let (sender, room) = (self.member.0, room.0);
        self.say(&format!(
            r#"{{"type":"room_message","roomId":"r{room}","messageId":"m{room}.{number}","data":{{"s":{sender},"n":{number}}}}}"#
        ));
    }

    fn send_again(&mut self, now: Ms, notes: &mut Notes) {
        if self.state != State::Open || self.unknown.is_empty() {
            return;
        }
        let inside = &self.inside;
        let due = self.unknown.extract_if(.., |(room, _), at| *at <= now && inside.contains(room));
        for (room, number) in due.map(|(key, _)| key).collect::<Vec<_>>() {
            self.send(room, number, notes);
        }
    }

    /// Reads what has come, and sends what is to be sent.
    pub(super) fn turn(&mut self, sockets: &mut Sockets, random: &mut Random, now: Ms, notes: &mut Notes) {
        let Some(socket) = self.socket.and_then(|socket| sockets.get_mut(&socket)) else { return };
        while let Some(bytes) = socket.down.receive(now) {
            self.inbox.extend_from_slice(&bytes);
        }
        let ended = socket.down.has_ended(now);
        self.read(random, now, notes);
        let due: Vec<_> = self.again.extract_if(.., |(at, _)| *at <= now).map(|(_, room)| room).collect();
        for room in due {
            self.ask_to_join(room);
        }
        self.send_again(now, notes);
        if ended {
            let wait = random.within(50..600);
            self.part(sockets, now + wait, now, notes);
        } else if let Some(socket) = self.socket.and_then(|socket| sockets.get_mut(&socket)) {
            self.write(socket, random, now);
        }
    }

    fn write(&mut self, socket: &mut Socket, random: &mut Random, now: Ms) {
        let due = now + random.below(20);
        socket.up.send(&self.outbox, due, random);
        self.outbox.clear();
    }

    fn read(&mut self, random: &mut Random, now: Ms, notes: &mut Notes) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut at = 0;
        if self.session_begins(&inbox) {
            match inbox.windows(4).position(|end| end == b"\r\n\r\n") {
                Some(end) => at = end + 4,
                None => {
                    self.inbox = inbox;
                    return;
                }
            }
        }
        while let Some((opcode, from, to)) = next_frame(&inbox, at) {
            match opcode {
                1 => {
                    let value: Value =
                        serde_json::from_slice(&inbox[from..to]).expect("the server sends JSON");
                    self.heard(&value, random, now, notes);
                }
                8 => {
                    notes.push(Record::Closed { member: self.member });
                    self.state = State::Closed;
                    self.outbox.extend_from_slice(&[0x88, 0x80, 0, 0, 0, 0]);
                }
                9 => self.outbox.extend_from_slice(&[0x8A, 0x80, 0, 0, 0, 0]),
                _ => {}
            }
            at = to;
        }
        inbox.drain(..at);
        self.inbox = inbox;
    }

    fn session_begins(&self, inbox: &[u8]) -> bool {
        self.state == State::Greeting && inbox.starts_with(b"HTTP")
    }

    fn heard(&mut self, value: &Value, random: &mut Random, now: Ms, notes: &mut Notes) {
        let room = value["roomId"].as_str().and_then(|room| room.strip_prefix('r')?.parse().ok()).map(Room);
        let member = self.member;
        match (value["type"].as_str().unwrap_or_default(), room) {
            ("connection_established", _) => {
                self.state = State::Open;
                for room in self.wishes.keys().copied().collect::<Vec<_>>() {
                    self.ask_to_join(room);
                }
            }
            ("room_joined", Some(room)) => self.joined(room, value, notes),
            ("room_left", Some(room)) => {
                self.leaving.remove(&room);
                notes.push(Record::Left { member, room });
            }
            ("room_message", Some(room)) => {
                let offset = value["offset"].as_u64();
                notes.push(Record::Received { member, room, offset, message: message_of(value) });
                if let (Some(offset), Some(wish)) = (offset, self.wishes.get_mut(&room))
                    && let Some(since) = &mut wish.since
                {
                    since.offset = offset;
                }
            }
            ("room_resync", Some(room)) => {
                let position = position_of(value);
                notes.push(Record::Resynced { member, room, position });
                if let Some(wish) = self.wishes.get_mut(&room) {
                    wish.since = position;
                    self.present.insert(room, None);
                    self.ask_for_members(room);
                }
            }
            ("user_joined_room" | "user_left_room", Some(room)) => {
                if let Some(Some(present)) = self.present.get_mut(&room) {
                    let user = value["userId"].as_str().unwrap_or_default();
                    if value["type"] == "user_joined_room" {
                        present.insert(user.to_owned());
                    } else {
                        present.remove(user);
                    }
                }
            }
            ("message_ack", Some(room)) => {
                if let Some(message) = self.own(value) {
                    self.unanswered.remove(&(room, message.number));
                    notes.push(Record::Acked { room, message, offset: value["offset"].as_u64() });
                }
            }
            ("room_members", Some(room)) => {
                self.counts.insert(room, value["memberCount"].as_u64().unwrap_or_default());
                self.present.insert(room, Some(listed(value)));
            }
            ("error", _) => self.refused_request(value, random, now, notes),
            _ => {}
        }
    }

    fn joined(&mut self, room: Room, value: &Value, notes: &mut Notes) {
        let Some(wish) = self.wishes.get_mut(&room) else { return };
        let position = position_of(value);
        let recovery = match (wish.since, value["recovered"].as_bool()) {
            (Some(since), Some(true)) => {
                let all = value["messages"].as_array().into_iter().flatten();
                let numbered = |one: &Value| (one["offset"].as_u64().unwrap_or_default(), message_of(one));
                Recovery::Full { since, messages: all.map(numbered).collect() }
            }
            _ => Recovery::None,
        };
        wish.since = position;
        let echo = wish.echo;
        self.inside.insert(room);
        self.present.insert(room, Some(listed(value)));
        notes.push(Record::Joined { member: self.member, room, echo, position, recovery });
    }

    /// The message of this client that a reply is about.
    fn own(&self, value: &Value) -> Option<Message> {
        let (_, number) = value["messageId"].as_str()?.strip_prefix('m')?.split_once('.')?;
        Some(Message { sender: self.member, number: number.parse().ok()? })
    }

    fn refused_request(&mut self, value: &Value, random: &mut Random, now: Ms, notes: &mut Notes) {
        let id = value["messageId"].as_str().unwrap_or_default();
        let number = |text: &str| text.split('.').next().and_then(|number| number.parse().ok()).map(Room);
        let (kind, room) = (id.get(..1).unwrap_or_default(), id.get(1..).and_then(number));
        match (kind, room, self.own(value)) {
            ("m", Some(room), Some(message)) => {
                self.unanswered.remove(&(room, message.number));
                if value["code"] == "timeout" {
                    self.unknown.insert((room, message.number), now + random.within(100..2_000));
                } else {
                    notes.push(Record::Failed { room, message });
                }
            }
            ("j", Some(room), _) => self.again.push((now + random.within(200..800), room)),
            ("w", Some(room), _) => self.ask_for_members(room),
            _ => panic!("an error that nothing explains: {value}"),
        }
    }
}

/// The users of a list of members.
fn listed(value: &Value) -> BTreeSet<String> {
    let members = value["members"].as_array().into_iter().flatten();
    members.filter_map(|member| Some(member["userId"].as_str()?.to_owned())).collect()
}

/// The message whose event this is.
pub(super) fn message_in(event: &[u8]) -> Message {
    message_of(&serde_json::from_slice(event).expect("an event is JSON"))
}

fn message_of(value: &Value) -> Message {
    let data = &value["data"];
    let sender = Member(data["s"].as_u64().unwrap_or(u64::MAX) as u32);
    Message { sender, number: data["n"].as_u64().unwrap_or_default() }
}

fn position_of(value: &Value) -> Option<Position> {
    let epoch = u64::from_str_radix(value["epoch"].as_str()?, 16).ok()?;
    Some(Position { epoch, offset: value["offset"].as_u64()? })
}

/// The opcode of the frame at `at`, and where its payload is.
fn next_frame(bytes: &[u8], at: usize) -> Option<(u8, usize, usize)> {
    let [first, second] = *bytes.get(at..at + 2)? else { return None };
    let (length, header) = match second {
        126 => (u16::from_be_bytes(bytes.get(at + 2..at + 4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(bytes.get(at + 2..at + 10)?.try_into().ok()?) as usize, 10),
        length => (length as usize, 2),
    };
    let to = at + header + length;
    (to <= bytes.len()).then_some((first & 0x0F, at + header, to))
}
