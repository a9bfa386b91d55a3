//! The processes of a run: Redis with its replica, the instances, and the network between them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header};

use crate::http;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::redis_node::RedisNode;

/// How many instances there are.
pub(crate) const HOSTS: usize = 3;

/// Patterns of the rooms with history.
pub(crate) const HISTORY_ROOMS: &str = "h-*";

/// What stands before all keys and channels.
pub(crate) const PREFIX: &str = "soak:";

/// The secret that tokens are signed with.
const SECRET: &str = "the secret of a soak, of 32 bytes and more";

/// Longest time for an instance to become ready: after a crash its name is taken for some heartbeats.
const READY: Duration = Duration::from_secs(40);

/// Longest time for a drain.
const DRAIN: Duration = Duration::from_secs(30);

/// What is set at each instance besides addresses and names: heartbeats and pings quick enough for a run of minutes.
const SETTINGS: [(&str, &str); 12] = [
    ("WS_HOST", "127.0.0.1"),
    ("REDIS_HOST", "127.0.0.1"),
    ("REDIS_PREFIX", PREFIX),
    ("REDIS_TIMEOUT", "1000"),
    ("HEARTBEAT_INTERVAL", "1000"),
    ("CLEANUP_INTERVAL", "1000"),
    ("INACTIVE_THRESHOLD", "5000"),
    ("PING_INTERVAL", "4000"),
    ("PONG_TIMEOUT", "2000"),
    ("HISTORY_ROOMS", HISTORY_ROOMS),
    ("MESSAGE_RATE", "0"),
    ("LOG_LEVEL", "info"),
];

/// What differs from run to run.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) server: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) shards: u8,
    pub(crate) history_size: u32,
    pub(crate) history_ttl_ms: u32,
}

/// The processes.
pub(crate) struct Cluster {
    shape: Shape,
    /// Two; which of them is the primary changes.
    nodes: Vec<RedisNode>,
    primary: usize,
    /// One before Redis for each instance.
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) ports: Vec<u16>,
    hosts: Vec<Option<Process>>,
}

impl Cluster {
    /// Starts everything.
    pub(crate) fn start(shape: Shape) -> Result<Self, String> {
        let mut drawn = std::process::id();
        let mut nodes: Vec<_> =
            (0..2).map(|_| RedisNode::new(free_port(&mut drawn), &shape.directory)).collect();
        nodes[0].start(None)?;
        let primary = nodes[0].port;
        nodes[1].start(Some(primary))?;
        let proxies: Result<Vec<_>, _> = (0..HOSTS).map(|_| Proxy::start(primary)).collect();
        let proxies = proxies.map_err(|why| format!("no port for a proxy: {why}"))?;
        let ports = (0..HOSTS).map(|_| free_port(&mut drawn)).collect();
        let hosts = (0..HOSTS).map(|_| None).collect();
        let mut cluster = Self { shape, nodes, primary: 0, proxies, ports, hosts };
        for host in 0..HOSTS {
            cluster.start_host(host)?;
        }
        cluster.await_ready()?;
        Ok(cluster)
    }

    pub(crate) fn primary(&self) -> &RedisNode {
        &self.nodes[self.primary]
    }

    pub(crate) fn replica(&self) -> &RedisNode {
        &self.nodes[1 - self.primary]
    }

    pub(crate) fn host(&self, host: usize) -> Option<&Process> {
        self.hosts[host].as_ref()
    }

    /// Kills the primary with all that it knew.
    pub(crate) fn kill_primary(&mut self) {
        let primary = self.primary;
        self.nodes[primary].kill();
    }

    /// Starts the primary again, empty.
    pub(crate) fn restart_primary(&mut self) -> Result<(), String> {
        let primary = self.primary;
        self.nodes[primary].start(None)
    }

    /// Has the instances speak to the other Redis from now on.
    pub(crate) fn lead_to_replica(&mut self) {
        self.primary = 1 - self.primary;
        let port = self.primary().port;
        for proxy in &self.proxies {
            proxy.lead_to(port);
            proxy.cut();
        }
    }

