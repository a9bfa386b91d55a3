//! The other instances and other programs: signed commands on `admin`, and bans kept in Redis.

use std::time::{Duration, Instant};

use redis::{Cmd, ServerError, Value as Reply, cmd};
use serde_json::Value;

use super::control::Time;
use super::encoding::{decode, encode};
use super::signing::{self, Fields, Moment, Seen};
use super::unsaved::{Change, Unsaved};
use crate::ban::{Ban, Bans};
use crate::identity::{InstanceId, UserId};
use crate::limits;
use crate::shard::envelope::Order;
use crate::uplink::link::{Event, Link, LinkError, PASSING, words};

/// Between two looks whether the cluster's secret and the bans in Redis are what this instance holds.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Milliseconds between two log lines about refused commands: whoever publishes them must not fill the log.
const REFUSAL_LOG_MS: u64 = 60_000;

/// What a command on this connection was.
#[derive(Debug)]
pub enum Expect {
    /// Something whose answer says nothing.
    Nothing,
    /// A channel that this instance has to listen to.
    Subscription,
    /// After an order of this task was published: the number of instances that listen.
    Listeners(u64),
    /// A secret for a cluster that had none: set now, or there meanwhile.
    Proposal,
    /// A change of a user's ban.
    Change(UserId, u64),
    /// The cluster's secret, which is also the mark that Redis has its data, and the bans. Without a mark they count
    /// only if this says so.
    State(bool),
}

/// What came from Redis.
#[derive(Debug)]
pub enum Heard {
    /// Another instance (which gets an answer) or another program gives an order.
    Order {
        /// What is wanted.
        order: Order,
        /// The number of the instance's process, if one gives it.
        from: Option<String>,
        /// Which instance gets the answer, and its name for the request.
        reply: Option<(String, String)>,
    },
    /// An order of this instance was heard by so many others.
    Reached {
        /// The task.
        task: u64,
        /// Other instances.
        instances: usize,
    },
    /// An order of this instance was published, and Redis does not say who listens.
    Uncounted {
        /// The task.
        task: u64,
    },
    /// What another instance says to an order.
    Answer {
        /// The task.
        task: u64,
        /// The instance.
        instance: String,
        /// What it says.
        report: Value,
    },
    /// All bans in Redis.
    Bans(Bans),
    /// Redis has lost its data, or never had any: the bans of this instance are to be kept there again.
    Emptied,
    /// A command that is not carried out.
    Refused,
}

/// The names and secrets of a cluster, and the connection.
pub struct Remote {
    link: Link<Expect>,
    /// This process among all that ever were: 16 hexadecimal digits.
    origin: String,
    prefix: String,
    /// What commands are signed with.
    secret: Option<Vec<u8>>,
    /// Whether the secret is a setting; else the cluster keeps one in Redis.
    configured: bool,
    /// What this instance would make the cluster's secret.
    proposed: String,
    seen: Seen,
    nonces: u64,
    unsaved: Unsaved,
    /// Whether it was logged that Redis does not take bans, since it last did.
    refusal_of_bans_logged: bool,
    look_at: Option<Instant>,
    loaded: bool,
    refusal_logged: u64,
}

impl Remote {
    /// A way to the others without a connection. `origin` is a random number of this process, `proposed` random
    /// text that becomes the cluster's secret if it needs one, `secret` the setting.
    pub fn new(
        link: Link<Expect>,
        prefix: &str,
        origin: u64,
        proposed: String,
        secret: Option<&str>,
    ) -> Self {
        Self {
            link,
            origin: format!("{origin:016x}"),
            prefix: prefix.to_owned(),
            secret: secret.map(|secret| secret.as_bytes().to_vec()),
            configured: secret.is_some(),
            proposed,
            seen: Seen::default(),
            nonces: 0,
            unsaved: Unsaved::default(),
            refusal_of_bans_logged: false,
            look_at: None,
            loaded: false,
            refusal_logged: 0,
        }
    }

    /// The connection, for the driver to read and write.
    pub fn link(&mut self) -> &mut Link<Expect> {
        &mut self.link
    }

    /// Whether orders reach the others.
    pub fn is_ready(&self) -> bool {
        self.link.is_up() && self.secret.is_some() && self.loaded
    }

    /// The connection is gone.
    pub fn lost(&mut self, now: Instant) {
        self.link.lost(now);
        self.unsaved.interrupted();
        self.loaded = false;
        self.look_at = None;
    }

    /// Does what is due.
    ///
    /// # Errors
    /// When the connection is of no more use.
    pub fn tick(&mut self, now: Instant) -> Result<(), LinkError> {
        self.link.tick(now)?;
        if self.look_at.is_some_and(|at| at <= now) {
            self.look(now);
        }
        Ok(())
    }

