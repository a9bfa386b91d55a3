//! How loaded the instances of a cluster are, and what follows: who sends new clients elsewhere, and how fast a drain
//! may go.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::OverloadSettings;

/// By how much an instance must be less loaded than this one to be sent clients: less would move them to and fro.
const MARGIN: f64 = 0.1;

/// By how much the load must have fallen below the threshold before an overloaded instance takes clients again.
const RELIEF: f64 = 0.05;

/// Sockets per second and shard that an idle instance takes in passing, TLS and the joins behind it included.
const WELCOMES_PER_SHARD: f64 = 200.0;

/// Shortest part of DRAIN_TIMEOUT that a drain uses where the others have room: fast enough for a rolling restart,
/// slow enough that they hardly notice.
const LEAST_SHARE: f64 = 0.4;

/// Largest part of it: what is left is for the last closes to be answered.
const LARGEST_SHARE: f64 = 0.8;

/// Slower than this many clients per second a drain relieves nobody.
const LEAST_PER_SECOND: f64 = 5.0;

/// Clients per second that an instance without others lets come back: to itself, once it has been started again.
const RETURNS_PER_SECOND: f64 = 2000.0;

/// Clients per second that such an instance closes: their leaving is told to the members of their rooms.
const CLOSES_PER_SECOND: f64 = 5000.0;

/// Shortest time over which they come back.
const LEAST_RETURN: Duration = Duration::from_secs(5);

/// What an instance says of its load.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceLoad {
    /// Client connections.
    pub connections: u64,
    /// Connections that it takes; 0 when it does not say.
    pub capacity: u64,
    /// Shards; 0 when it does not say.
    pub shards: u64,
    /// Part of their time in which its shards work, from 0 to 1.
    pub busy: f64,
    /// Whether it sends new clients elsewhere.
    pub overloaded: bool,
    /// Whether it is going away.
    pub draining: bool,
    /// Where clients reach this very instance.
    pub url: Option<Arc<str>>,
}

impl InstanceLoad {
    /// Connections as a part of those that it takes; 0 when it does not say.
    pub fn fullness(&self) -> f64 {
        if self.capacity == 0 { 0.0 } else { self.connections as f64 / self.capacity as f64 }
    }

    /// The greater of the two burdens, from 0 to 1.
    fn burden(&self) -> f64 {
        self.fullness().max(self.busy)
    }

    fn takes_clients(&self) -> bool {
        !self.draining && !self.overloaded && self.fullness() < 1.0
    }

    /// Connections that it still takes. One that does not say how many counts as half full.
    fn room(&self) -> u64 {
        match (self.takes_clients(), self.capacity) {
            (false, _) => 0,
            (true, 0) => self.connections.max(1),
            (true, capacity) => capacity.saturating_sub(self.connections),
        }
    }

    /// As part of what `/api/v1/instances` says of an instance.
    pub fn add_to(&self, facts: &mut Value) {
        facts["capacity"] = json!(self.capacity);
        facts["busy"] = json!((self.busy * 100.0).round() / 100.0);
        facts["overloaded"] = json!(self.overloaded);
        if let Some(url) = &self.url {
            facts["url"] = json!(&**url);
        }
    }
}

/// Where an overloaded instance sends new clients.
#[derive(Clone, Debug, PartialEq)]
pub enum Steering {
    /// Nowhere: it takes them itself.
    Welcome,
    /// To wherever they find another instance.
    Elsewhere,
    /// To this address.
    Redirect(Arc<str>),
}

