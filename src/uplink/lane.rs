//! When an instance may send everything over its lane: one channel that all other instances listen to.
//!
//! A batch on a room's channel reaches whoever Redis knows as a listener. A batch on a lane reaches the same members
//! only if every other instance listens to the lane, and that must be known beforehand. It is, while the lane is
//! open, by two rules:
//!
//! - An instance that registers is told by the same script call who else is registered, and listens to their lanes
//!   before it answers any join. So whoever registers after this instance listens to its lane.
//! - Those that had registered before are asked, after this instance's registration, and answer behind their
//!   SUBSCRIBE. The lane opens when all of them have.
//!
//! Both rest on this instance's registration: it must have stood, without an interruption, from the asking on to
//! the moment at which Redis carried the PUBLISH out. A registration stands until the instance counts as gone. So the
//! grant ends before that, unless the registration was renewed; a registration that came too late begins a new
//! *term*, in which all are asked again; and a batch whose answer does not come within the term and the time counts
//! as missed. The link's loss ends the term as well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::batch::Origin;
use crate::identity::InstanceId;

/// Part of the silence after which an instance counts as gone that is left unused: clocks of two machines differ in speed.
const MARGIN: u32 = 8;

/// What the publisher may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The other instances, all of which listen; 0 when the lane is closed.
    pub peers: usize,
    /// Until when this instance is certainly registered.
    pub until: Option<Instant>,
    /// Rises when the registration may have been interrupted.
    pub term: u64,
}

impl Grant {
    /// Whether batches may go over the lane.
    pub fn is_open(&self, now: Instant) -> bool {
        self.peers > 0 && self.until.is_some_and(|until| now < until)
    }

    /// Whether a batch that was sent in `term` and is answered `now` has reached all.
    pub fn covers(&self, term: u64, now: Instant) -> bool {
        self.term == term && self.until.is_some_and(|until| now < until)
    }
}

/// The way on which the ingress tells the publisher.
pub type Gate = Arc<ArcSwap<Grant>>;

/// A gate that is closed.
pub fn closed() -> Gate {
    Arc::new(ArcSwap::from_pointee(Grant { peers: 0, until: None, term: 0 }))
}

/// Lanes that are to be listened to from now on, and no longer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Instances whose lane is to be subscribed.
    pub subscribe: Vec<InstanceId>,
    /// Instances whose lane is to be unsubscribed.
    pub unsubscribe: Vec<InstanceId>,
}

/// What the ingress knows about lanes: who listens to its own, and to whose it listens.
#[derive(Debug)]
pub struct Lanes {
    this: InstanceId,
    origin: Origin,
    /// Other instances up to which the lane is used; 0 for never.
    most_peers: usize,
    /// Time for which a registration stands.
    stands: Duration,
    /// When the registration that stands was asked for; nothing before the first one of a connection.
    registered: Option<Instant>,
    /// The instances that Redis named last, and those heard of since; without this one.
    peers: BTreeSet<InstanceId>,
    /// Those that have answered in this term.
    hearers: BTreeSet<InstanceId>,
    /// Those whose lanes this instance listens to.
    heard: BTreeSet<InstanceId>,
    term: u64,
    gate: Gate,
}

impl Lanes {
    /// Without a connection. `silence` is that after which others take an instance for gone.
    pub fn new(
        (this, origin): (&InstanceId, Origin),
        most_peers: usize,
        silence: Duration,
        gate: Gate,
    ) -> Self {
        Self {
            this: this.clone(),
            origin,
            most_peers,
            stands: silence - silence / MARGIN,
            registered: None,
            peers: BTreeSet::new(),
            hearers: BTreeSet::new(),
            heard: BTreeSet::new(),
            term: 0,
            gate,
        }
    }

    /// The connection is gone, and all subscriptions with it.
    pub fn lost(&mut self) {
        self.registered = None;
        self.heard.clear();
        self.begin_term();
        self.grant();
    }

    fn begin_term(&mut self) {
        self.term += 1;
        self.hearers.clear();
    }

    /// The instance is registered by a call of the time `at`, together with `instances`; the answer came `now`.
    /// `stood` says whether Redis still had an earlier registration.
    pub fn registered(
        &mut self,
        (at, stood): (Instant, bool),
        instances: &[InstanceId],
        now: Instant,
    ) -> Changes {
        if !stood || self.registered.is_none_or(|last| now >= last + self.stands) {
            self.begin_term();
        }
        self.registered = Some(at);
        self.peers = instances.iter().filter(|instance| **instance != self.this).cloned().collect();
        self.hearers.retain(|hearer| self.peers.contains(hearer));
        let changes = Changes {
            subscribe: self.peers.difference(&self.heard).cloned().collect(),
            unsubscribe: self.heard.difference(&self.peers).cloned().collect(),
        };
        self.heard.clone_from(&self.peers);
        self.grant();
        changes
    }

    /// An instance has sent something. True when it was not known: it may not listen to the lane.
    pub fn heard_of(&mut self, instance: &InstanceId) -> bool {
        let is_news =
            *instance != self.this && self.registered.is_some() && self.peers.insert(instance.clone());
        if is_news {
            self.grant();
        }
        is_news
    }

    /// Whether the instance is registered and has not answered in this term.
    pub fn waits_for(&self, instance: &InstanceId) -> bool {
        self.peers.contains(instance) && !self.hearers.contains(instance)
    }

    /// An instance has said that it goes, or has been removed.
    pub fn gone(&mut self, instance: &str) {
        self.peers.retain(|peer| peer.as_str() != instance);
        self.hearers.retain(|hearer| hearer.as_str() != instance);
        self.grant();
    }