    fn look(&mut self, now: Instant) {
        self.look_at = Some(now + LOOK_EVERY);
        for change in self.unsaved.begin() {
            self.write(&change, now);
        }
        self.read(false, now);
    }

    fn secret_key(&self) -> String {
        format!("{}admin-secret", self.prefix)
    }

    fn bans_key(&self) -> String {
        format!("{}bans", self.prefix)
    }

    fn read(&mut self, without_mark: bool, now: Instant) {
        let mut state = cmd("EVAL");
        state.arg(include_str!("bans.lua")).arg(2).arg(self.bans_key()).arg(self.secret_key());
        self.link.send(&state, Expect::State(without_mark), now);
    }

    /// Keeps a ban in Redis, or (nothing) takes it out; now, or once Redis takes it.
    pub fn save_ban(&mut self, user: &UserId, ban: Option<&Ban>, now: Instant) {
        if !self.unsaved.add(user, ban) || !self.link.is_up() {
            return;
        }
        if let Some(change) = self.unsaved.begin_of(user) {
            self.write(&change, now);
        }
    }

    /// Keeps the bans of this instance in a Redis that has lost them.
    pub fn restore(&mut self, bans: &Bans, now: Instant) {
        for (user, ban) in bans.iter() {
            if !self.unsaved.has(user) {
                self.save_ban(user, Some(ban), now);
            }
        }
    }

    fn write(&mut self, change: &Change, now: Instant) {
        let key = self.bans_key();
        let user = change.user.as_str();
        let command: Cmd = match &change.ban {
            Some(ban) => cmd("HSET").arg(&key).arg(user).arg(ban.encode()).clone(),
            None => cmd("HDEL").arg(&key).arg(user).clone(),
        };
        self.link.send(&command, Expect::Change(change.user.clone(), change.number), now);
        self.link.send(cmd("PEXPIRE").arg(&key).arg(limits::BAN_MS), Expect::Nothing, now);
    }

    fn admin_channel(&self) -> String {
        format!("{}admin", self.prefix)
    }

    /// The channel on which nothing is said: its subscribers are the instances that hear commands.
    fn listening_channel(&self) -> String {
        format!("{}admin-instances", self.prefix)
    }

    fn publish(&mut self, mut fields: Fields, time: Time) {
        let Some(secret) = &self.secret else { return };
        self.nonces += 1;
        let nonce = format!("{}-{}", self.origin, self.nonces);
        fields.insert("from".into(), self.origin.clone().into());
        let text = signing::sign(secret, fields, time.unix_ms, &nonce);
        self.link.publish(&self.admin_channel(), text.as_bytes(), Expect::Nothing, time.instant);
    }

    /// Gives an order to all other instances, for task `task`.
    pub fn order(&mut self, order: &Order, task: u64, time: Time) {
        let mut fields = encode(order);
        fields.insert("request".into(), task.to_string().into());
        self.publish(fields, time);
        // What PUBLISH itself answers counts whoever else listens to the commands, and they never answer.
        let listeners = cmd("PUBSUB").arg("NUMSUB").arg(self.listening_channel()).clone();
        self.link.send(&listeners, Expect::Listeners(task), time.instant);
    }

    /// Tells the instance `to` what this one says to its request.
    pub fn answer(&mut self, to: &str, request: &str, instance: &InstanceId, report: &Value, time: Time) {
        let fields = Fields::from([
            ("command".to_owned(), "answer".into()),
            ("to".to_owned(), to.into()),
            ("request".to_owned(), request.into()),
            ("instanceId".to_owned(), instance.as_str().into()),
            ("result".to_owned(), report.to_string().into()),
        ]);
        self.publish(fields, time);
    }

    /// Takes what came over the connection.
    ///
    /// # Errors
    /// When Redis refused something for good: the driver closes the connection and calls [`Remote::lost`].
    pub fn event(&mut self, event: Event<Expect>, time: Time) -> Result<Option<Heard>, LinkError> {
        match event {
            Event::Up => {
                for channel in [self.admin_channel(), self.listening_channel()] {
                    self.link.send(cmd("SUBSCRIBE").arg(channel), Expect::Subscription, time.instant);
                }
                self.look(time.instant);
                Ok(None)
            }
            Event::Message { channel, payload } if channel == self.admin_channel().as_bytes() => {
                Ok(self.command(&payload, time))
            }
            Event::Message { .. } => Ok(None),
            Event::Reply(expect, Ok(answer)) => Ok(self.reply(expect, &answer, time.instant)),
            Event::Reply(Expect::Listeners(task), Err(_)) => Ok(Some(Heard::Uncounted { task })),
            Event::Reply(expect, Err(error)) => self.refused(expect, &error, time.instant).map(|()| None),
        }
    }

