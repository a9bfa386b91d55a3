//! Which instances are alive, by what is heard from them and when; their clocks are not trusted.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::batch::Origin;
use crate::config::catalog;
use crate::hashing::Hashing;
use crate::identity::InstanceId;
use crate::metrics::UplinkCells;
use crate::steering::InstanceLoad;

/// Instances that are remembered: any program may publish heartbeats, and memory must not follow it.
const INSTANCES: usize = 4_096;

/// What an instance carries at the moment.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Connections, shards, and what follows from them.
    pub instance: InstanceLoad,
    /// Rooms with members on this instance.
    pub rooms: u64,
    /// Time since the start.
    pub uptime: Duration,
    /// CPU time used, in cores, if measured: 1.5 is one and a half cores.
    pub cpu: Option<f64>,
}

/// A heartbeat on the `instances` channel.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Heartbeat<'a> {
    instance_id: &'a str,
    boot_id: &'a str,
    connections: u64,
    rooms: u64,
    shards: u64,
    uptime: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<f64>,
    version: &'a str,
    capacity: u64,
    busy: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    overloaded: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    timestamp: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    leaving: bool,
}

/// What a receiver needs of a message on the `instances` channel.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Heard {
    instance_id: String,
    #[serde(default)]
    connections: u64,
    #[serde(default)]
    capacity: u64,
    #[serde(default)]
    shards: u64,
    #[serde(default)]
    busy: f64,
    #[serde(default)]
    overloaded: bool,
    #[serde(default)]
    draining: bool,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    leaving: bool,
    asks: Option<String>,
    hears: Option<String>,
}

/// A question or an answer about lanes on the `instances` channel.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AboutLanes<'a> {
    instance_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    asks: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hears: Option<&'a str>,
}

/// What an instance has said on the `instances` channel.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It is alive.
    Alive,
    /// It goes.
    Leaving,
    /// It asks who listens to its lane; the text is to be repeated in the answer.
    Asks(String),
    /// It listens to the lane of the instance that has asked this.
    Hears(String),
}

/// The JSON text by which `instance` asks who listens to its lane.
pub fn question(instance: &InstanceId, text: &str) -> Vec<u8> {
    let about = AboutLanes { instance_id: instance.as_str(), asks: Some(text), hears: None };
    serde_json::to_vec(&about).expect("texts are always JSON")
}

/// The JSON text by which `instance` answers a question.
pub fn answer(instance: &InstanceId, text: &str) -> Vec<u8> {
    let about = AboutLanes { instance_id: instance.as_str(), asks: None, hears: Some(text) };
    serde_json::to_vec(&about).expect("texts are always JSON")
}

impl Heard {
    fn load(self) -> InstanceLoad {
        // It becomes a header of this server's answers, so it is held to what this server itself would announce.
        let url = self.url.filter(|url| catalog::is_server_address(url));
        InstanceLoad {
            connections: self.connections,
            capacity: self.capacity,
            shards: self.shards,
            busy: self.busy.clamp(0.0, 1.0),
            overloaded: self.overloaded,
            draining: self.draining,
            url: url.map(Into::into),
        }
    }
}

/// The JSON text of this instance's heartbeat at `timestamp` (milliseconds since 1970).
pub fn heartbeat(
    instance: &InstanceId,
    origin: Origin,
    load: Load,
    timestamp: u64,
    leaving: bool,
) -> Vec<u8> {
    let heartbeat = Heartbeat {
        instance_id: instance.as_str(),
        boot_id: &format!("{:016x}", origin.0),
        connections: load.instance.connections,
        rooms: load.rooms,
        shards: load.instance.shards,
        uptime: load.uptime.as_secs(),
        cpu: load.cpu.filter(|cpu| cpu.is_finite()),
        version: env!("CARGO_PKG_VERSION"),
        capacity: load.instance.capacity,
        busy: (load.instance.busy * 100.0).round() / 100.0,
        overloaded: load.instance.overloaded,
        draining: load.instance.draining,
        url: load.instance.url.as_deref(),
        timestamp,
        leaving,
    };
    serde_json::to_vec(&heartbeat).expect("texts and finite numbers are always JSON")
}

