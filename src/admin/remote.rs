//! The other instances and other programs: signed commands on `admin`, and bans kept in Redis.

use std::time::{Duration, Instant};

use redis::{Cmd, Value as Reply, cmd};
use serde_json::Value;

use super::control::Time;
use super::signing::{self, Fields, Seen};
use crate::ban::{Ban, Bans};
use crate::identity::{InstanceId, UserId};
use crate::limits;
use crate::shard::envelope::Order;
use crate::uplink::link::{Event, Link, LinkError, words};

/// Between two looks whether the cluster's secret and the bans in Redis are what this instance holds.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Changes of bans that wait for Redis to be back; as many as there may be bans.
const UNSAVED: usize = limits::BANS;

/// Milliseconds between two log lines about refused commands: whoever publishes them must not fill the log.
const REFUSAL_LOG_MS: u64 = 60_000;

/// What a command on this connection was.
#[derive(Debug)]
pub enum Expect {
    /// Something whose answer says nothing.
    Nothing,
    /// An order of this task was published: answered with the number of instances that heard it.
    Order(u64),
    /// The cluster's secret.
    Secret,
    /// A mark that Redis has its data: set now, or there already.
    Mark,
    /// The bans, asked for after so many changes of this instance's own.
    Bans(u64),
}

/// What came from Redis.
#[derive(Debug)]
pub enum Heard {
    /// Another instance (which gets an answer) or another program gives an order.
    Order {
        /// What is wanted.
        order: Order,
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
    unsaved: Vec<(UserId, Option<Ban>)>,
    /// Bans written by this instance so far: a list that was read before the last one is old.
    changes: u64,
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
            unsaved: Vec::new(),
            changes: 0,
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
        for (user, ban) in std::mem::take(&mut self.unsaved) {
            self.write_ban(&user, ban.as_ref(), now);
        }
        let key = format!("{}admin-secret", self.prefix);
        self.link.send(cmd("SET").arg(&key).arg(&self.proposed).arg("NX"), Expect::Mark, now);
        if !self.configured {
            self.link.send(cmd("GET").arg(&key), Expect::Secret, now);
        }
        let mut bans = cmd("EVAL");
        bans.arg(include_str!("bans.lua")).arg(1).arg(format!("{}bans", self.prefix));
        self.link.send(&bans, Expect::Bans(self.changes), now);
    }

    /// Keeps a ban in Redis, or (nothing) takes it out; now, or once Redis is back.
    pub fn save_ban(&mut self, user: &UserId, ban: Option<&Ban>, now: Instant) {
        if self.link.is_up() {
            self.write_ban(user, ban, now);
        } else if self.unsaved.len() < UNSAVED {
            self.unsaved.push((user.clone(), ban.cloned()));
        }
    }

    fn write_ban(&mut self, user: &UserId, ban: Option<&Ban>, now: Instant) {
        self.changes += 1;
        let key = format!("{}bans", self.prefix);
        let command: Cmd = match ban {
            Some(ban) => cmd("HSET").arg(&key).arg(user.as_str()).arg(ban.encode()).clone(),
            None => cmd("HDEL").arg(&key).arg(user.as_str()).clone(),
        };
        self.link.send(&command, Expect::Nothing, now);
        self.link.send(cmd("PEXPIRE").arg(&key).arg(limits::BAN_MS), Expect::Nothing, now);
    }

    fn publish(&mut self, mut fields: Fields, expect: Expect, time: Time) {
        let Some(secret) = &self.secret else { return };
        self.nonces += 1;
        let nonce = format!("{}-{}", self.origin, self.nonces);
        fields.insert("from".into(), self.origin.clone().into());
        let text = signing::sign(secret, fields, time.unix_ms, &nonce);
        let channel = format!("{}admin", self.prefix);
        self.link.publish(&channel, text.as_bytes(), expect, time.instant);
    }

    /// Gives an order to all other instances, for task `task`.
    pub fn order(&mut self, order: &Order, task: u64, time: Time) {
        let mut fields = encode(order);
        fields.insert("request".into(), task.to_string().into());
        self.publish(fields, Expect::Order(task), time);
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
        self.publish(fields, Expect::Nothing, time);
    }

