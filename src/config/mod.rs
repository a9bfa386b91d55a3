//! The settings of a running server: what they are once read, checked one by one and against each other.

mod administration;
mod authentication;
pub mod catalog;
mod history;
mod input;
mod quotas;
mod redis;
pub mod reload;
pub mod setting;
pub mod sources;
mod tls;
mod tracing;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::administration::{AdministrationSettings, ApiKeys};
pub use self::authentication::{AuthorizationSettings, KeySettings};
use self::catalog::settings;
pub use self::history::{HistorySettings, RoomPattern};
pub use self::input::InputSettings;
pub use self::quotas::LimitSettings;
pub use self::redis::RedisSettings;
use self::setting::{Group, SettingError, Source};
use self::sources::Given;
pub use self::tls::TlsSettings;
pub use self::tracing::TraceSettings;
use crate::identity::InstanceId;
use crate::limits;
use crate::permission::RoomRights;

/// Which of the two commands starts the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `tableforge serve`: the production form.
    Serve,
    /// `tableforge dev`: for a person trying it out, on loopback, with anonymous users, without Redis.
    Dev,
}

/// Everything that can be set, checked.
#[derive(Clone)]
pub struct Settings {
    /// Address to listen on.
    pub ws_host: IpAddr,
    /// Port to listen on; 0 lets the system choose.
    pub ws_port: u16,
    /// Connections this instance takes; more get 503.
    pub ws_max_connections: u32,
    /// Name of this instance in the cluster.
    pub instance_id: InstanceId,
    /// Shards (executor threads), 1 to [`limits::SHARDS`].
    pub shards: usize,
    /// Longest time that delivered messages wait for a flush.
    pub flush_budget: Duration,
    /// Bytes of one client message.
    pub max_message_bytes: usize,
    /// Rooms that one connection may be in; `usize::MAX` for no limit.
    pub max_rooms_per_connection: usize,
    /// Messages per second that one connection may send; 0 for no limit.
    pub message_rate: u32,
    /// Messages that one connection may send at once; 0 for no limit.
    pub message_burst: u32,
    /// Members above which a room reports its size instead of each join and leave.
    pub presence_max_members: u32,
    /// Bytes that may wait for a connection that reads slowly; at least twice `max_message_bytes`.
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
    /// Whether messages are compressed for clients that offer it.
    pub compression: bool,
    /// Bytes of payload from which a message is compressed.
    pub compression_threshold: usize,
    /// Longest time that draining takes.
    pub drain_timeout: Duration,
    /// From when on new clients are sent to other instances.
    pub overload: OverloadSettings,
    /// Where clients reach this very instance, without a path.
    pub advertise_url: Option<Arc<str>>,
    /// Whether clients must authenticate.
    pub auth_required: bool,
    /// The HMAC secret that tokens are verified with; [`limits::JWT_SECRET_BYTES`] or more. When
    /// `auth_required`, there is this or a file in `keys`.
    pub jwt_secret: Option<String>,
    /// Where keys come from besides, and what the secret is for.
    pub keys: KeySettings,
    /// Whom to ask what users without a `rooms` claim may do, if anyone.
    pub authorization: Option<AuthorizationSettings>,
    /// The `iss` that tokens must have.
    pub jwt_issuer: Option<String>,
    /// The `aud` that tokens must have.
    pub jwt_audience: Option<String>,
    /// How far the clock of a token's maker may be from this one.
    pub token_leeway: Duration,
    /// What users without a `rooms` claim may do in rooms.
    pub default_room_permissions: RoomRights,
    /// Origins that browsers may connect from, in lower case; empty for all.
    pub allowed_origins: Vec<String>,
    /// Whether `/` serves the console page.
    pub console: bool,
    /// What is logged, as filter directives.
    pub log_level: String,
    /// Form of a log line.
    pub log_format: LogFormat,
    /// Lines of one kind within ten seconds; 0 for no limit.
    pub log_repeats: u64,
    /// What is traced, and where to.
    pub traces: TraceSettings,
    /// What a connection, a user, an address, a room and the cluster may use.
    pub limits: LimitSettings,
    /// What messages and names have to look like.
    pub input: InputSettings,
    /// Which rooms have history.
    pub history: HistorySettings,
    /// The certificate for clients; without it the server speaks plaintext.
    pub tls: Option<TlsSettings>,
    /// Who may administrate, and from where.
    pub administration: AdministrationSettings,
    /// Redis, if there is a cluster.
    pub redis: Option<RedisSettings>,
}

