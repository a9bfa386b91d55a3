//! Which instances are alive, by what is heard from them and when; their clocks are not trusted.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::batch::Origin;
use crate::hashing::Hashing;
use crate::identity::InstanceId;

/// Instances that are remembered: any program may publish heartbeats, and memory must not follow it.
const INSTANCES: usize = 4_096;

/// What an instance carries at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Client connections.
    pub connections: u64,
    /// Rooms with members on this instance.
    pub rooms: u64,
    /// Shards.
    pub shards: u64,
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
        connections: load.connections,
        rooms: load.rooms,
        shards: load.shards,
        uptime: load.uptime.as_secs(),
        cpu: load.cpu.filter(|cpu| cpu.is_finite()),
        version: env!("CARGO_PKG_VERSION"),
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
    last_heard: HashMap<InstanceId, Instant, Hashing>,
}

impl Registry {
    /// Nobody heard yet. `threshold` is the silence after which an instance counts as gone.
    pub fn new(this: &InstanceId, threshold: Duration) -> Self {
        Self { this: this.clone(), threshold, last_heard: HashMap::default() }
    }

    /// An instance is alive, as far as Redis knows.
    pub fn heard(&mut self, instance: InstanceId, now: Instant) {
        if instance != self.this
            && (self.last_heard.len() < INSTANCES || self.last_heard.contains_key(&instance))
        {
            self.last_heard.insert(instance, now);
        }
    }

    /// Takes a message of the `instances` channel: who has said what; nothing when `payload` is none.
    pub fn message(&mut self, payload: &[u8], now: Instant) -> Option<(InstanceId, Said)> {
        let heard = serde_json::from_slice::<Heard>(payload).ok()?;
        let instance = InstanceId::parse(&heard.instance_id)?;
        if heard.leaving {
            self.last_heard.remove(&instance);
            return Some((instance, Said::Leaving));
        }
        self.heard(instance.clone(), now);
        let said = match (heard.asks, heard.hears) {
            (Some(question), _) => Said::Asks(question),
            (None, Some(question)) => Said::Hears(question),
            (None, None) => Said::Alive,
        };
        Some((instance, said))
    }

    /// An instance has been removed from the cluster.
    pub fn gone(&mut self, instance: &str) {
        self.last_heard.retain(|known, _| known.as_str() != instance);
    }

    /// Forgets who has been silent for the threshold.
    pub fn forget_silent(&mut self, now: Instant) {
        self.last_heard.retain(|_, heard| now < *heard + self.threshold);
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
            connections: 3,
            rooms: 2,
            shards: 4,
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
