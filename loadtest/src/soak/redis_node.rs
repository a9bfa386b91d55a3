//! A redis-server, and what can be done to it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue};

use crate::process::Process;

/// How long one command may take: a Redis that hangs must not hang the run.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a redis-server may take to come up.
const STARTUP: Duration = Duration::from_secs(20);

/// A redis-server on a port of its own, without persistence.
pub(crate) struct RedisNode {
    pub(crate) port: u16,
    directory: PathBuf,
    process: Option<Process>,
}

impl RedisNode {
    /// One that does not run yet.
    pub(crate) fn new(port: u16, directory: &Path) -> Self {
        Self { port, directory: directory.to_owned(), process: None }
    }

    /// Starts it, empty, as a replica of the primary at that port or as a primary.
    pub(crate) fn start(&mut self, primary: Option<u16>) -> Result<(), String> {
        self.kill();
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "no", "--dir"]).arg(&self.directory);
        command.args(["--dbfilename", &format!("redis-{}.rdb", self.port)]);
        command.args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
        command.args(["--repl-diskless-load", "swapdb"]);
        if let Some(primary) = primary {
            command.args(["--replicaof", &format!("127.0.0.1 {primary}")]);
        }
        let log = self.directory.join(format!("redis-{}.log", self.port));
        self.process = Some(Process::start(&mut command, &log)?);
        let until = Instant::now() + STARTUP;
        while self.ask::<String>(&["PING"]).is_none() {
            if Instant::now() >= until {
                return Err(format!("redis-server on port {} does not answer", self.port));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(crate) fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// The answer to a command; nothing when there is none in time, or an error.
    pub(crate) fn ask<T: FromRedisValue>(&self, words: &[&str]) -> Option<T> {
        let mut command = redis::cmd(words[0]);
        words[1..].iter().for_each(|word| {
            command.arg(word);
        });
        command.query(&mut self.connect()?).ok()
    }

    /// Carries out a command whose answer does not matter; whether it was carried out.
    pub(crate) fn tell(&self, words: &[&str]) -> bool {
        self.ask::<redis::Value>(words).is_some()
    }

    /// Publishes raw bytes.
    pub(crate) fn publish(&self, channel: &str, payload: &[u8]) {
        if let Some(mut connection) = self.connect() {
            let _ = redis::cmd("PUBLISH").arg(channel).arg(payload).query::<i64>(&mut connection);
        }
    }

    /// Whether this replica has all that its primary had.
    pub(crate) fn is_synced_replica(&self) -> bool {
        self.ask::<String>(&["INFO", "replication"])
            .is_some_and(|info| info.contains("role:slave") && info.contains("master_link_status:up"))
    }

    fn connect(&self) -> Option<Connection> {
        let client = redis::Client::open(("127.0.0.1", self.port)).ok()?;
        let connection = client.get_connection_with_timeout(PATIENCE).ok()?;
        connection.set_read_timeout(Some(PATIENCE)).ok()?;
        connection.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(connection)
    }
}