/// From when on an instance sends new clients to others, in percent; 0 for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverloadSettings {
    /// Of `ws_max_connections`.
    pub connections_percent: u8,
    /// Of its shards' time.
    pub busy_percent: u8,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, for machines.
    Json,
    /// Plain text, for people.
    Pretty,
}

impl LogFormat {
    /// The format that `name` names.
    pub fn parse(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "json" => Some(Self::Json),
            "pretty" => Some(Self::Pretty),
            _ => None,
        }
    }
}

/// Shows no field: some of them are secrets, and a log line is no place for them.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("instance_id", &self.instance_id).finish_non_exhaustive()
    }
}

/// Checked settings, and what the person who gave them should know.
#[derive(Debug)]
pub struct Checked {
    /// The settings.
    pub settings: Settings,
    /// Values that were given and have no effect, one sentence each.
    pub notes: Vec<String>,
}

impl Settings {
    /// Settings out of `given` values and, for all others, the defaults of `mode`.
    ///
    /// # Errors
    /// When a value is not allowed, or values do not go together.
    pub fn from_given(mode: Mode, given: &[Given]) -> Result<Checked, SettingError> {
        let mut draft = Draft::blank();
        let mut notes = Vec::new();
        let mut redis_values = Vec::new();
        for setting in settings() {
            let mut value = given.iter().find(|given| given.setting.name == setting.name);
            if let Some(found) = value
                && mode == Mode::Dev
                && setting.serve_only()
            {
                if found.source == Source::Flag {
                    return Err(SettingError::ServeOnly { flag: setting.flag() });
                }
                notes.push(format!("tableforge dev ignores {}", setting.name));
                value = None;
            }
            if let Some(given) = value {
                setting.apply(&mut draft, &given.value, &given.source)?;
                if setting.group == Group::Redis {
                    redis_values.push(setting.name);
                }
            } else if let Some(default) = setting.default.value(mode) {
                setting.apply(&mut draft, default, &Source::Default)?;
            }
        }
        if draft.redis.host.is_empty() && !redis_values.is_empty() {
            let names = redis_values.join(", ");
            notes.push(format!("without REDIS_HOST the server runs alone: no effect of {names}"));
        }
        Ok(Checked { settings: draft.finish(mode)?, notes })
    }