    /// Redis has refused a command. What it does not write now is written at a later look.
    fn refused(&mut self, expect: Expect, error: &ServerError, now: Instant) -> Result<(), LinkError> {
        match expect {
            Expect::Change(user, number) => {
                self.unsaved.postponed(&user, number);
                if !std::mem::replace(&mut self.refusal_of_bans_logged, true) {
                    let (error, unsaved) = (words(error), self.unsaved.len());
                    tracing::warn!(%error, unsaved, "Redis keeps no bans now: running instances keep them");
                }
                Ok(())
            }
            // A full Redis can be read. The bans that it has lost are kept here by now.
            Expect::Proposal => {
                self.read(true, now);
                Ok(())
            }
            Expect::Nothing | Expect::State(_) if PASSING.contains(&error.code()) => Ok(()),
            _ => Err(LinkError::Refused { step: "an administrative command", error: words(error) }),
        }
    }

    fn reply(&mut self, expect: Expect, answer: &Reply, now: Instant) -> Option<Heard> {
        match (expect, answer) {
            (Expect::Listeners(task), Reply::Array(counts)) => {
                let [_, Reply::Int(listeners)] = &counts[..] else { return None };
                // This instance listens too.
                let instances = usize::try_from(listeners - 1).unwrap_or(0);
                Some(Heard::Reached { task, instances })
            }
            (Expect::Proposal, Reply::Okay | Reply::Nil) => {
                self.read(false, now);
                None
            }
            (Expect::Change(user, number), _) => {
                self.unsaved.saved(&user, number);
                if self.unsaved.is_empty() && std::mem::take(&mut self.refusal_of_bans_logged) {
                    tracing::info!("Redis keeps bans again, and has all");
                }
                None
            }
            (Expect::State(without_mark), Reply::Array(state)) => self.state(state, without_mark, now),
            _ => None,
        }
    }

    fn state(&mut self, state: &[Reply], without_mark: bool, now: Instant) -> Option<Heard> {
        match state.split_first()? {
            (Reply::BulkString(secret), _) if !self.configured => self.secret = Some(secret.clone()),
            (Reply::Nil, _) if !without_mark => {
                let mark = cmd("SET").arg(self.secret_key()).arg(&self.proposed).arg("NX").clone();
                self.link.send(&mark, Expect::Proposal, now);
                return Some(Heard::Emptied);
            }
            _ => {}
        }
        self.loaded = true;
        self.link.settled();
        let mut bans = read_bans(&state[1..]);
        self.unsaved.apply(&mut bans);
        Some(Heard::Bans(bans))
    }

    fn command(&mut self, payload: &[u8], time: Time) -> Option<Heard> {
        // By the clock as it is now, which may have been set since the start.
        let moment =
            Moment { now_ms: time.unix_ms, started_ms: time.unix_ms.saturating_sub(time.since_start_ms) };
        let verified = match &self.secret {
            Some(secret) => signing::verify(secret, payload, &mut self.seen, moment),
            None => Err(signing::Refused::Signature),
        };
        let fields = match verified {
            Ok(fields) => fields,
            Err(why) => {
                if time.unix_ms >= self.refusal_logged.saturating_add(REFUSAL_LOG_MS) {
                    self.refusal_logged = time.unix_ms;
                    tracing::warn!(bytes = payload.len(), %why, "an administrative command from Redis is refused");
                }
                return Some(Heard::Refused);
            }
        };
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        if text("from") == Some(&self.origin) {
            return None;
        }
        if text("command") == Some("answer") {
            if text("to") != Some(&self.origin) {
                return None;
            }
            let task = text("request")?.parse().ok()?;
            let report = serde_json::from_str(text("result")?).ok()?;
            return Some(Heard::Answer { task, instance: text("instanceId")?.to_owned(), report });
        }
        let Some(order) = decode(&fields, time.unix_ms) else { return Some(Heard::Refused) };
        let from = text("from").map(str::to_owned);
        let reply = from.clone().zip(text("request").map(str::to_owned));
        Some(Heard::Order { order, from, reply })
    }
}

fn read_bans(entries: &[Reply]) -> Bans {
    let mut bans = Bans::default();
    for pair in entries.chunks_exact(2) {
        let [Reply::BulkString(user), Reply::BulkString(ban)] = pair else { continue };
        let user = std::str::from_utf8(user).ok().and_then(UserId::parse);
        let ban = std::str::from_utf8(ban).ok().and_then(Ban::decode);
        if let (Some(user), Some(ban)) = (user, ban) {
            bans.add(user, ban, 0);
        }
    }
    bans
}
