//! The application decides who may join: asked over HTTP, remembered for a time, left alone when it fails.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::server::Server;
use crate::harness::token::{self, SECRET};

/// How the application answers.
#[derive(Clone, Copy)]
enum Mood {
    /// By the room's name: `open…` may be joined, `read…` without publishing, all else not.
    Decides,
    /// Not at all, until the connection is closed.
    Silent,
    /// With this status.
    Fails(u16),
    /// With a redirect to itself.
    Redirects,
}

/// An application with an endpoint for questions.
struct Application {
    port: u16,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    mood: Mutex<Mood>,
    /// Heads and bodies of the questions so far.
    asked: Mutex<Vec<(String, Value)>>,
    over: AtomicBool,
}

impl Application {
    fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let state =
            Arc::new(State { mood: Mutex::new(mood), asked: Mutex::default(), over: AtomicBool::new(false) });
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.over.load(Relaxed) {
                    return;
                }
                let (state, stream) = (shared.clone(), stream.expect("a connection"));
                std::thread::spawn(move || answer(&state, stream));
            }
        });
        Self { port, state, thread: Some(thread) }
    }

    fn set(&self, mood: Mood) {
        *self.state.mood.lock().expect("no panic") = mood;
    }

    fn asked(&self) -> Vec<(String, Value)> {
        self.state.asked.lock().expect("no panic").clone()
    }

    /// A server that asks it.
    fn server(&self, settings: &[(&str, &str)]) -> Server {
        let url = format!("http://127.0.0.1:{}/may?by=tableforge", self.port);
        let all = [&[("JWT_SECRET", SECRET), ("AUTHORIZE_URL", &url)], settings].concat();
        Server::start(&all)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.state.over.store(true, Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Reads questions from one connection and answers each.
fn answer(state: &State, stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("the body");
        let question: Value = serde_json::from_slice(&body).expect("JSON");
        let room = question["roomId"].as_str().expect("a room").to_owned();
        state.asked.lock().expect("no panic").push((head, question));
        let mood = *state.mood.lock().expect("no panic");
        let (status, header, body) = match mood {
            Mood::Decides if room.starts_with("open") => {
                (200, "", r#"{"allow":["join","publish","members"]}"#)
            }
            Mood::Decides if room.starts_with("read") => (200, "", r#"{"allow":["join"]}"#),
            Mood::Decides if room.starts_with("empty") => (200, "", r#"{"allow":[]}"#),
            Mood::Decides => (403, "", ""),
            Mood::Fails(status) => (status, "", r#"{"allow":["join"]}"#),
            Mood::Redirects => (307, "Location: /elsewhere\r\n", ""),
            Mood::Silent => {
                // Ends when the server gives up and closes.
                let _ = reader.read(&mut [0]);
                return;
            }
        };
        let response = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{header}\r\n{body}", body.len());
        if reader.get_mut().write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}

fn join(room: &str) -> Value {
    json!({"type": "join_room", "roomId": room})
}

fn say(room: &str) -> Value {
    json!({"type": "room_message", "roomId": room, "data": 1})
}

#[test]
fn the_application_says_who_may_join_and_do_what() {
    let application = Application::start(Mood::Decides);
    let server = application.server(&[("SHARDS", "2"), ("AUTHORIZE_SECRET", "known to both sides")]);
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    ann.join("open-1");
    assert_eq!(ann.request(say("open-1"))["type"], "message_ack");
    ann.join("read-1");
    ann.expect_refused(say("read-1"), "forbidden");
    ann.expect_refused(json!({"type": "room_members", "roomId": "read-1"}), "forbidden");
    ann.expect_refused(json!({"type": "join_room", "roomId": "read-2", "members": true}), "forbidden");
    let texts: Vec<_> = ["closed", "empty", "closed"]
        .map(|room| {
            ann.send(&json!({"type": "join_room", "roomId": room, "messageId": "same"}));
            ann.reply_to("same").text
        })
        .into();
    assert!(texts.iter().all(|text| *text == texts[0] && text.contains("forbidden")), "{texts:?}");

    let (head, question) = application.asked().swap_remove(0);
    assert!(head.starts_with("POST /may?by=tableforge HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Bearer known to both sides"), "{head}");
    assert_eq!(question, json!({"userId": "ann", "roomId": "open-1", "action": "join"}));

    // Renewing keeps what was granted; leaving and joining asks again, or remembers.
    ann.request(json!({"type": "authenticate", "token": token::of("ann")}));
    assert_eq!(ann.request(say("open-1"))["type"], "message_ack");
    let mut guest = Client::connect(&server);
    guest.join("open-1");
    guest.expect_refused(join("closed"), "forbidden");
}

#[test]
fn a_rooms_claim_needs_no_asking() {
    let application = Application::start(Mood::Fails(500));
    let server = application.server(&[]);
    let claims = json!({"sub": "ann", "rooms": {"mine-*": ["join", "publish"]}});
    let mut ann = Client::connect_as(&server, &token::with_claims(claims));
    ann.join("mine-1");
    ann.expect_refused(join("open-1"), "forbidden");
    assert_eq!(application.asked().len(), 0);
}

#[test]
fn an_answer_is_remembered_for_its_time() {
    let application = Application::start(Mood::Decides);
    let server = application.server(&[("AUTHORIZE_CACHE_TTL", "600000")]);
    for _ in 0..3 {
        let mut ann = Client::connect_as(&server, &token::of("ann"));
        ann.join("open-1");
        ann.leave("open-1");
        ann.join("open-1");
        ann.expect_refused(join("closed"), "forbidden");
    }
    assert_eq!(application.asked().len(), 2, "one question per user and room");
    assert_eq!(server.metric("tableforge_authorize_cached_total"), Some(7.0));

    let server = application.server(&[("AUTHORIZE_CACHE_TTL", "0")]);
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    ann.join("open-1");
    ann.leave("open-1");
    application.set(Mood::Fails(403));
    ann.expect_refused(join("open-1"), "forbidden");
}

#[test]
fn a_resume_asks_about_each_room() {
    let application = Application::start(Mood::Decides);
    let server = application.server(&[]);
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    let rooms = json!([{"roomId": "open-1"}, {"roomId": "closed"}, {"roomId": "read-1"}]);
    let resumed = ann.request(json!({"type": "resume", "rooms": rooms}));
    assert_eq!(resumed["type"], "resumed", "{}", resumed.text);
    assert!(resumed["failed"].to_string().contains("closed"), "{}", resumed.text);
    assert!(!resumed["failed"].to_string().contains("open-1"), "{}", resumed.text);
    assert_eq!(application.asked().len(), 3);
}

#[test]
fn messages_behind_a_join_wait_for_the_verdict() {
    let application = Application::start(Mood::Decides);
    let server = application.server(&[]);
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    for (room, expected) in [("open-1", "message_ack"), ("closed", "error")] {
        let id = |what: &str| format!("{what} {room}");
        let mut messages = [join(room), say(room), say(room)];
        for (message, what) in messages.iter_mut().zip(["join", "first", "second"]) {
            message["messageId"] = id(what).into();
        }
        ann.send_at_once(&messages);
        let joined = ann.reply_to(&id("join"));
        assert_eq!(joined["type"] == "room_joined", room == "open-1", "{}", joined.text);
        for what in ["first", "second"] {
            let reply = ann.reply_to(&id(what));
            assert_eq!(reply["type"], expected, "{}", reply.text);
        }
    }
}

#[test]
fn no_answer_is_never_a_yes_and_stops_nobody_else() {
    let application = Application::start(Mood::Silent);
    let settings = [("AUTHORIZE_TIMEOUT", "1000"), ("AUTHORIZE_CONCURRENCY", "2")];
    let server = application.server(&settings);
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    let (done, results) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let refused = ann.expect_refused(join("open-1"), "unavailable");
            let _ = done.send(refused["retryAfterMs"].is_u64());
        });
        let mut bob = Client::connect_as(&server, &token::of("bob"));
        while results.try_recv().is_err() {
            assert_eq!(bob.request(json!({"type": "ping"}))["type"], "pong");
        }
    });
    for mood in [Mood::Fails(500), Mood::Fails(204), Mood::Redirects] {
        application.set(mood);
        ann.expect_refused(join("open-1"), "unavailable");
    }
    application.set(Mood::Decides);
    ann.join("open-1");
}

#[test]
fn an_application_that_keeps_failing_is_left_alone_and_probed() {
    let application = Application::start(Mood::Fails(500));
    let server = application.server(&[("AUTHORIZE_PAUSE", "300")]);
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    for _ in 0..5 {
        ann.expect_refused(join("open-1"), "unavailable");
    }
    assert_eq!(server.metric("tableforge_authorize_breaker_open"), Some(1.0));
    let before = application.asked().len();
    // More than the pause has time for: only probes get through.
    for _ in 0..20 {
        let refused = ann.expect_refused(join("open-1"), "unavailable");
        assert!(refused["retryAfterMs"].is_u64(), "{}", refused.text);
    }
    assert!(application.asked().len() < before + 20, "the breaker holds questions back");
    application.set(Mood::Decides);
    eventually("a probe closes the breaker", || {
        (ann.request(join("open-1"))["type"] == "room_joined").then_some(())
    });
    assert_eq!(server.metric("tableforge_authorize_breaker_open"), Some(0.0));
}

#[test]
fn an_application_that_is_down_is_a_refused_join_and_its_secret_stays_one() {
    let port = crate::harness::free_port();
    let url = format!("http://127.0.0.1:{port}/may");
    let server = Server::start(&[
        ("JWT_SECRET", SECRET),
        ("AUTHORIZE_URL", &url),
        ("AUTHORIZE_SECRET", "a secret nobody may see"),
        ("LOG_LEVEL", "trace"),
    ]);
    let token = token::of("ann");
    let mut ann = Client::connect_as(&server, &token);
    let refused = ann.expect_refused(join("open-1"), "unavailable");
    assert!(!refused.text.contains("127.0.0.1"), "{}", refused.text);
    let output = server.process.output();
    assert!(!output.contains("a secret nobody may see") && !output.contains(&token));
}
