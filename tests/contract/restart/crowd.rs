//! Clients in rooms with history that come back whenever their instance goes, and record what they live through.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use checker::record::{Member, Message, Position, Record, Recovery, Room};
use serde_json::{Value, json};
use tungstenite::{Error, WebSocket};

use crate::harness::{DEADLINE, token};

/// Members of one room.
const ROOM_SIZE: u32 = 10;

/// Time between two messages of one client.
const SPEAK_EVERY: Duration = Duration::from_secs(2);

/// Wait of a client that no instance takes, and of one whose request was refused for now.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection that an instance has taken, and when it did.
type Opened = (WebSocket<TcpStream>, Instant);

struct Visitor {
    member: Member,
    room: Room,
    /// Who it is: a message that is sent again on another connection is only known as the same one's.
    token: String,
    socket: Option<WebSocket<TcpStream>>,
    /// The thread that connects it: a slow instance holds up nobody else.
    connecting: Option<JoinHandle<Option<Opened>>>,
    inside: bool,
    /// When to connect, ask to join, or speak next.
    next: Instant,
    /// When to go, as the server has told it; nothing for those that wait until they are closed.
    leave: Option<Instant>,
    session: u32,
    /// The instance that it turned to last.
    place: usize,
    since: Option<Position>,
    numbers: u64,
    unanswered: BTreeSet<u64>,
    again: BTreeSet<u64>,
}

/// The clients, and what happened to them.
pub struct Crowd {
    ports: [u16; 3],
    visitors: Vec<Visitor>,
    started: Instant,
    /// Everything that happened, by milliseconds since the start.
    pub records: Vec<(u64, Record)>,
    /// When clients that came back had their new connection.
    pub returns: Vec<Duration>,
    /// Joins after a return that were not given everything that was missed.
    pub unrecovered: usize,
    /// Whether the clients send.
    pub speaks: bool,
}

impl Crowd {
    /// So many clients, none of them connected yet, for the instances on `ports`.
    pub fn new(ports: [u16; 3], count: u32) -> Self {
        let started = Instant::now();
        let visitor = |number| Visitor {
            member: Member(number),
            room: Room(number / ROOM_SIZE),
            token: token::of(&format!("visitor-{number}")),
            socket: None,
            connecting: None,
            inside: false,
            next: started,
            leave: None,
            session: 0,
            place: number as usize,
            since: None,
            numbers: 0,
            unanswered: BTreeSet::new(),
            again: BTreeSet::new(),
        };
        let visitors = (0..count).map(visitor).collect();
        Self {
            ports,
            visitors,
            started,
            records: Vec::new(),
            returns: Vec::new(),
            unrecovered: 0,
            speaks: true,
        }
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The rooms that the clients are in.
    pub fn rooms(&self) -> impl Iterator<Item = Room> {
        (0..(self.visitors.len() as u32).div_ceil(ROOM_SIZE)).map(Room)
    }

    /// Whether every client is in its room and has got its replies.
    pub fn is_settled(&self) -> bool {
        self.visitors
            .iter()
            .all(|visitor| visitor.inside && visitor.unanswered.is_empty() && visitor.again.is_empty())
    }

    /// Whether every client has read up to the position of its room.
    pub fn is_current(&self, position: impl Fn(Room) -> Position) -> bool {
        self.visitors.iter().all(|visitor| visitor.since == Some(position(visitor.room)))
    }

    /// Lets every client do what it has to.
    pub fn turn(&mut self) {
        let mut records = std::mem::take(&mut self.records);
        let mut visitors = std::mem::take(&mut self.visitors);
        for visitor in &mut visitors {
            let now_ms = self.now_ms();
            self.attend(visitor, &mut |record| records.push((now_ms, record)));
        }
        (self.records, self.visitors) = (records, visitors);
    }

    fn attend(&mut self, visitor: &mut Visitor, note: &mut impl FnMut(Record)) {
        let now = Instant::now();
        if visitor.socket.is_none() {
            self.connect(visitor, now);
            return;
        }
        while let Some(socket) = &mut visitor.socket {
            match socket.read() {
                Ok(tungstenite::Message::Text(text)) => {
                    let event = serde_json::from_str(text.as_str()).expect("the server sends JSON");
                    self.heard(visitor, &event, now, note);
                }
                Ok(tungstenite::Message::Close(_)) => {
                    let _ = socket.flush();
                    visitor.part(now, note);
                }
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => visitor.part(now, note),
            }
        }
        if visitor.leave.is_some_and(|leave| now >= leave) {
            visitor.part(now, note);
        }
        if visitor.inside && self.speaks && now >= visitor.next {
            visitor.next = now + SPEAK_EVERY;
            visitor.numbers += 1;
            visitor.say(visitor.numbers, note);
        } else if visitor.socket.is_some() && !visitor.inside && now >= visitor.next {
            visitor.next = now + DEADLINE;
            visitor.join();
        }
    }

    /// Tries one instance after the other.
    fn connect(&mut self, visitor: &mut Visitor, now: Instant) {
        match visitor.connecting.take() {
            None if now >= visitor.next => {
                // Half of those that leave an instance turn to the one, half to the other.
                let step = 1 + ((visitor.member.0 / 3) >> visitor.session) % 2;
                visitor.place += step as usize;
                let first = visitor.place;
                let (ports, token) = (self.ports, visitor.token.clone());
                let search = move || {
                    (0..ports.len()).find_map(|next| open(ports[(first + next) % ports.len()], &token))
                };
                visitor.connecting = Some(std::thread::spawn(search));
            }
            Some(thread) if thread.is_finished() => {
                visitor.next = now;
                match thread.join().expect("connecting does not panic") {
                    Some((socket, opened)) => {
                        if visitor.session > 0 {
                            self.returns.push(opened - self.started);
                        }
                        visitor.session += 1;
                        visitor.socket = Some(socket);
                    }
                    None => visitor.next = now + PAUSE,
                }
            }
            waiting => visitor.connecting = waiting,
        }
    }

    fn heard(&mut self, visitor: &mut Visitor, event: &Value, now: Instant, note: &mut impl FnMut(Record)) {
        let (member, room) = (visitor.member, visitor.room);
        match event["type"].as_str().expect("a type") {
            "room_joined" => {
                let position = position_of(event);
                let recovered = event["recovered"].as_bool();
                self.unrecovered += usize::from(visitor.since.is_some() && recovered != Some(true));
                let recovery = match (visitor.since, recovered) {
                    (Some(since), Some(true)) => {
                        let all = event["messages"].as_array().expect("a list").iter();
                        let numbered =
                            |one: &Value| (one["offset"].as_u64().expect("an offset"), message_of(one));
                        Recovery::Full { since, messages: all.map(numbered).collect() }
                    }
                    _ => Recovery::None,
                };
                visitor.since = position;
                visitor.inside = true;
                // Not all at the same moment.
                visitor.next = now + SPEAK_EVERY * (member.0 % 16) / 16;
                note(Record::Joined { member, room, echo: true, position, recovery });
                for number in std::mem::take(&mut visitor.again) {
                    visitor.say(number, note);
                }
            }
            "room_message" => {
                let offset = event["offset"].as_u64();
                note(Record::Received { member, room, offset, message: message_of(event) });
                if let (Some(since), Some(offset)) = (&mut visitor.since, offset) {
                    since.offset = offset;
                }
            }
            "room_resync" => {
                visitor.since = position_of(event);
                note(Record::Resynced { member, room, position: visitor.since });
            }
            "message_ack" => {
                let number = number_of(event);
                visitor.unanswered.remove(&number);
                let message = Message { sender: member, number };
                note(Record::Acked { room, message, offset: event["offset"].as_u64() });
            }
            "error" => visitor.refused(event, now, note),
            "server_draining" if member.0 % 4 != 1 => {
                let delay = event["reconnectAfterMs"].as_u64().expect("a delay");
                visitor.leave = Some(now + Duration::from_millis(delay));
            }
            _ => {}
        }
    }
}

impl Visitor {
    fn send(&mut self, message: &Value) {
        let socket = self.socket.as_mut().expect("the client is connected");
        // Fails if the server has just closed; reading tells.
        let _ = socket.send(tungstenite::Message::text(message.to_string()));
    }