/// What an instance with the load `own` does with new clients. `own.overloaded` is whether it sends them elsewhere so
/// far: it goes on doing so until there is some relief.
pub fn judge(own: &InstanceLoad, others: &[InstanceLoad], settings: OverloadSettings) -> Steering {
    let relief = if own.overloaded { RELIEF } else { 0.0 };
    let over = |percent: u8, part: f64| percent > 0 && part >= f64::from(percent) / 100.0 - relief;
    let full = over(settings.connections_percent, own.fullness());
    let busy = over(settings.busy_percent, own.busy);
    if !full && !busy {
        return Steering::Welcome;
    }
    // What weighs is what it has too much of: a busy instance is not helped by one with more room that is as busy.
    let weight = |load: &InstanceLoad| match (full, busy) {
        (true, true) => load.burden(),
        (true, false) => load.fullness(),
        (false, _) => load.busy,
    };
    let least = if own.overloaded { MARGIN / 2.0 } else { MARGIN };
    let fits = |load: &&InstanceLoad| load.takes_clients() && weight(load) <= weight(own) - least;
    let mut fitting: Vec<_> = others.iter().filter(fits).collect();
    fitting.sort_by(|one, other| one.burden().total_cmp(&other.burden()));
    match fitting.iter().find_map(|load| load.url.clone()) {
        _ if fitting.is_empty() => Steering::Welcome,
        Some(url) => Steering::Redirect(url),
        None => Steering::Elsewhere,
    }
}

/// How a draining instance sends its clients away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainPlan {
    /// Over which time clients are told to connect again.
    pub returns: Duration,
    /// Over which time their connections are closed.
    pub closes: Duration,
    /// How long a connection stays after the time that its client was told.
    pub grace: Duration,
}

