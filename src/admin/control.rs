//! The control thread's logic: orders go to all shards and all instances, and their answers come together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::remote::{Heard, Remote};
use super::report::{Gathered, Hearing, combine, instance_facts};
use crate::accept::api::Answer;
use crate::ban::Bans;
use crate::instance::{Instance, Phase};
use crate::shard::envelope::{ControlMessage, Envelope, Order, PortRequest, Question, ReplyTo};
use crate::shard::outlet::Outlet;
use crate::steering::{Steering, judge};

/// Longest wait for the shards and the other instances; what has not come by then is left out.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Milliseconds between two looks at how much the shards work.
const MEASURE_MS: u64 = 1000;

/// Weight of the newest look: a burst of a second is no reason to send clients elsewhere, one of five is.
const NEWEST: f64 = 0.4;

/// The time, as the control thread needs it.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// For deadlines.
    pub instant: Instant,
    /// Milliseconds since the process started.
    pub since_start_ms: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// Who gets what this instance says to an order.
enum Destination {
    /// An HTTP request here, together with what the others say.
    Caller(ReplyTo),
    /// Another instance that has asked.
    Instance { to: String, request: String },
    /// Nobody: another program gave the order.
    Nobody,
}

struct Task {
    order: Order,
    to: Destination,
    shards_missing: usize,
    gathered: Gathered,
    /// What this instance says, once it is known.
    local: Option<Value>,
    /// Other instances that have heard the order; nothing while that is not known.
    expected: Option<usize>,
    /// Whether some instance cannot be asked.
    partial: bool,
    remote: Vec<(String, Value)>,
    deadline: Instant,
}

/// What administrators want, under way.
pub struct Control {
    instance: Arc<Instance>,
    shards: Vec<Outlet<Envelope>>,
    bans: Arc<Bans>,
    tasks: HashMap<u64, Task>,
    next: u64,
    remote: Option<Remote>,
    stalled: HashSet<usize>,
    drains: bool,
    /// When the shards' work was last measured, and what they had worked until then.
    measured: (u64, u64),
}

impl Control {
    /// A control thread's logic. `shards` are the ways to all shards, `remote` the one to the other instances.
    pub fn new(instance: Arc<Instance>, shards: Vec<Outlet<Envelope>>, remote: Option<Remote>) -> Self {
        Self {
            instance,
            shards,
            bans: Arc::default(),
            tasks: HashMap::new(),
            next: 0,
            remote,
            stalled: HashSet::new(),
            drains: false,
            measured: (0, 0),
        }
    }

    /// The way to the other instances.
    pub fn remote(&mut self) -> Option<&mut Remote> {
        self.remote.as_mut()
    }

    /// Whether the process was told to drain.
    pub fn drains(&self) -> bool {
        self.drains
    }

    /// As [`Control::drains`], once.
    pub fn take_drain(&mut self) -> bool {
        std::mem::take(&mut self.drains)
    }

    /// Wakes the shards that got something. True when something still waits for room in their queues.
    pub fn flush(&mut self) -> bool {
        self.shards.iter_mut().for_each(Outlet::flush);
        self.shards.iter().any(|shard| shard.backlog() > 0)
    }

    /// Takes a message of a shard or of the separate port.
    pub fn message(&mut self, message: ControlMessage, time: Time) {
        match message {
            ControlMessage::Order { order, reply } => self.begin(order, Destination::Caller(reply), time),
            ControlMessage::Part { task: id, part } => {
                let Some(task) = self.tasks.get_mut(&id) else { return };
                task.gathered.add(part);
                task.shards_missing -= 1;
                if task.shards_missing == 0 {
                    task.local = Some(std::mem::take(&mut task.gathered).finish(&task.order));
                }
                self.settle(id, time);
            }
            ControlMessage::Api(request) => self.forward(request),
        }
    }

    /// Hands a request of the separate port to the shard whose last turn is the youngest.
    fn forward(&mut self, request: Box<PortRequest>) {
        let cells = self.instance.shards.iter().enumerate();
        let awake = cells.max_by_key(|(_, cells)| cells.last_turn.get()).map_or(0, |(index, _)| index);
        if let Err(Envelope::Api(request)) = self.shards[awake].offer(Envelope::Api(request)) {
            // Whoever asked may have gone.
            let _ = request.reply.try_send(Answer::unavailable("the server is overloaded: try again"));
        }
    }