    /// Settings for a test: one shard, a port that the system chooses on loopback, anonymous users,
    /// no Redis; everything else as by default.
    ///
    /// # Panics
    /// When a default is not allowed.
    pub fn for_tests() -> Self {
        let values = [("WS_PORT", "0"), ("SHARDS", "1"), ("INSTANCE_ID", "test"), ("CONSOLE", "false")];
        let given: Vec<_> =
            values.iter().map(|(name, value)| Given::new(name, value, Source::Default)).collect();
        match Self::from_given(Mode::Dev, &given) {
            Ok(checked) => checked.settings,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Settings while they are being read: every field is there, not every one has its value yet.
pub struct Draft {
    /// What will become the result.
    pub settings: Settings,
    /// What will become its `redis`; no cluster while `host` is empty.
    pub redis: RedisSettings,
    /// What will become its `authorization`; nobody is asked while `url` is empty.
    pub authorization: AuthorizationSettings,
    /// TLS_CERT_FILE, if given.
    pub tls_cert_file: Option<PathBuf>,
    /// TLS_KEY_FILE, if given.
    pub tls_key_file: Option<PathBuf>,
    /// HEARTBEAT_INTERVAL, if given.
    pub heartbeat_interval: Option<Duration>,
    /// CLEANUP_INTERVAL, if given.
    pub cleanup_interval: Option<Duration>,
    /// MAX_CONNECTIONS_PER_ADDRESS, if given.
    pub connections_per_address: Option<u32>,
}

impl Draft {
    /// A draft before any value is read. Values that stand for "not read yet" are 0 and empty; the
    /// ones without a fixed default (see the catalog) have what is computed instead.
    fn blank() -> Self {
        let zero = Duration::ZERO;
        let settings = Settings {
            ws_host: Ipv4Addr::LOCALHOST.into(),
            ws_port: 0,
            ws_max_connections: 0,
            instance_id: made_up_instance_id(),
            shards: usable_cpus().clamp(1, limits::SHARDS),
            flush_budget: zero,
            max_message_bytes: 0,
            max_rooms_per_connection: 0,
            message_rate: 0,
            message_burst: 0,
            presence_max_members: 0,
            outbox_bytes: 0,
            outbox_age: zero,
            handshake_timeout: zero,
            authentication_timeout: zero,
            ping_interval: zero,
            pong_timeout: zero,
            compression: false,
            compression_threshold: 0,
            drain_timeout: zero,
            overload: OverloadSettings::default(),
            advertise_url: None,
            auth_required: true,
            jwt_secret: None,
            keys: KeySettings::none(),
            authorization: None,
            jwt_issuer: None,
            jwt_audience: None,
            token_leeway: zero,
            default_room_permissions: RoomRights::NONE,
            allowed_origins: Vec::new(),
            console: false,
            log_level: String::new(),
            log_format: LogFormat::Json,
            log_repeats: 0,
            traces: TraceSettings::none(),
            limits: LimitSettings::none(),
            input: InputSettings::default(),
            history: HistorySettings::none(),
            tls: None,
            administration: AdministrationSettings::none(),
            redis: None,
        };
        Self {
            settings,
            redis: RedisSettings::blank(),
            authorization: AuthorizationSettings::default(),
            tls_cert_file: None,
            tls_key_file: None,
            heartbeat_interval: None,
            cleanup_interval: None,
            connections_per_address: None,
        }
    }

    /// Checks the values against each other.
    fn finish(self, mode: Mode) -> Result<Settings, SettingError> {
        let Self {
            mut settings,
            mut redis,
            authorization,
            heartbeat_interval,
            cleanup_interval,
            connections_per_address,
            ..
        } = self;
        settings.tls = match (self.tls_cert_file, self.tls_key_file) {
            (Some(cert_file), Some(key_file)) => Some(TlsSettings { cert_file, key_file }),
            (None, None) => None,
            _ => {
                let text = "TLS_CERT_FILE and TLS_KEY_FILE go together: set both or neither";
                return Err(SettingError::Together(text.into()));
            }
        };
        redis.check_tls()?;
        let wrong = |text: String| Err(SettingError::Together(text));
        if mode == Mode::Dev && !settings.ws_host.is_loopback() {
            return wrong(format!(
                "WS_HOST: {} is not a loopback address; tableforge dev lets everyone in and so listens on \
                 loopback only; allowed: 127.0.0.1 or ::1 (or use tableforge serve)",
                settings.ws_host
            ));
        }
        authentication::check(&settings).map_err(SettingError::Together)?;
        authorization.check().map_err(SettingError::Together)?;
        settings.traces.check().map_err(SettingError::Together)?;
        if settings.outbox_bytes < 2 * settings.max_message_bytes {
            return wrong(format!(
                "OUTBOX_BYTES: {} is too little for messages of {} bytes (MAX_MESSAGE_BYTES); allowed: {} or more",
                settings.outbox_bytes,
                settings.max_message_bytes,
                2 * settings.max_message_bytes
            ));
        }
        let limits = settings.limits.finish(mode, connections_per_address);
        limits.map_err(|text| SettingError::Together(text.into()))?;
        settings.input.load()?;
        if redis.username.is_some() && redis.password.is_none() {
            return wrong("REDIS_USERNAME is set without REDIS_PASSWORD: set both or neither".into());
        }
        let threshold = redis.inactive_threshold;
        let third = (threshold / 3).min(Duration::from_secs(5));
        redis.heartbeat_interval = heartbeat_interval.unwrap_or(third);
        redis.cleanup_interval = cleanup_interval.unwrap_or(third);
        // With more than half, one lost heartbeat would make a healthy instance count as gone.
        for (name, value, most) in [
            ("HEARTBEAT_INTERVAL", redis.heartbeat_interval, threshold / 2),
            ("CLEANUP_INTERVAL", redis.cleanup_interval, threshold),
        ] {
            if value > most {
                return wrong(format!(
                    "{name}: {} is too long for an INACTIVE_THRESHOLD of {}; allowed: at most {}",
                    value.as_millis(),
                    threshold.as_millis(),
                    most.as_millis()
                ));
            }
        }
        redis.counts_connections = settings.limits.max_connections_per_user > 0;
        settings.redis = (!redis.host.is_empty()).then_some(redis);
        settings.authorization = (!authorization.url.is_empty()).then_some(authorization);
        Ok(settings)
    }
}

/// CPUs that this process may run on. 0 if the system does not say.
pub fn usable_cpus() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(0, |cpus| cpus.count() as usize)
}

/// A name that no other instance has: a host name would be shared by two instances on one host, and
/// be the same again after a restart, while the cluster still knows the old process by it.
fn made_up_instance_id() -> InstanceId {
    let random = uuid::Uuid::now_v7().simple().to_string();
    InstanceId::parse(&format!("tf-{}", &random[20..])).expect("hexadecimal digits are allowed in a name")
}