/// The other instances of the cluster.
#[derive(Debug)]
pub struct Registry {
    this: InstanceId,
    threshold: Duration,
    last_heard: HashMap<InstanceId, (Instant, InstanceLoad), Hashing>,
    /// Whether what is known of the others' load has changed since it was last asked for.
    changed: bool,
}

impl Registry {
    /// Nobody heard yet. `threshold` is the silence after which an instance counts as gone.
    pub fn new(this: &InstanceId, threshold: Duration) -> Self {
        Self { this: this.clone(), threshold, last_heard: HashMap::default(), changed: false }
    }

    /// An instance is alive, as far as Redis knows.
    pub fn heard(&mut self, instance: InstanceId, now: Instant) {
        if instance != self.this
            && (self.last_heard.len() < INSTANCES || self.last_heard.contains_key(&instance))
        {
            self.last_heard.entry(instance).or_insert_with(|| (now, InstanceLoad::default())).0 = now;
        }
    }

    /// Takes a message of the `instances` channel: who has said what; nothing when `payload` is none.
    pub fn message(&mut self, payload: &[u8], now: Instant) -> Option<(InstanceId, Said)> {
        let mut heard = serde_json::from_slice::<Heard>(payload).ok()?;
        let instance = InstanceId::parse(&heard.instance_id)?;
        self.changed = true;
        if heard.leaving {
            self.last_heard.remove(&instance);
            return Some((instance, Said::Leaving));
        }
        self.heard(instance.clone(), now);
        let said = match (heard.asks.take(), heard.hears.take()) {
            (Some(question), _) => Said::Asks(question),
            (None, Some(question)) => Said::Hears(question),
            (None, None) => {
                if let Some((_, load)) = self.last_heard.get_mut(&instance) {
                    *load = heard.load();
                }
                Said::Alive
            }
        };
        Some((instance, said))
    }

    /// An instance has been removed from the cluster.
    pub fn gone(&mut self, instance: &str) {
        self.changed = true;
        self.last_heard.retain(|known, _| known.as_str() != instance);
    }

    /// Forgets who has been silent for the threshold.
    pub fn forget_silent(&mut self, now: Instant) {
        let known = self.last_heard.len();
        self.last_heard.retain(|_, (heard, _)| now < *heard + self.threshold);
        self.changed |= self.last_heard.len() != known;
    }

    /// Counts the instances, and passes on what the others have said of their load since the last call.
    pub fn tell(&mut self, cells: &UplinkCells) {
        cells.instances.set(self.alive() as u64);
        if let Some(loads) = self.take_loads() {
            cells.others.store(loads.into());
        }
    }

    /// What the other instances said of their load, if that has changed since the last call.
    fn take_loads(&mut self) -> Option<Vec<InstanceLoad>> {
        std::mem::take(&mut self.changed)
            .then(|| self.last_heard.values().map(|(_, load)| load.clone()).collect())
    }

