//! A real `tableforge` process on a free port.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::process::Process;
use super::redis::RedisServer;
use super::{eventually, free_port, http};

/// Settings of every test server, unless the test says otherwise: anonymous users, one shard, and none
/// of the limits that many quick connections from one address would meet.
const DEFAULTS: [(&str, &str); 7] = [
    ("WS_HOST", "127.0.0.1"),
    ("AUTH_REQUIRED", "false"),
    ("SHARDS", "1"),
    ("MESSAGE_RATE", "0"),
    ("MAX_CONNECTIONS_PER_ADDRESS", "0"),
    ("MAX_CONNECTIONS_PER_USER", "0"),
    // Tests share a machine, and whatever they do may keep it busy.
    ("OVERLOAD_BUSY", "0"),
];

/// A server that is ready for clients.
pub struct Server {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The process.
    pub process: Process,
}

impl Server {
    /// Starts one with [`DEFAULTS`] and then `settings`, and waits until it is ready.
    #[track_caller]
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_on(free_port(), settings)
    }

    /// Starts one with that many shards.
    #[track_caller]
    pub fn with_shards(shards: usize) -> Self {
        Self::start(&[("SHARDS", &shards.to_string())])
    }

    /// Starts one that belongs to the cluster of `redis`, with heartbeats quick enough for tests.
    #[track_caller]
    pub fn in_cluster(redis: &RedisServer, id: &str, settings: &[(&str, &str)]) -> Self {
        Self::in_cluster_on(free_port(), redis, id, settings)
    }

    /// The same on `port`.
    #[track_caller]
    pub fn in_cluster_on(port: u16, redis: &RedisServer, id: &str, settings: &[(&str, &str)]) -> Self {
        let own_port = port;
        let port = redis.port.to_string();
        let mut all = vec![
            ("REDIS_HOST", "127.0.0.1"),
            ("REDIS_PORT", port.as_str()),
            ("INSTANCE_ID", id),
            ("HEARTBEAT_INTERVAL", "200"),
            ("CLEANUP_INTERVAL", "200"),
            ("INACTIVE_THRESHOLD", "2000"),
        ];
        all.extend_from_slice(settings);
        let server = Self::start_on(own_port, &all);
        eventually("the link to Redis is up", || {
            (server.get_json("/health")["status"] == "healthy").then_some(())
        });
        server
    }

    /// Starts one on `port`.
    #[track_caller]
    pub fn start_on(port: u16, settings: &[(&str, &str)]) -> Self {
        let process = Process::start("tableforge", &mut command("serve", port, settings));
        let mut server = Self { port, process };
        eventually("the server is ready", || {
            if let Some(status) = server.process.ended() {
                panic!("the server ended at its start with {status}");
            }
            http::try_get(port, "/ready").filter(|response| response.status == 200)
        });
        server
    }

    /// The JSON body of `GET path`, which must succeed.
    #[track_caller]
    pub fn get_json(&self, path: &str) -> Value {
        let response = http::get(self.port, path);
        assert_eq!(response.status, 200, "GET {path}: {}", response.body);
        serde_json::from_str(&response.body)
            .unwrap_or_else(|why| panic!("GET {path}: {why}: {}", response.body))
    }

    /// The sum of the metrics named `name`, over all their labels; `None` while there is none.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = http::get(self.port, "/metrics").body;
        let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (key, value) = line.rsplit_once(' ')?;
            let key = key.split('{').next()?;
            (key == name).then(|| value.parse::<f64>().expect("a metric's value is a number"))
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// Asks it to drain, and waits until it has ended with success.
    #[track_caller]
    pub fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
        let status = self.process.wait();
        assert!(status.success(), "a drained server ends with {status}");
    }
}

/// The command that runs `tableforge subcommand` on `port` with [`DEFAULTS`] and then `settings`, and
/// with nothing else of this process's environment.
pub fn command(subcommand: &str, port: u16, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tableforge"));
    command.arg(subcommand).env_clear().env("WS_PORT", port.to_string()).env("RUST_BACKTRACE", "1");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.envs(DEFAULTS).envs(settings.iter().copied());
    command
}