    /// Takes what came over the connection.
    ///
    /// # Errors
    /// When Redis refused something: the driver closes the connection and calls [`Remote::lost`].
    pub fn event(&mut self, event: Event<Expect>, time: Time) -> Result<Option<Heard>, LinkError> {
        match event {
            Event::Up => {
                let channel = format!("{}admin", self.prefix);
                self.link.send(cmd("SUBSCRIBE").arg(channel), Expect::Nothing, time.instant);
                self.look(time.instant);
                Ok(None)
            }
            Event::Message { payload, .. } => Ok(self.command(&payload, time)),
            Event::Reply(expect, answer) => {
                let step = "an administrative command";
                let answer = answer.map_err(|error| LinkError::Refused { step, error: words(&error) })?;
                Ok(self.reply(expect, &answer))
            }
        }
    }

    fn reply(&mut self, expect: Expect, answer: &Reply) -> Option<Heard> {
        match (expect, answer) {
            (Expect::Order(task), Reply::Int(subscribers)) => {
                // This instance listens too.
                let instances = usize::try_from(*subscribers - 1).unwrap_or(0);
                Some(Heard::Reached { task, instances })
            }
            (Expect::Secret, Reply::BulkString(secret)) => {
                self.secret = Some(secret.clone());
                None
            }
            (Expect::Mark, Reply::Okay) => Some(Heard::Emptied),
            (Expect::Bans(changes), Reply::Array(entries)) => {
                self.loaded = true;
                self.link.settled();
                (changes == self.changes).then(|| Heard::Bans(read_bans(entries)))
            }
            _ => None,
        }
    }

    fn command(&mut self, payload: &[u8], time: Time) -> Option<Heard> {
        let verified = match &self.secret {
            Some(secret) => signing::verify(secret, payload, &mut self.seen, time.unix_ms),
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
        let reply =
            text("from").zip(text("request")).map(|(to, request)| (to.to_owned(), request.to_owned()));
        Some(Heard::Order { order, reply })
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

fn encode(order: &Order) -> Fields {
    let mut fields = Fields::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    let command = match order {
        Order::Instances => "instances",
        Order::Bans => "bans",
        Order::Rooms(most) => {
            put("limit", (*most as u64).into());
            "rooms"
        }
        Order::User(user) => {
            put("userId", user.as_str().into());
            "user"
        }
        Order::Disconnect(user, reason) => {
            put("userId", user.as_str().into());
            put("reason", reason.as_str().into());
            "disconnect"
        }
        Order::Ban(user, ban) => {
            put("userId", user.as_str().into());
            put("reason", ban.reason.as_str().into());
            put("until", ban.until_ms.into());
            "ban"
        }
        Order::Unban(user) => {
            put("userId", user.as_str().into());
            "unban"
        }
        Order::Drain(instance) => {
            put("instanceId", instance.as_str().into());
            "drain"
        }
    };
    put("command", command.into());
    fields
}

fn decode(fields: &Fields, now_ms: u64) -> Option<Order> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let user = || text("userId").and_then(UserId::parse);
    let reason = text("reason").unwrap_or("disconnected by an administrator").to_owned();
    if reason.len() > limits::REASON_BYTES {
        return None;
    }
    Some(match text("command")? {
        "instances" => Order::Instances,
        "rooms" => {
            let limit = fields.get("limit").and_then(Value::as_u64).unwrap_or(20);
            Order::Rooms(usize::try_from(limit).ok()?.min(limits::LISTED_ROOMS))
        }
        "user" => Order::User(user()?),
        "disconnect" => Order::Disconnect(user()?, reason),
        "ban" => {
            let until_ms = fields.get("until").and_then(Value::as_u64)?;
            if until_ms.saturating_sub(now_ms) > limits::BAN_MS {
                return None;
            }
            Order::Ban(user()?, Ban { until_ms, reason })
        }
        "unban" => Order::Unban(user()?),
        "drain" => Order::Drain(text("instanceId").and_then(InstanceId::parse)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_were_written() {
        let user = UserId::parse("ann").unwrap();
        for order in [
            Order::Instances,
            Order::Rooms(5),
            Order::User(user.clone()),
            Order::Disconnect(user.clone(), "bye".into()),
            Order::Ban(user.clone(), Ban { until_ms: 9, reason: "spam".into() }),
            Order::Unban(user),
            Order::Drain(InstanceId::parse("a").unwrap()),
        ] {
            assert_eq!(decode(&encode(&order), 0), Some(order));
        }
        assert_eq!(decode(&encode(&Order::Bans), 0), None);
        let far = Ban { until_ms: limits::BAN_MS + 1, reason: String::new() };
        assert_eq!(decode(&encode(&Order::Ban(UserId::parse("a").unwrap(), far)), 0), None);
    }
}