    fn begin(&mut self, order: Order, to: Destination, time: Time) {
        self.next += 1;
        let id = self.next;
        let local = match self.carry_out(&order, time) {
            Ok(local) => local,
            Err(answer) => {
                if let Destination::Caller(reply) = to {
                    self.answer(reply, answer);
                }
                return;
            }
        };
        let question = match &order {
            Order::User(user) => Some(Question::Sessions(user.clone())),
            Order::Rooms(most) => Some(Question::Rooms(*most)),
            Order::Disconnect(user, reason) => Some(Question::Disconnect(user.clone(), reason.clone())),
            Order::Ban(user, ban) => Some(Question::Disconnect(user.clone(), ban.reason.clone())),
            _ => None,
        };
        let (mut expected, mut partial) = (Some(0), false);
        if matches!(to, Destination::Caller(_))
            && let Some(remote) = self.remote.as_mut()
        {
            partial = !remote.is_ready();
            // What is banned every instance knows by itself.
            if !partial && order != Order::Bans {
                remote.order(&order, id, time);
                expected = None;
            }
        }
        let task = Task {
            order,
            to,
            shards_missing: self.shards.len(),
            gathered: Gathered::default(),
            local,
            expected,
            partial,
            remote: Vec::new(),
            deadline: time.instant + PATIENCE,
        };
        if let Some(question) = question {
            for shard in &mut self.shards {
                shard.send(Envelope::Ask { task: id, question: question.clone() });
            }
        }
        if matches!(task.order, Order::Ban(..)) {
            // Behind the question, which counts the connections that are closed.
            self.spread_bans();
        }
        self.tasks.insert(id, task);
        self.settle(id, time);
    }

    /// Does what this thread itself can do: what the instance says, unless the shards have to be asked.
    fn carry_out(&mut self, order: &Order, time: Time) -> Result<Option<Value>, Answer> {
        Ok(match order {
            Order::Instances => Some(instance_facts(&self.instance, time.since_start_ms / 1000)),
            Order::Ban(user, ban) => {
                if !Arc::make_mut(&mut self.bans).add(user.clone(), ban.clone(), time.unix_ms) {
                    return Err(Answer::unavailable("10000 users are banned already: end some bans first"));
                }
                if let Some(remote) = &mut self.remote {
                    remote.save_ban(user, Some(ban), time.instant);
                }
                None
            }
            Order::Unban(user) => {
                let held = self.bans.of(user.as_str(), time.unix_ms).is_some();
                Arc::make_mut(&mut self.bans).remove(user.as_str());
                self.spread_bans();
                if let Some(remote) = &mut self.remote {
                    remote.save_ban(user, None, time.instant);
                }
                Some(u64::from(held).into())
            }
            Order::Drain(instance) => {
                let meant = *instance == self.instance.id;
                self.drains |= meant;
                Some(meant.into())
            }
            Order::Bans => Some(Value::Null),
            Order::User(_) | Order::Rooms(_) | Order::Disconnect(..) => None,
        })
    }

    fn spread_bans(&mut self) {
        for shard in &mut self.shards {
            shard.send(Envelope::Bans(self.bans.clone()));
        }
    }

    /// Answers if everyone who was asked has.
    fn settle(&mut self, id: u64, time: Time) {
        let Some(task) = self.tasks.get(&id) else { return };
        let all = match task.to {
            Destination::Caller(_) => task.expected.is_some_and(|expected| task.remote.len() >= expected),
            _ => true,
        };
        if all && task.local.is_some() {
            let complete = !task.partial;
            self.conclude(id, complete, time);
        }
    }

