//! A client of the room protocol: an independent WebSocket implementation, and a queue of what came in.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::ops::Deref;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::{Error, Message, WebSocket};

use super::DEADLINE;
use super::server::Server;

/// One message from the server: its text as it came, and the same as JSON.
#[derive(Clone, Debug)]
pub struct Event {
    /// The frame's text, byte for byte.
    pub text: String,
    json: Value,
}

impl Event {
    fn parse(text: &str) -> Self {
        let json = serde_json::from_str(text).unwrap_or_else(|why| panic!("not JSON: {why}: {text}"));
        Self { text: text.to_owned(), json }
    }

    /// The value of `data`, byte for byte.
    #[track_caller]
    pub fn data(&self) -> String {
        #[derive(Deserialize)]
        struct WithData<'a> {
            #[serde(borrow)]
            data: &'a RawValue,
        }
        let event: WithData<'_> = serde_json::from_str(&self.text).expect("the event has data");
        event.data.get().to_owned()
    }
}

impl Deref for Event {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.json
    }
}

/// A connection to a server.
pub struct Client {
    socket: WebSocket<TcpStream>,
    /// `socketId` of the connection.
    pub socket_id: String,
    /// `userId` of the connection; empty until it is authenticated.
    pub user_id: String,
    /// What came in and no test has asked for yet, oldest first.
    pending: VecDeque<Event>,
    closed: Option<u16>,
    requests: u32,
}

impl Client {
    /// Connects without a token.
    #[track_caller]
    pub fn connect(server: &Server) -> Self {
        Self::open(server.port, "/ws", &[]).expect("the server upgrades")
    }

    /// Connects as the user of `token`.
    #[track_caller]
    pub fn connect_as(server: &Server, token: &str) -> Self {
        let bearer = format!("Bearer {token}");
        Self::open(server.port, "/ws", &[("authorization", &bearer)]).expect("the server takes the token")
    }

    /// Connects to `path` with more headers; fails with the status when the server does not upgrade.
    #[track_caller]
    pub fn open(port: u16, path: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the server takes connections");
        Self::over(stream, path, headers)
    }