    /// The question to all others, if some have not answered yet and the lane would be used.
    pub fn question(&self) -> Option<String> {
        let few = (1..=self.most_peers).contains(&self.peers.len());
        (few && self.registered.is_some() && self.hearers.len() < self.peers.len())
            .then(|| format!("{:016x}-{}", self.origin.0, self.term))
    }

    /// An instance asks whether its lane is listened to. True when it has to be subscribed first.
    pub fn asked_by(&mut self, instance: &InstanceId) -> bool {
        *instance != self.this && self.heard.insert(instance.clone())
    }

    /// An instance has answered a question: it listens.
    pub fn answered_by(&mut self, instance: &InstanceId, question: &str) {
        let is_current = question == format!("{:016x}-{}", self.origin.0, self.term);
        if is_current && self.peers.contains(instance) {
            self.hearers.insert(instance.clone());
            self.grant();
        }
    }

    fn grant(&self) {
        let few = (1..=self.most_peers).contains(&self.peers.len());
        let open = few && self.hearers.len() == self.peers.len();
        self.gate.store(Arc::new(Grant {
            peers: if open { self.peers.len() } else { 0 },
            until: self.registered.map(|at| at + self.stands),
            term: self.term,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(16);
    const STANDS: Duration = Duration::from_secs(14);

    fn id(name: &str) -> InstanceId {
        InstanceId::parse(name).unwrap()
    }

    fn lanes(most_peers: usize) -> (Lanes, Gate) {
        let gate = closed();
        (Lanes::new((&id("a"), Origin(1)), most_peers, SILENCE, Arc::clone(&gate)), gate)
    }

    fn answer(lanes: &mut Lanes, names: &[&str]) {
        let question = lanes.question().expect("someone has not answered");
        names.iter().for_each(|name| lanes.answered_by(&id(name), &question));
    }

    #[test]
    fn a_lane_opens_when_all_that_are_registered_have_answered() {
        let now = Instant::now();
        let (mut lanes, gate) = lanes(4);
        let changes = lanes.registered((now, true), &[id("a"), id("b"), id("c")], now);
        assert_eq!(changes.subscribe, [id("b"), id("c")]);
        answer(&mut lanes, &["b", "stranger"]);
        assert!(!gate.load().is_open(now));
        assert!(lanes.waits_for(&id("c")) && !lanes.waits_for(&id("b")) && !lanes.waits_for(&id("stranger")));
        answer(&mut lanes, &["c"]);
        assert_eq!((gate.load().is_open(now), gate.load().peers), (true, 2));
        assert_eq!(lanes.question(), None, "nobody is asked any more");

        assert!(lanes.heard_of(&id("d")), "another one has come");
        assert!(!gate.load().is_open(now));
        answer(&mut lanes, &["d"]);
        assert!(gate.load().is_open(now) && !lanes.heard_of(&id("d")));

        let changes = lanes.registered((now, true), &[id("a"), id("b"), id("d")], now);
        assert_eq!(changes, Changes { subscribe: vec![id("d")], unsubscribe: vec![id("c")] });
        assert_eq!(gate.load().peers, 2);
    }

    #[test]
    fn a_registration_that_may_have_ended_begins_a_new_term() {
        let now = Instant::now();
        let (mut lanes, gate) = lanes(4);
        lanes.registered((now, true), &[id("b")], now);
        let question = lanes.question().unwrap();
        answer(&mut lanes, &["b"]);
        let term = gate.load().term;
        let late = now + STANDS;
        assert!(gate.load().is_open(late - Duration::from_millis(1)) && !gate.load().is_open(late));
        // Renewed in time: whatever was sent counts.
        lanes.registered((now + STANDS / 2, true), &[id("b")], late - Duration::from_millis(1));
        assert!(gate.load().is_open(late) && gate.load().covers(term, late));
        let later = late + STANDS;
        lanes.registered((later, true), &[id("b")], later);
        assert!(!gate.load().is_open(later) && !gate.load().covers(term, later));
        lanes.answered_by(&id("b"), &question);
        assert!(!gate.load().is_open(later), "that was the answer to an old question");
        answer(&mut lanes, &["b"]);
        assert!(gate.load().is_open(later));
        lanes.registered((later, false), &[id("b")], later);
        assert!(!gate.load().is_open(later), "others may have come while it was not registered");
        lanes.lost();
        assert!(!gate.load().is_open(later) && !gate.load().covers(term + 1, later));
        assert_eq!(lanes.registered((later, true), &[id("b")], later).subscribe, [id("b")]);
    }

    #[test]
    fn a_lane_is_not_used_alone_or_with_too_many() {
        let now = Instant::now();
        for (most, others) in [(4, &[][..]), (1, &["b", "c"][..]), (0, &["b"][..])] {
            let (mut lanes, gate) = lanes(most);
            let others: Vec<_> = others.iter().map(|name| id(name)).collect();
            let changes = lanes.registered((now, true), &others, now);
            assert_eq!(changes.subscribe, others, "others may use theirs");
            assert_eq!((lanes.question(), gate.load().is_open(now)), (None, false));
        }
    }

    #[test]
    fn whoever_goes_is_not_waited_for() {
        let now = Instant::now();
        let (mut lanes, gate) = lanes(4);
        lanes.registered((now, true), &[id("b"), id("c")], now);
        answer(&mut lanes, &["b"]);
        lanes.gone("c");
        assert!(gate.load().is_open(now));
        assert!(lanes.asked_by(&id("e")) && !lanes.asked_by(&id("e")) && !lanes.asked_by(&id("a")));
    }
}
