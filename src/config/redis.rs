//! How to reach Redis, and how to use it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::setting::SettingError;

/// How to reach Redis, and how to use it.
#[derive(Clone)]
pub struct RedisSettings {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// ACL user name; never without a password.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Database of the keys.
    pub db: u32,
    /// Whether the link is encrypted.
    pub tls: bool,
    /// The authorities that its certificate is checked against; without it those of the system. Only with `tls`.
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown to Redis if it asks for one. Only with `tls` and `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The private key of that certificate.
    pub key_file: Option<PathBuf>,
    /// Prefix of all channels and keys, `tableforge:` unless set.
    pub prefix: String,
    /// Time after which a command without an answer counts as lost, and the link with it.
    pub timeout: Duration,
    /// Time between two batches while they hold few messages, see [`crate::uplink::batch_pacer`].
    pub batch_age: Duration,
    /// Bytes at which a batch is sent without waiting.
    pub batch_bytes: usize,
    /// Bytes from which a batch is compressed if that makes it smaller.
    pub batch_compress_bytes: usize,
    /// Other instances up to which batches go over the instance's lane; 0 for never.
    pub lane_peers: usize,
    /// Time between heartbeats; at most half of `inactive_threshold`.
    pub heartbeat_interval: Duration,
    /// Time between looks for instances that have gone silent; at most `inactive_threshold`.
    pub cleanup_interval: Duration,
    /// Time within which the members of an instance that died have left.
    pub inactive_threshold: Duration,
    /// Whether the connections of users are counted: there is a `MAX_CONNECTIONS_PER_USER` at the start. What it is may
    /// change, whether there is one not.
    pub counts_connections: bool,
}

/// Looks for silent instances within the inactivity threshold, at least.
const LOOKS_PER_THRESHOLD: u32 = 10;

impl RedisSettings {
    /// Silence after which an instance counts as gone: shorter than the threshold by two looks, the one that finds it and
    /// another in which its rooms are cleared.
    pub fn silence(&self) -> Duration {
        self.inactive_threshold / LOOKS_PER_THRESHOLD * (LOOKS_PER_THRESHOLD - 2)
    }

    /// Time between looks for silent instances.
    pub fn look_interval(&self) -> Duration {
        self.cleanup_interval.min(self.inactive_threshold / LOOKS_PER_THRESHOLD)
    }

    /// Settings before any value is read: no cluster while `host` is empty.
    pub(super) fn blank() -> Self {
        Self {
            host: String::new(),
            port: 0,
            username: None,
            password: None,
            db: 0,
            tls: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: String::new(),
            timeout: Duration::ZERO,
            batch_age: Duration::ZERO,
            batch_bytes: 0,
            batch_compress_bytes: 0,
            lane_peers: 0,
            heartbeat_interval: Duration::ZERO,
            cleanup_interval: Duration::ZERO,
            inactive_threshold: Duration::ZERO,
            counts_connections: false,
        }
    }

    /// Checks that the files of TLS are used, and are complete.
    pub(super) fn check_tls(&self) -> Result<(), SettingError> {
        let wrong = |text: &str| Err(SettingError::Together(text.into()));
        if self.cert_file.is_some() != self.key_file.is_some() {
            return wrong("REDIS_CERT_FILE and REDIS_KEY_FILE go together: set both or neither");
        }
        if !self.tls && self.ca_file.is_some() {
            return wrong("REDIS_CA_FILE is set without REDIS_TLS=true: the link would not be encrypted");
        }
        if !self.tls && self.cert_file.is_some() {
            return wrong("REDIS_CERT_FILE is set without REDIS_TLS=true: the link would not be encrypted");
        }
        Ok(())
    }
}

/// Shows where Redis is and nothing else: the password is a secret.
impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}