    /// Connects over a TCP connection that exists.
    #[track_caller]
    pub fn over(stream: TcpStream, path: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        stream.set_nodelay(true).expect("a TCP socket has nodelay");
        stream.set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
        let address = stream.peer_addr().expect("the socket is connected");
        let mut request = format!("ws://{address}{path}").into_client_request().expect("the path is valid");
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header name");
            request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header value"));
        }
        let socket = match tungstenite::client::client(request, stream) {
            Ok((socket, _)) => socket,
            Err(HandshakeError::Failure(Error::Http(response))) => return Err(response.status().as_u16()),
            Err(why) => panic!("the handshake failed: {why}"),
        };
        let (pending, user_id) = (VecDeque::new(), String::new());
        let mut client =
            Self { socket, socket_id: String::new(), user_id, pending, closed: None, requests: 0 };
        client.greet();
        Ok(client)
    }

    /// Takes the greeting, which must be the first message, and leaves a copy for the test.
    #[track_caller]
    fn greet(&mut self) {
        let greeting = self.receive().expect("a greeting");
        assert_eq!(greeting["type"], "connection_established", "{}", greeting.text);
        self.socket_id = greeting["socketId"].as_str().expect("a socketId").to_owned();
        self.user_id = greeting["userId"].as_str().unwrap_or_default().to_owned();
        self.pending.push_front(greeting);
    }

    /// Sends `message` as one text frame.
    #[track_caller]
    pub fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string());
    }

    /// Sends `text` as one text frame.
    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).expect("the connection is open");
    }

    /// Sends several messages with one write, without waiting for anything between them.
    #[track_caller]
    pub fn send_at_once(&mut self, messages: &[Value]) {
        for message in messages {
            self.socket.write(Message::text(message.to_string())).expect("the connection is open");
        }
        self.socket.flush().expect("the connection is open");
    }

    /// Sends `message` with a new `messageId`, which it returns.
    #[track_caller]
    pub fn ask(&mut self, mut message: Value) -> String {
        self.requests += 1;
        let id = format!("request-{}", self.requests);
        message["messageId"] = id.as_str().into();
        self.send(&message);
        id
    }

    /// Sends `message` with a new `messageId` and waits for the reply.
    #[track_caller]
    pub fn request(&mut self, message: Value) -> Event {
        let id = self.ask(message);
        self.reply_to(&id)
    }

    /// Waits for the reply to the message with that `messageId`.
    #[track_caller]
    pub fn reply_to(&mut self, id: &str) -> Event {
        self.expect_that(&format!("a reply to {id}"), |event| is_reply(event) && event["messageId"] == id)
    }

    /// Joins `room`; the reply.
    #[track_caller]
    pub fn join(&mut self, room: &str) -> Event {
        self.join_with(json!({"type": "join_room", "roomId": room}))
    }

    /// Sends a `join_room` with fields of the caller's choice, which must succeed; the reply.
    #[track_caller]
    pub fn join_with(&mut self, message: Value) -> Event {
        let reply = self.request(message);
        assert_eq!(reply["type"], "room_joined", "{}", reply.text);
        reply
    }

    /// Leaves `room`.
    #[track_caller]
    pub fn leave(&mut self, room: &str) {
        let reply = self.request(json!({"type": "leave_room", "roomId": room}));
        assert_eq!((&reply["type"], &reply["roomId"]), (&json!("room_left"), &json!(room)), "{}", reply.text);
    }

    /// Sends `data` to `room` without asking for a reply.
    #[track_caller]
    pub fn say(&mut self, room: &str, data: impl Into<Value>) {
        self.send(&json!({"type": "room_message", "roomId": room, "data": data.into()}));
    }

    /// Waits for the next message of that type. Others that come before it stay for later.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Event {
        self.expect_that(kind, |event| event["type"] == kind)
    }

    /// Waits for a `room_message` of `room` with that `data`.
    #[track_caller]
    pub fn expect_said(&mut self, room: &str, data: impl Into<Value>) -> Event {
        let data = data.into();
        self.expect_that(&format!("{data} in {room}"), |event| {
            event["type"] == "room_message" && event["roomId"] == room && event["data"] == data
        })
    }

    /// Waits for the `error` that replies to `message`, and checks its code.
    #[track_caller]
    pub fn expect_refused(&mut self, message: Value, code: &str) -> Event {
        let shown = message.to_string();
        let reply = self.request(message);
        assert_eq!(
            (&reply["type"], &reply["code"]),
            (&json!("error"), &json!(code)),
            "to {shown}: {}",
            reply.text
        );
        reply
    }

    /// Waits for the first message that is `wanted`, and takes it out. `what` names it in a failure.
    #[track_caller]
    pub fn expect_that(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Event {
        if let Some(place) = self.pending.iter().position(|event| wanted(event)) {
            return self.pending.remove(place).expect("the place is in the queue");
        }
        let until = Instant::now() + DEADLINE;
        loop {
            match self.receive() {
                Ok(event) if wanted(&event) => return event,
                Ok(event) => self.pending.push_back(event),
                Err(why) => panic!("waited for {what}, {why}; instead there came {}", self.shown()),
            }
            assert!(Instant::now() < until, "waited for {what}; instead there came {}", self.shown());
        }
    }

    /// Checks that no message of that type has come and not been asked for. Only worth something after
    /// a message that must have come later.
    #[track_caller]
    pub fn assert_none(&self, kind: &str) {
        assert!(!self.pending.iter().any(|event| event["type"] == kind), "unasked for: {}", self.shown());
    }

    /// Takes the oldest message of that type that has come in already, without reading more.
    pub fn take_pending(&mut self, kind: &str) -> Option<Event> {
        let place = self.pending.iter().position(|event| event["type"] == kind)?;
        self.pending.remove(place)
    }

    /// Takes everything that came in and was not asked for, up to the reply to a `ping` sent now.
    #[track_caller]
    pub fn drain(&mut self) -> Vec<Event> {
        let pong = self.request(json!({"type": "ping"}));
        assert_eq!(pong["type"], "pong", "{}", pong.text);
        self.pending.drain(..).collect()
    }

    /// Reads what has already come in, without waiting for more; whether there is a message of that type.
    #[track_caller]
    pub fn has_received(&mut self, kind: &str) -> bool {
        self.socket.get_ref().set_nonblocking(true).expect("a socket has this mode");
        while let Ok(event) = self.receive() {
            self.pending.push_back(event);
        }
        self.socket.get_ref().set_nonblocking(false).expect("a socket has this mode");
        self.pending.iter().any(|event| event["type"] == kind)
    }

    /// Waits until the server closes the connection; the close code. What comes before stays for later.
    #[track_caller]
    pub fn expect_close(&mut self) -> u16 {
        let until = Instant::now() + DEADLINE;
        while self.closed.is_none() {
            assert!(Instant::now() < until, "waited for a close; instead there came {}", self.shown());
            match self.receive() {
                Ok(event) => self.pending.push_back(event),
                Err(why) if self.closed.is_none() => panic!("waited for a close, {why}"),
                Err(_) => {}
            }
        }
        self.closed.expect("the loop ended")
    }

    /// Closes in the orderly way; the code that the server answers with.
    #[track_caller]
    pub fn close(mut self) -> u16 {
        use tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.socket.close(Some(frame)).expect("the connection is open");
        self.expect_close()
    }

    /// Lets the connection die without a word: the server sees a reset.
    pub fn vanish(self) {
        let socket = socket2::SockRef::from(self.socket.get_ref());
        socket.set_linger(Some(Duration::ZERO)).expect("a TCP socket has this option");
    }

    /// Gives up the client for its TCP connection.
    pub fn into_stream(self) -> TcpStream {
        self.socket.get_ref().try_clone().expect("a descriptor is free")
    }

    fn shown(&self) -> String {
        let last = self.pending.iter().rev().take(20).map(|event| event.text.as_str());
        format!("{} messages, the last ones: {:#?}", self.pending.len(), last.collect::<Vec<_>>())
    }

    /// The next message from the socket.
    fn receive(&mut self) -> io::Result<Event> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(Event::parse(text.as_str())),
                Ok(Message::Close(frame)) => {
                    // 1005: RFC 6455 section 7.1.5, a close frame without a code.
                    self.closed = Some(frame.map_or(1005, |frame| frame.code.into()));
                    // Sends the answering close frame; the server may have gone already.
                    let _ = self.socket.flush();
                    return Err(io::Error::other(format!("but the server closed with {:?}", self.closed)));
                }
                Ok(Message::Binary(bytes)) => panic!("the server sent a binary message: {bytes:?}"),
                Ok(_) => {}
                Err(Error::Io(why)) if why.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::other("and nothing came"));
                }
                Err(why) => return Err(io::Error::other(format!("but the connection ended: {why}"))),
            }
        }
    }
}

/// Whether an event is a reply: messages of members carry their sender's `messageId` too.
fn is_reply(event: &Value) -> bool {
    !matches!(event["type"].as_str(), Some("room_message" | "user_message" | "global_message"))
}