    fn join(&mut self) {
        let mut message = json!({
            "type": "join_room", "roomId": format!("r{}", self.room.0), "echo": true, "messageId": "join",
        });
        if let Some(since) = self.since {
            message["since"] = json!({ "epoch": format!("{:016x}", since.epoch), "offset": since.offset });
        }
        self.send(&message);
    }

    fn say(&mut self, number: u64, note: &mut impl FnMut(Record)) {
        let message = Message { sender: self.member, number };
        note(Record::Sent { room: self.room, message, session: self.session });
        self.unanswered.insert(number);
        let (room, sender) = (self.room.0, self.member.0);
        self.send(&json!({
            "type": "room_message", "roomId": format!("r{room}"), "messageId": format!("{sender}.{number}"),
            "data": { "s": sender, "n": number },
        }));
    }

    fn refused(&mut self, event: &Value, now: Instant, note: &mut impl FnMut(Record)) {
        if event["messageId"] == "join" {
            self.next = now + PAUSE;
            return;
        }
        let number = number_of(event);
        self.unanswered.remove(&number);
        if event["code"] == "timeout" {
            self.again.insert(number);
        } else {
            note(Record::Failed { room: self.room, message: Message { sender: self.member, number } });
        }
    }

    /// The connection is over, whoever has ended it; the client comes back at once.
    fn part(&mut self, now: Instant, note: &mut impl FnMut(Record)) {
        note(Record::Closed { member: self.member });
        self.socket = None;
        self.inside = false;
        self.leave = None;
        self.next = now;
        self.again.append(&mut self.unanswered);
    }
}

fn open(port: u16, token: &str) -> Option<Opened> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_nodelay(true).expect("a TCP socket has nodelay");
    stream.set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
    let (socket, _) =
        tungstenite::client::client(format!("ws://127.0.0.1:{port}/ws?token={token}"), stream).ok()?;
    let opened = Instant::now();
    socket.get_ref().set_nonblocking(true).expect("a socket has this mode");
    Some((socket, opened))
}

/// The message whose event this is.
pub fn message_of(event: &Value) -> Message {
    let data = &event["data"];
    let sender = Member(data["s"].as_u64().expect("a sender") as u32);
    Message { sender, number: data["n"].as_u64().expect("a number") }
}

/// The position that an event tells.
pub fn position_of(event: &Value) -> Option<Position> {
    let epoch = u64::from_str_radix(event["epoch"].as_str()?, 16).ok()?;
    Some(Position { epoch, offset: event["offset"].as_u64()? })
}

fn number_of(reply: &Value) -> u64 {
    let id = reply["messageId"].as_str().and_then(|id| id.split_once('.'));
    id.and_then(|(_, number)| number.parse().ok()).unwrap_or_else(|| panic!("an answer to nothing: {reply}"))
}