    /// Instances alive, this one included.
    pub fn alive(&self) -> usize {
        self.last_heard.len() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLD: Duration = Duration::from_secs(30);

    fn id(name: &str) -> InstanceId {
        InstanceId::parse(name).unwrap()
    }

    #[test]
    fn a_heartbeat_says_what_the_contract_lists() {
        let load = Load {
            instance: InstanceLoad { connections: 3, capacity: 9, shards: 4, ..InstanceLoad::default() },
            rooms: 2,
            uptime: Duration::from_millis(9_900),
            cpu: Some(0.5),
        };
        let text = String::from_utf8(heartbeat(&id("a"), Origin(0xAB), load, 77, false)).unwrap();
        let start = r#"{"instanceId":"a","bootId":"00000000000000ab","connections":3,"rooms":2,"shards":4,"uptime":9,"#;
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with(r#""timestamp":77}"#), "{text}");
        let last = String::from_utf8(heartbeat(&id("a"), Origin(0), Load::default(), 77, true)).unwrap();
        assert!(last.ends_with(r#""leaving":true}"#) && !last.contains("cpu"), "{last}");
    }

    #[test]
    fn silence_ends_membership_whatever_the_senders_clock_says() {
        let start = Instant::now();
        let mut registry = Registry::new(&id("a"), THRESHOLD);
        let said = registry.message(&heartbeat(&id("b"), Origin(2), Load::default(), 0, false), start);
        assert_eq!(said, Some((id("b"), Said::Alive)));
        registry.heard(id("c"), start + THRESHOLD / 2);
        assert_eq!(registry.alive(), 3);
        registry.forget_silent(start + THRESHOLD);
        assert_eq!(registry.alive(), 2);
        registry.forget_silent(start + THRESHOLD * 2);
        assert_eq!(registry.alive(), 1);
    }

    #[test]
    fn the_load_of_others_is_known_and_a_made_up_address_is_not_passed_on() {
        let now = Instant::now();
        let mut registry = Registry::new(&id("a"), THRESHOLD);
        let own = InstanceLoad {
            connections: 3,
            capacity: 9,
            shards: 4,
            busy: 0.25,
            overloaded: true,
            draining: false,
            url: Some("wss://b.example:3001".into()),
        };
        let load = Load { instance: own.clone(), ..Load::default() };
        assert!(registry.take_loads().is_none());
        registry.message(&heartbeat(&id("b"), Origin(2), load, 0, false), now);
        assert_eq!(registry.take_loads(), Some(vec![own]));
        assert!(registry.take_loads().is_none(), "nothing new");
        let forged = r#"{"instanceId":"b","busy":7.0,"url":"ws://x\r\nSet-Cookie: a"}"#;
        assert!(registry.message(forged.as_bytes(), now).is_some());
        let loads = registry.take_loads().unwrap();
        assert!(loads[0].url.is_none() && loads[0].busy <= 1.0, "{loads:?}");
        registry.gone("b");
        assert_eq!(registry.take_loads(), Some(vec![]));
    }

    #[test]
    fn itself_is_counted_once_and_a_farewell_at_once() {
        let now = Instant::now();
        let mut registry = Registry::new(&id("a"), THRESHOLD);
        registry.message(&heartbeat(&id("a"), Origin(1), Load::default(), 0, false), now);
        assert_eq!(registry.alive(), 1);
        registry.heard(id("b"), now);
        let said = registry.message(&heartbeat(&id("b"), Origin(2), Load::default(), 0, true), now);
        assert_eq!((said, registry.alive()), (Some((id("b"), Said::Leaving)), 1));
    }

    #[test]
    fn lanes_are_talked_about_among_the_heartbeats() {
        let now = Instant::now();
        let mut registry = Registry::new(&id("a"), THRESHOLD);
        assert_eq!(question(&id("b"), "7-1"), br#"{"instanceId":"b","asks":"7-1"}"#);
        let said = registry.message(&question(&id("b"), "7-1"), now);
        assert_eq!(said, Some((id("b"), Said::Asks("7-1".into()))));
        assert_eq!(answer(&id("c"), "7-1"), br#"{"instanceId":"c","hears":"7-1"}"#);
        let said = registry.message(&answer(&id("c"), "7-1"), now);
        assert_eq!((said, registry.alive()), (Some((id("c"), Said::Hears("7-1".into()))), 3));
    }

    #[test]
    fn what_is_no_heartbeat_is_refused_and_memory_is_bounded() {
        let now = Instant::now();
        let mut registry = Registry::new(&id("a"), THRESHOLD);
        for payload in [&b"{}"[..], b"{\"instanceId\":\"\\u0000\"}", b"\xff", b"[]"] {
            assert_eq!(registry.message(payload, now), None);
        }
        for n in 0..INSTANCES + 10 {
            registry.heard(id(&format!("i{n}")), now);
        }
        assert_eq!(registry.alive(), INSTANCES + 1);
    }
}
