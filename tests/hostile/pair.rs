//! Two clients that do nothing wrong, and pass messages to each other whatever happens around them.

use std::panic;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

use crate::harness::client::Client;

/// A room that nobody hostile is in.
const ROOM: &str = "healthy";

/// Between two rounds when no test asks for one sooner.
const PACE: Duration = Duration::from_millis(250);

/// A round that a test waits for.
struct Asked {
    /// What has gone before it, for a failure's text.
    after: String,
    done: Sender<()>,
}

/// The two clients, on a thread of their own.
pub struct Pair {
    asked: Option<Sender<Asked>>,
    rounds: Option<JoinHandle<[Client; 2]>>,
}

impl Pair {
    /// Has `clients` join their room and begin.
    #[track_caller]
    pub fn start(mut clients: [Client; 2]) -> Self {
        clients.iter_mut().for_each(|client| drop(client.join(ROOM)));
        let (asked, rounds) = channel();
        let rounds = thread::spawn(move || keep_exchanging(clients, &rounds));
        Self { asked: Some(asked), rounds: Some(rounds) }
    }

    /// Waits for a round that begins now. Fails with what has made any round before it fail.
    pub fn assert_healthy(&mut self, after: &str) {
        let (done, is_done) = channel();
        let asked = self.asked.as_ref().expect("the pair goes on until its end");
        let sent = asked.send(Asked { after: after.to_owned(), done });
        if sent.is_err() || is_done.recv().is_err() {
            drop(self.finish());
        }
    }

    /// The clients, still connected, after a last look at what has come to them.
    pub fn end(mut self) -> [Client; 2] {
        self.finish().expect("the rounds end once")
    }

    /// Ends the rounds; what failed in them fails here.
    fn finish(&mut self) -> Option<[Client; 2]> {
        drop(self.asked.take());
        let clients = self.rounds.take()?.join();
        Some(clients.unwrap_or_else(|failure| panic::resume_unwind(failure)))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !thread::panicking() {
            drop(self.finish());
        }
    }
}

fn keep_exchanging(mut clients: [Client; 2], asked: &Receiver<Asked>) -> [Client; 2] {
    for number in 1_u64.. {
        match asked.recv_timeout(PACE) {
            Ok(Asked { after, done }) => {
                exchange(&mut clients, &format!("{number} after {after}"));
                // The test may have failed meanwhile.
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => exchange(&mut clients, &format!("{number} in between")),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    for client in &mut clients {
        let unasked = client.drain();
        assert!(!unasked.iter().any(|event| event["type"] == "room_message"), "twice: {unasked:?}");
    }
    clients
}

/// One message each way, each exactly once.
fn exchange([left, right]: &mut [Client; 2], ball: &str) {
    pass(left, ball);
    right.expect_said(ROOM, ball);
    pass(right, ball);
    left.expect_said(ROOM, ball);
    left.assert_none("room_message");
    right.assert_none("room_message");
}

/// Says it until it is taken: a shard with more to do than it can may refuse, and has done nothing then.
fn pass(client: &mut Client, ball: &str) {
    let message = json!({"type": "room_message", "roomId": ROOM, "data": ball});
    loop {
        let reply = client.request(message.clone());
        if reply["type"] == "message_ack" {
            return;
        }
        assert_eq!(reply["code"], "unavailable", "{}", reply.text);
    }
}
