//! Every setting: its name, its unit, its default.

use std::net::IpAddr;
use std::time::Duration;

use crate::identity::InstanceId;

/// Everything that can be set, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address to listen on.
    pub ws_host: IpAddr,
    /// Port to listen on.
    pub ws_port: u16,
    /// Connections this instance takes; more get 503.
    pub ws_max_connections: u32,
    /// Name of this instance in the cluster.
    pub instance_id: InstanceId,
    /// Shards (executor threads).
    pub shards: usize,
    /// Longest time that delivered messages wait for a flush.
    pub flush_budget: Duration,
    /// Bytes of one client message.
    pub max_message_bytes: usize,
    /// Rooms that one connection may be in.
    pub max_rooms_per_connection: usize,
    /// Messages per second that one connection may send; 0 for no limit.
    pub message_rate: u32,
    /// Messages that one connection may send at once.
    pub message_burst: u32,
    /// Members above which a room reports its size instead of each join and leave.
    pub presence_max_members: u32,
    /// Bytes that may wait for a connection that reads slowly.
    pub outbox_bytes: usize,
    /// Longest time that bytes may wait for a connection that does not read.
    pub outbox_age: Duration,
    /// Time for the HTTP request head to be complete.
    pub handshake_timeout: Duration,
    /// Time for a connection to authenticate.
    pub authentication_timeout: Duration,
    /// Time between pings to a silent connection.
    pub ping_interval: Duration,
    /// Time for the pong.
    pub pong_timeout: Duration,
    /// Longest time that draining takes.
    pub drain_timeout: Duration,
    /// Whether clients must authenticate.
    pub auth_required: bool,
    /// The HMAC secret that tokens are verified with.
    pub jwt_secret: Option<String>,
    /// The `iss` that tokens must have.
    pub jwt_issuer: Option<String>,
    /// The `aud` that tokens must have.
    pub jwt_audience: Option<String>,
    /// Origins that browsers may connect from; empty for all.
    pub allowed_origins: Vec<String>,
    /// Whether `/` serves the console page.
    pub console: bool,
    /// Redis, if there is a cluster.
    pub redis: Option<RedisSettings>,
}

/// How to reach Redis, and how to use it.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// ACL user name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Database of the keys.
    pub db: u32,
    /// Prefix of all channels and keys, `tableforge:` unless set.
    pub prefix: String,
    /// Time after which a command without an answer counts as lost, and the link with it.
    pub timeout: Duration,
    /// Longest time that a publication waits for others to share its batch.
    pub batch_age: Duration,
    /// Bytes at which a batch is sent without waiting.
    pub batch_bytes: usize,
    /// Bytes from which a batch is compressed if that makes it smaller.
    pub batch_compress_bytes: usize,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Time between looks for instances that have gone silent.
    pub cleanup_interval: Duration,
    /// Silence after which an instance counts as gone.
    pub inactive_threshold: Duration,
}
