//! A real `redis-server` on a free port, with nothing kept on disk.

use std::process::Command;

use redis::{Connection, FromRedisValue};
use rustix::process::Signal;

use super::process::Process;
use super::{DEADLINE, eventually, free_port};

/// A Redis that can be stopped and come back, empty, on the same port.
pub struct RedisServer {
    /// Its port on 127.0.0.1.
    pub port: u16,
    process: Option<Process>,
}

impl RedisServer {
    /// Starts one and waits until it answers.
    #[track_caller]
    pub fn start() -> Self {
        let mut server = Self { port: free_port(), process: None };
        server.restart();
        server
    }

    /// Kills it with all that it knew, if it runs.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--dir", env!("CARGO_TARGET_TMPDIR")]);
        self.process = Some(Process::start("redis-server", &mut command));
        eventually("redis-server answers", || {
            let mut connection = self.try_connect()?;
            redis::cmd("PING").query::<String>(&mut connection).ok()
        });
    }

    /// Stops it without closing its connections: it is silent until [`RedisServer::resume`].
    pub fn freeze(&self) {
        self.running().signal(Signal::STOP);
    }

    /// Lets it go on after [`RedisServer::freeze`].
    pub fn resume(&self) {
        self.running().signal(Signal::CONT);
    }

    /// The answer to one command.
    #[track_caller]
    pub fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.try_connect().expect("redis-server takes connections");
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query(&mut connection).unwrap_or_else(|why| panic!("{words:?}: {why}"))
    }

    /// Publishes raw bytes; the number of subscribers that got them.
    #[track_caller]
    pub fn publish(&self, channel: &str, payload: &[u8]) -> i64 {
        let mut connection = self.try_connect().expect("redis-server takes connections");
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(payload).query(&mut connection).expect("PUBLISH answers")
    }

    /// How many instances subscribe to `channel`.
    #[track_caller]
    pub fn subscribers(&self, channel: &str) -> i64 {
        let (_, count): (String, i64) = self.command(&["PUBSUB", "NUMSUB", channel]);
        count
    }

    /// A connection that hears everything on the channels of that pattern and on that channel, and answers nothing.
    #[track_caller]
    pub fn eavesdrop(&self, pattern: &str, channel: &str) -> Connection {
        let mut connection = self.try_connect().expect("redis-server takes connections");
        let mut subscription = connection.as_pubsub();
        subscription.psubscribe(pattern).expect("PSUBSCRIBE is answered");
        subscription.subscribe(channel).expect("SUBSCRIBE is answered");
        // Dropping it would end the subscriptions.
        std::mem::forget(subscription);
        connection
    }

    /// Waits until clients have sent a command with these words `times` more times.
    #[track_caller]
    pub fn expect_command(&self, words: &str, times: usize) {
        let mut connection = self.try_connect().expect("redis-server takes connections");
        connection.set_read_timeout(Some(DEADLINE)).expect("a time limit");
        connection.send_packed_command(&redis::cmd("MONITOR").get_packed_command()).expect("MONITOR is sent");
        let mut seen = 0;
        while seen < times {
            let line =
                connection.recv_response().unwrap_or_else(|why| panic!("{words}, {seen} times: {why}"));
            let line = String::from_redis_value(line).expect("a line of text");
            seen += usize::from(line.contains(words));
        }
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("redis-server runs")
    }

    fn try_connect(&self) -> Option<Connection> {
        redis::Client::open(("127.0.0.1", self.port)).ok()?.get_connection().ok()
    }
}