impl DrainPlan {
    /// The plan of an instance with `connections` clients that has `timeout` for all of it. Nothing in `others` means
    /// that there are none.
    pub fn new(connections: u64, others: &[InstanceLoad], timeout: Duration) -> Self {
        let clients = connections as f64;
        if others.is_empty() {
            // Nobody else takes the clients, so the sooner this one comes back the better.
            let returns = Duration::from_secs_f64(clients / RETURNS_PER_SECOND).max(LEAST_RETURN);
            let closes = Duration::from_secs_f64(clients / CLOSES_PER_SECOND).min(timeout / 2);
            return Self { returns, closes, grace: Duration::ZERO };
        }
        let room = others.iter().map(InstanceLoad::room).fold(0_u64, u64::saturating_add);
        let pressure = if room == 0 { 1.0 } else { (clients / room as f64).min(1.0) };
        // Whoever has more than its part of the clients takes longer: in a rolling restart the later instances have,
        // and so all of them send away as many per second.
        let all = others.iter().map(|load| load.connections).fold(connections, u64::saturating_add);
        let parts = clients * (others.len() + 1) as f64 / all.max(1) as f64;
        let share = LEAST_SHARE * parts.max(1.0) + (LARGEST_SHARE - LEAST_SHARE) * pressure;
        let spare = |load: &InstanceLoad| load.shards.max(1) as f64 * (1.0 - load.busy).clamp(0.05, 1.0);
        let welcomes: f64 = others.iter().filter(|load| load.takes_clients()).map(spare).sum();
        let wanted = clients / (welcomes * WELCOMES_PER_SHARD).max(1.0);
        let most = timeout.mul_f64(LARGEST_SHARE).as_secs_f64();
        let useful = clients / LEAST_PER_SECOND;
        let seconds = timeout.mul_f64(share).as_secs_f64().max(wanted).min(useful).min(most);
        let closes = Duration::from_secs_f64(seconds);
        Self { returns: closes, closes, grace: (timeout / 10).min(Duration::from_secs(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: OverloadSettings = OverloadSettings { connections_percent: 90, busy_percent: 80 };
    const TIMEOUT: Duration = Duration::from_secs(30);

    fn load(connections: u64, busy: f64) -> InstanceLoad {
        InstanceLoad { connections, capacity: 100, shards: 2, busy, ..InstanceLoad::default() }
    }

    #[test]
    fn whoever_is_overloaded_sends_clients_to_others_that_are_not() {
        assert_eq!(judge(&load(89, 0.79), &[load(0, 0.0)], BOTH), Steering::Welcome);
        assert_eq!(judge(&load(90, 0.0), &[load(50, 0.9)], BOTH), Steering::Elsewhere);
        assert_eq!(judge(&load(10, 0.8), &[load(80, 0.3)], BOTH), Steering::Elsewhere);
        let never = OverloadSettings::default();
        assert_eq!(judge(&load(100, 1.0), &[load(0, 0.0)], never), Steering::Welcome);
    }

    #[test]
    fn nobody_sends_clients_to_those_that_are_as_loaded() {
        let own = load(95, 0.9);
        let draining = InstanceLoad { draining: true, ..load(0, 0.0) };
        let overloaded = InstanceLoad { overloaded: true, ..load(10, 0.1) };
        for others in [vec![], vec![load(90, 0.9), load(94, 0.5)], vec![draining, overloaded]] {
            assert_eq!(judge(&own, &others, BOTH), Steering::Welcome, "{others:?}");
        }
        assert_eq!(judge(&load(10, 0.9), &[load(0, 0.85)], BOTH), Steering::Welcome, "as busy");
    }

    #[test]
    fn relief_must_be_felt_before_clients_are_welcome_again() {
        let other = [load(0, 0.0)];
        let still =
            |connections| judge(&InstanceLoad { overloaded: true, ..load(connections, 0.0) }, &other, BOTH);
        assert_eq!(still(86), Steering::Elsewhere);
        assert_eq!(still(84), Steering::Welcome);
        assert_eq!(judge(&load(86, 0.0), &other, BOTH), Steering::Welcome, "it was not overloaded");
    }

    #[test]
    fn the_least_loaded_that_has_an_address_gets_them() {
        let at = |connections, url: &str| InstanceLoad { url: Some(url.into()), ..load(connections, 0.0) };
        let others = [at(40, "ws://b"), load(0, 0.0), at(20, "ws://c")];
        assert_eq!(judge(&load(95, 0.0), &others, BOTH), Steering::Redirect("ws://c".into()));
    }

    #[test]
    fn a_drain_is_slower_where_the_others_have_less_room_and_never_too_long() {
        let seconds =
            |clients, others: &[InstanceLoad]| DrainPlan::new(clients, others, TIMEOUT).closes.as_secs_f64();
        let roomy = InstanceLoad { capacity: 1_000_000, ..load(0, 0.0) };
        let narrow = InstanceLoad { capacity: 2_000, ..load(1_000, 0.0) };
        let busy = InstanceLoad { busy: 1.0, ..roomy.clone() };
        let full = load(100, 0.0);
        let even = |connections| InstanceLoad { connections, ..roomy.clone() };
        assert!((11.9..12.2).contains(&seconds(1_000, &[even(1_000), even(1_000)])));
        assert!((17.9..18.2).contains(&seconds(1_500, &[even(0), even(1_500)])), "half of all clients");
        assert!(seconds(1_000, &[narrow]) > 20.0);
        assert!(seconds(1_000, &[even(1_000)]) < 13.0 && seconds(6_000, &[busy, even(10_000)]) > 13.0);
        for others in [vec![full], vec![roomy.clone()]] {
            let plan = DrainPlan::new(10_000_000, &others, TIMEOUT);
            assert!(plan.closes + plan.grace < TIMEOUT && plan.closes > TIMEOUT / 2, "{plan:?}");
        }
        assert!(seconds(10, &[roomy]) <= 2.0, "few clients are gone soon");
        assert!(DrainPlan::new(1_000, &[load(0, 0.0)], Duration::ZERO).closes.is_zero());
    }

    #[test]
    fn whoever_is_alone_goes_at_once_and_its_clients_come_back_one_by_one() {
        let plan = DrainPlan::new(100_000, &[], TIMEOUT);
        assert_eq!((plan.returns, plan.closes), (Duration::from_secs(50), Duration::from_secs(15)));
        assert_eq!(DrainPlan::new(10, &[], Duration::from_secs(1)).returns, LEAST_RETURN);
    }
}