    /// Starts the Redis that is not the primary anew, as the replica.
    pub(crate) fn restart_replica(&mut self) -> Result<(), String> {
        let (primary, replica) = (self.primary().port, 1 - self.primary);
        self.nodes[replica].start(Some(primary))
    }

    /// Kills an instance.
    pub(crate) fn kill_host(&mut self, host: usize) {
        self.hosts[host] = None;
    }

    /// Ends an instance as an operator does, and waits for its end.
    pub(crate) fn drain_host(&mut self, host: usize) -> Result<(), String> {
        let Some(mut process) = self.hosts[host].take() else { return Ok(()) };
        process.signal(rustix::process::Signal::TERM);
        match process.wait(DRAIN) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("instance i{host} was drained and ended with {status}")),
            None => Err(format!("instance i{host} has not ended {} s after SIGTERM", DRAIN.as_secs())),
        }
    }

    /// Starts an instance that does not run.
    pub(crate) fn start_host(&mut self, host: usize) -> Result<(), String> {
        if self.hosts[host].is_some() {
            return Ok(());
        }
        let shape = &self.shape;
        let mut command = Command::new(&shape.server);
        command.arg("serve").env_clear().envs(SETTINGS).env("RUST_BACKTRACE", "1");
        command.env("INSTANCE_ID", format!("i{host}")).env("JWT_SECRET", SECRET);
        command.env("WS_PORT", self.ports[host].to_string());
        command.env("REDIS_PORT", self.proxies[host].port.to_string());
        command.env("SHARDS", shape.shards.to_string());
        command.env("HISTORY_SIZE", shape.history_size.to_string());
        command.env("HISTORY_TTL", shape.history_ttl_ms.to_string());
        self.hosts[host] = Some(Process::start(&mut command, &self.log_of(host))?);
        Ok(())
    }

    fn log_of(&self, host: usize) -> PathBuf {
        self.shape.directory.join(format!("i{host}.log"))
    }

    /// Waits until all instances take clients.
    pub(crate) fn await_ready(&mut self) -> Result<(), String> {
        let until = Instant::now() + READY;
        for host in 0..HOSTS {
            while http::status(self.ports[host], "/ready") != Some(200) {
                self.check_host(host)?;
                if Instant::now() >= until {
                    return Err(format!("instance i{host} is not ready after {} s", READY.as_secs()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Fails when an instance that should run has ended.
    pub(crate) fn check_host(&mut self, host: usize) -> Result<(), String> {
        let Some(status) = self.hosts[host].as_mut().and_then(Process::ended) else { return Ok(()) };
        let log = std::fs::read_to_string(self.log_of(host)).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(5).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        Err(format!("instance i{host} has ended with {status}: {}", last.join("\n")))
    }
}

/// A token of a client, good for longer than any run.
pub(crate) fn token(client: u32) -> String {
    let claims = serde_json::json!({ "sub": format!("u{client}"), "exp": u32::MAX });
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).expect("HMAC signing takes any key")
}

/// A port that nobody listens on, below the range from which the kernel takes those of outgoing connections.
fn free_port(drawn: &mut u32) -> u16 {
    loop {
        *drawn = drawn.wrapping_mul(31).wrapping_add(7);
        let port = 12_000 + (*drawn % 18_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The server's program: the one that is named, or `tableforge` beside this program.
pub(crate) fn server_program(named: Option<&Path>) -> Result<PathBuf, String> {
    let beside = || {
        let own = std::env::current_exe().map_err(|why| format!("this program's own path: {why}"))?;
        Ok::<_, String>(own.with_file_name("tableforge"))
    };
    let path = named.map_or_else(beside, |path| Ok(path.to_owned()))?;
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{} is no program: build the server (cargo build) or name it with --server",
            path.display()
        ))
    }
}