    fn conclude(&mut self, id: u64, complete: bool, time: Time) {
        let Some(task) = self.tasks.remove(&id) else { return };
        let local = task.local.unwrap_or_else(|| task.gathered.finish(&task.order));
        match task.to {
            Destination::Caller(reply) => {
                let mut reports = vec![(self.instance.id.as_str().to_owned(), local)];
                reports.extend(task.remote);
                reports.sort_by(|(one, _), (other, _)| one.cmp(other));
                let heard = match (complete, task.expected) {
                    (true, _) => Hearing::Complete,
                    (false, Some(0)) => Hearing::Nobody,
                    (false, _) => Hearing::Partial,
                };
                let answer = combine(&task.order, reports, heard, &self.bans, time.unix_ms);
                self.answer(reply, answer);
            }
            Destination::Instance { to, request } => {
                if let Some(remote) = self.remote.as_mut().filter(|remote| remote.is_ready()) {
                    remote.answer(&to, &request, &self.instance.id, &local, time);
                }
            }
            Destination::Nobody => {}
        }
    }

    fn answer(&mut self, reply: ReplyTo, answer: Answer) {
        self.shards[reply.shard.index()].send(Envelope::Answered { ticket: reply.ticket, answer });
    }

    /// Takes what came from Redis.
    pub fn heard(&mut self, heard: Heard, time: Time) {
        match heard {
            Heard::Order { order, from, reply } => {
                if order.changes_something() {
                    let from = from.as_deref().unwrap_or("another program");
                    tracing::info!(
                        command = order.name(),
                        from,
                        ?order,
                        "an administrator's order from Redis"
                    );
                }
                let to = match reply {
                    Some((to, request)) => Destination::Instance { to, request },
                    None => Destination::Nobody,
                };
                self.begin(order, to, time);
            }
            Heard::Reached { task: id, instances } => {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.expected = Some(instances);
                    // One that lives without listening has lost its connection for commands.
                    task.partial |= self.instance.instances() > instances as u64 + 1;
                }
                self.settle(id, time);
            }
            Heard::Uncounted { task } => {
                // The uplink knows who lives, though not who hears commands.
                let instances = self.instance.instances() as usize - 1;
                self.heard(Heard::Reached { task, instances }, time);
            }
            Heard::Answer { task: id, instance, report } => {
                if let Some(task) = self.tasks.get_mut(&id)
                    && task.remote.iter().all(|(known, _)| *known != instance)
                {
                    task.remote.push((instance, report));
                }
                self.settle(id, time);
            }
            Heard::Bans(bans) => {
                if *self.bans != bans {
                    self.bans = Arc::new(bans);
                    self.spread_bans();
                }
            }
            Heard::Emptied => {
                if let Some(remote) = &mut self.remote {
                    remote.restore(&self.bans, time.instant);
                }
            }
            Heard::Refused => self.instance.control.refused.add(1),
        }
    }

    /// Looks at what is late: answers, and shards.
    pub fn tick(&mut self, time: Time) {
        let late: Vec<u64> =
            self.tasks.iter().filter(|(_, task)| task.deadline <= time.instant).map(|(id, _)| *id).collect();
        for id in late {
            self.conclude(id, false, time);
        }
        let stalled: HashSet<_> = self.instance.stalled_shards(time.since_start_ms).into_iter().collect();
        for shard in stalled.difference(&self.stalled) {
            self.instance.control.stalls.add(1);
            tracing::error!(shard, "a shard stands still: its connections wait, and /health is unhealthy");
        }
        for shard in self.stalled.difference(&stalled) {
            tracing::warn!(shard, "the shard goes on");
        }
        self.stalled = stalled;
        self.measure(time.since_start_ms);
        self.steer();
    }

    /// Looks at how much the shards work.
    fn measure(&mut self, now_ms: u64) {
        let (last_ms, last_busy) = self.measured;
        let passed_us = now_ms.saturating_sub(last_ms) * 1000 * self.instance.shards.len() as u64;
        if now_ms < last_ms + MEASURE_MS {
            return;
        }
        let busy: u64 = self.instance.shards.iter().map(|cells| cells.busy_us.get()).sum();
        let worked = (busy.saturating_sub(last_busy) as f64 / passed_us as f64).min(1.0);
        let before = f64::from(self.instance.busy_percent.load(SeqCst));
        let smooth = before + (worked * 100.0 - before) * NEWEST;
        self.instance.busy_percent.store(smooth.round() as u8, SeqCst);
        self.measured = (now_ms, busy);
    }

    /// Decides where new clients go.
    fn steer(&mut self) {
        let others = self.instance.uplink.as_ref().filter(|_| !self.instance.is_degraded());
        let steering = match others {
            Some(cells) if self.instance.phase() == Phase::Serving => {
                judge(&self.instance.load(), &cells.others.load(), self.instance.live().overload)
            }
            _ => Steering::Welcome,
        };
        let before = self.instance.steering.swap(Arc::new(steering.clone()));
        if (*before == Steering::Welcome) != (steering == Steering::Welcome) {
            self.instance.announce();
        }
        match (*before == Steering::Welcome, steering == Steering::Welcome) {
            (true, false) => {
                let load = self.instance.load();
                let (connections, busy) = (load.connections, load.busy);
                tracing::warn!(connections, busy, "overloaded: new clients are sent to other instances");
            }
            (false, true) => tracing::info!("new clients are welcome again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::Receiver;

    use super::*;
    use crate::admin::remote::Expect;
    use crate::config::Settings;
    use crate::identity::{ShardId, UserId};
    use crate::shard::envelope::Part;
    use crate::shard::outlet::Waker;
    use crate::uplink::link::{Event, Handshake, Link};

    fn control(shards: usize) -> (Control, Vec<Receiver<Envelope>>) {
        let instance = Arc::new(Instance::new(Settings { shards, ..Settings::for_tests() }, 1));
        let (outlets, inboxes) = (0..shards).map(|_| Outlet::new(16, Waker::new().unwrap())).unzip();
        (Control::new(instance, outlets, None), inboxes)
    }

    /// A control thread's logic in a cluster of two, with one shard, and with a link to Redis that is up if it is
    /// `ready` and has read what it needs.
    fn in_cluster(ready: bool) -> (Control, Receiver<Envelope>) {
        let (mut control, mut inboxes) = control(1);
        let instance = Arc::get_mut(&mut control.instance).unwrap();
        instance.uplink = Some(Arc::default());
        control.instance.uplink.as_ref().unwrap().instances.set(2);
        let handshake = Handshake { username: None, password: None, db: 0, name: "test".into() };
        let link = Link::new(handshake, PATIENCE, 1, Instant::now());
        let mut remote = Remote::new(link, "tableforge:", 1, "proposed".into(), Some("secret"));
        if ready {
            let (time, mut events) = (at(0), Vec::new());
            remote.link().connected(time.instant);
            remote.link().receive(b"%0\r\n+OK\r\n+OK\r\n", time.instant, &mut events).unwrap();
            for event in events {
                remote.event(event, time).unwrap();
            }
            let state = redis::Value::Array(vec![redis::Value::BulkString(b"mark".to_vec())]);
            remote.event(Event::Reply(Expect::State(false), Ok(state)), time).unwrap();
        }
        control.remote = Some(remote);
        (control, inboxes.remove(0))
    }

    #[test]
    fn an_instance_that_cannot_ask_the_others_does_not_speak_for_them() {
        let (mut control, inbox) = in_cluster(false);
        order(&mut control, Order::Instances);
        assert_eq!(answer(&inbox).expect("at once")["complete"], false);
        order(&mut control, Order::Bans);
        assert_eq!(answer(&inbox).expect("at once")["complete"], false);
        order(&mut control, Order::Drain(crate::identity::InstanceId::parse("other").unwrap()));
        assert_eq!(answer(&inbox).expect("at once")["error"]["code"], "unavailable");
    }

    #[test]
    fn an_answer_is_complete_when_all_that_live_have_given_theirs_once() {
        let (mut control, inbox) = in_cluster(true);
        let report = |task: u64| Heard::Answer { task, instance: "b".into(), report: Value::Null };
        order(&mut control, Order::Instances);
        control.heard(report(1), at(0));
        assert_eq!(answer(&inbox), None, "nobody knows yet how many listen");
        control.heard(Heard::Reached { task: 1, instances: 1 }, at(0));
        assert_eq!(answer(&inbox).unwrap().get("complete"), None);
        order(&mut control, Order::Instances);
        control.heard(Heard::Reached { task: 2, instances: 2 }, at(0));
        control.heard(report(2), at(0));
        control.heard(report(2), at(0));
        assert_eq!(answer(&inbox), None, "the same answer twice");
        order(&mut control, Order::Instances);
        control.heard(Heard::Reached { task: 3, instances: 0 }, at(0));
        assert_eq!(answer(&inbox).unwrap()["complete"], false, "one lives and does not listen");
        order(&mut control, Order::Instances);
        control.heard(Heard::Uncounted { task: 4 }, at(0));
        assert_eq!(answer(&inbox), None, "one lives and has not answered");
        control.heard(report(4), at(0));
        assert_eq!(answer(&inbox).unwrap().get("complete"), None);
    }

    fn at(ms: u64) -> Time {
        Time { instant: Instant::now() + Duration::from_millis(ms), since_start_ms: ms, unix_ms: ms }
    }

    fn order(control: &mut Control, order: Order) {
        let reply = ReplyTo { shard: ShardId(0), ticket: 7 };
        control.message(ControlMessage::Order { order, reply }, at(0));
    }

    fn answer(inbox: &Receiver<Envelope>) -> Option<Value> {
        inbox.try_iter().find_map(|envelope| match envelope {
            Envelope::Answered { ticket: 7, answer } => serde_json::from_str(&answer.body).ok(),
            _ => None,
        })
    }

    #[test]
    fn the_answer_waits_for_every_shard_but_not_forever() {
        let (mut control, inboxes) = control(2);
        let user = UserId::parse("ann").unwrap();
        order(&mut control, Order::Disconnect(user.clone(), "go".into()));
        control.message(ControlMessage::Part { task: 1, part: Part::Disconnected(2) }, at(0));
        assert_eq!(answer(&inboxes[0]), None);
        control.message(ControlMessage::Part { task: 1, part: Part::Disconnected(1) }, at(0));
        assert_eq!(answer(&inboxes[0]).unwrap()["disconnected"], 3);
        order(&mut control, Order::Disconnect(user, "go".into()));
        control.message(ControlMessage::Part { task: 2, part: Part::Disconnected(4) }, at(0));
        control.tick(at(PATIENCE.as_millis() as u64 + 1000));
        let late = answer(&inboxes[0]).unwrap();
        assert_eq!((&late["disconnected"], &late["complete"]), (&Value::from(4), &Value::from(false)));
    }

    #[test]
    fn a_ban_reaches_every_shard_before_its_answer() {
        let (mut control, inboxes) = control(2);
        let user = UserId::parse("ann").unwrap();
        let ban = crate::ban::Ban { until_ms: 100, reason: "spam".into() };
        order(&mut control, Order::Ban(user, ban));
        for inbox in &inboxes {
            let banned = |envelope| matches!(envelope, Envelope::Bans(bans) if bans.of("ann", 99).is_some());
            assert!(inbox.try_iter().any(banned));
        }
    }

    #[test]
    fn a_shard_that_stands_still_is_counted_once() {
        let (mut control, _inboxes) = control(2);
        control.instance.enter(Phase::Serving);
        control.instance.shards[0].last_turn.set(9_000);
        for now in [9_000, 9_100, 9_200] {
            control.tick(at(now));
        }
        assert_eq!(control.instance.control.stalls.get(), 1, "shard 1 has not had a turn since 0");
        control.instance.shards[1].last_turn.set(9_000);
        control.tick(at(9_300));
        control.tick(at(20_000));
        assert_eq!(control.instance.control.stalls.get(), 3);
    }

    #[test]
    fn only_the_instance_that_is_named_drains() {
        let (mut control, inboxes) = control(1);
        order(&mut control, Order::Drain(crate::identity::InstanceId::parse("other").unwrap()));
        assert!(!control.drains() && answer(&inboxes[0]).unwrap()["error"]["code"] == "not_found");
        let own = control.instance.id.clone();
        order(&mut control, Order::Drain(own));
        assert!(control.drains() && answer(&inboxes[0]).unwrap()["draining"] == true);
    }
}
