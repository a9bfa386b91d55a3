//! Calls of `presence.lua`, the script that keeps the register of who is where, and their answers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Script, Value, cmd};
use serde::{Deserialize, Serialize};

use super::batch::{self, Header, Origin, Sequence};
use crate::identity::{InstanceId, RoomId, UserId};
use crate::room::route::RoomRoute;
use crate::shard::envelope::{Asker, Join, Member};

/// Time after which the keys of a room or an instance expire unless renewed: nothing that a crash
/// leaves behind stays forever, and no cluster is without any instance for a day and wants its members back.
pub const KEY_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// One operation of the script.
#[derive(Debug)]
pub enum Call {
    /// A connection joins; answered with the members.
    Join {
        /// The request.
        join: Box<Join>,
        /// Whether the user is new in the room on this instance.
        enters: bool,
        /// Where the room's messages go.
        route: Arc<RoomRoute>,
    },
    /// A user has left the room on this instance.
    Leave {
        /// The room.
        room: RoomId,
        /// Who left.
        user: UserId,
        /// Whether the instance has no member any more.
        last: bool,
    },
    /// Who is in the room; answered with the members.
    Members {
        /// The room.
        room: RoomId,
        /// Who asks.
        asker: Asker,
    },
    /// This instance's members of the room are exactly these; none to take the instance out of it. Answered with the
    /// numbers of the room's last announcement before and after.
    Restore {
        /// The room.
        room: RoomId,
        /// Those whom the other instances' members hold as present.
        held: Vec<Member>,
        /// Those who are news to them.
        newcomers: Vec<Member>,
    },
    /// The rooms in which this instance is registered; answered with a list.
    Occupied,
    /// A heartbeat; answered with [`Registered`].
    Register {
        /// Whether this process has never been registered.
        first: bool,
        /// When the call was made: the registration is not older.
        at: Instant,
    },
    /// Removes a silent instance; answered with its name or nothing.
    Reap,
    /// Renews expiries; answered with the cursor for the rest.
    Renew {
        /// Where to go on; `0` at first.
        cursor: String,
    },
    /// This instance goes; answered with whether nothing of it is left.
    Unregister,
    /// Checks the rights of the connection's user; answered with the first that is missing.
    Probe,
}

/// What every call needs to know about this instance.
#[derive(Debug)]
pub struct Caller {
    script: Script,
    prefix: String,
    instance: InstanceId,
    origin: Origin,
    /// The how-manieth connection of the process calls go out on.
    connection: u64,
    heartbeat: Duration,
    threshold: Duration,
}

impl Caller {
    /// The caller for one instance. `heartbeat` is the time between heartbeats, `threshold` the silence after which an
    /// instance counts as gone.
    pub fn new(
        prefix: &str,
        instance: &InstanceId,
        origin: Origin,
        heartbeat: Duration,
        threshold: Duration,
    ) -> Self {
        Self {
            script: Script::new(include_str!("presence.lua")),
            prefix: prefix.to_owned(),
            instance: instance.clone(),
            origin,
            connection: 0,
            heartbeat,
            threshold,
        }
    }

    /// Calls go out on another connection from now on: what is still on its way over earlier ones has no effect once
    /// the instance has registered over this one.
    pub fn reconnected(&mut self) {
        self.connection += 1;
    }

    /// The Redis command of `call`: EVAL with the script's text, which also loads it, or EVALSHA.
    pub fn command(&self, call: &Call, with_text: bool) -> Cmd {
        let mut command = if with_text { cmd("EVAL") } else { cmd("EVALSHA") };
        command.arg(if with_text { include_str!("presence.lua") } else { self.script.get_hash() });
        let head = Header { origin: self.origin, sequence: Sequence::Unnumbered, from_script: true };
        command
            .arg(0)
            .arg(&self.prefix)
            .arg(call.name())
            .arg(KEY_TTL.as_secs())
            .arg(&batch::header(head)[..])
            .arg(self.connection);
        let (instance, origin) = (self.instance.as_str(), format!("{:016x}", self.origin.0));
        match call {
            Call::Join { join, enters, .. } => {
                let Join { room, member, want_members, .. } = &**join;
                command.arg(room.as_str()).arg(instance).arg(member.user.as_str()).arg(encode_member(member));
                command.arg(u8::from(*enters)).arg(u8::from(*want_members));
            }
            Call::Leave { room, user, last } => {
                command.arg(room.as_str()).arg(instance).arg(user.as_str()).arg(u8::from(*last));
            }
            Call::Members { room, .. } => {
                command.arg(room.as_str());
            }
            Call::Restore { room, held, newcomers } => {
                command.arg(room.as_str()).arg(instance).arg(held.len());
                for member in held.iter().chain(newcomers) {
                    command.arg(member.user.as_str()).arg(encode_member(member));
                }
            }
            Call::Register { first, .. } => {
                command.arg(instance).arg(origin).arg(self.heartbeat.as_millis() as u64);
                command.arg(self.threshold.as_millis() as u64).arg(u8::from(*first));
            }
            Call::Reap => {
                command.arg(self.threshold.as_millis() as u64);
            }
            Call::Renew { cursor } => {
                command.arg(instance).arg(cursor);
            }
            Call::Unregister => {
                command.arg(instance).arg(origin);
            }
            Call::Occupied => {
                command.arg(instance);
            }
            Call::Probe => {}
        }
        command
    }
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Self::Join { .. } => "join",
            Self::Leave { .. } => "leave",
            Self::Members { .. } => "members",
            Self::Restore { .. } => "restore",
            Self::Occupied => "occupied",
            Self::Register { .. } => "register",
            Self::Reap => "reap",
            Self::Renew { .. } => "renew",
            Self::Unregister => "unregister",
            Self::Probe => "probe",
        }
    }
}

/// The answer to [`Call::Register`].
#[derive(Debug, PartialEq, Eq)]
pub enum Registered {
    /// Another live process uses this instance's name.
    Held {
        /// Time since its last heartbeat.
        age: Duration,
        /// Silence after which it counts as dead.
        grace: Duration,
    },
    /// A dead process's members are being removed: call again.
    Clearing,
    /// Registered.
    Alive {
        /// Whether the registration still stood; if not, the members have been removed by others.
        known: bool,
        /// All live instances.
        instances: Vec<InstanceId>,
    },
}

/// A member as the script stores it and presence records carry it.
#[derive(Serialize, Deserialize)]
struct StoredMember<'a> {
    #[serde(borrow)]
    user: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    socket: std::borrow::Cow<'a, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    name: Option<std::borrow::Cow<'a, str>>,
}

fn encode_member(member: &Member) -> Vec<u8> {
    let stored = StoredMember {
        user: member.user.as_str().into(),
        socket: (&*member.socket).into(),
        name: member.name.as_deref().map(Into::into),
    };
    serde_json::to_vec(&stored).expect("three strings are always JSON")
}

/// Reads a member from a presence record or a script's answer; nothing if it is malformed.
pub fn decode_member(json: &[u8]) -> Option<Member> {
    let stored: StoredMember = serde_json::from_slice(json).ok()?;
    Some(Member {
        user: UserId::parse(&stored.user)?,
        name: stored.name.map(|name| (&*name).into()),
        socket: (&*stored.socket).into(),
    })
}

/// Reads the answer to [`Call::Join`] and [`Call::Members`]: the number of users in the room and the
/// list of them, each once.
pub fn decode_members(value: &Value) -> Option<(u32, Vec<Member>)> {
    let Value::Array(parts) = value else { return None };
    let [Value::Int(count), Value::Array(entries), ..] = &parts[..] else { return None };
    let mut seen = HashSet::new();
    let members = entries
        .iter()
        .filter_map(|entry| decode_member(bytes_of(entry)?))
        .filter(|member| seen.insert(member.user.clone()))
        .collect();
    Some((u32::try_from(*count).ok()?, members))
}

/// Reads from the answer to [`Call::Join`] the number of the room's last announcement.
pub fn decode_change(value: &Value) -> Option<u64> {
    let Value::Array(parts) = value else { return None };
    decode_text(parts.get(2)?)?.parse().ok()
}

/// Reads the answer to [`Call::Restore`]: the numbers of the room's last announcement before and after.
pub fn decode_restored(value: Value) -> Option<(u64, u64)> {
    let [before, after] = &decode_list(value)?[..] else { return None };
    Some((before.parse().ok()?, after.parse().ok()?))
}

/// Reads the answer to [`Call::Register`].
pub fn decode_registered(value: Value) -> Option<Registered> {
    let list = decode_list(value)?;
    let milliseconds = |at: usize| list.get(at)?.parse().ok().map(Duration::from_millis);
    match list.first()?.as_str() {
        "held" => Some(Registered::Held { age: milliseconds(1)?, grace: milliseconds(2)? }),
        "clearing" => Some(Registered::Clearing),
        word @ ("known" | "new") => {
            let instances = list[1..].iter().filter_map(|name| InstanceId::parse(name)).collect();
            Some(Registered::Alive { known: word == "known", instances })
        }
        _ => None,
    }
}

/// Reads a list of texts.
pub fn decode_list(value: Value) -> Option<Vec<String>> {
    let Value::Array(entries) = value else { return None };
    entries.iter().map(|entry| Some(String::from_utf8_lossy(bytes_of(entry)?).into_owned())).collect()
}

/// Reads one text.
pub fn decode_text(value: &Value) -> Option<String> {
    bytes_of(value).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

pub(super) fn bytes_of(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn member(user: &str, name: Option<&str>) -> Member {
        Member { user: UserId::parse(user).unwrap(), name: name.map(Into::into), socket: "s1".into() }
    }

    #[test]
    fn a_member_survives_storage() {
        for member in [member("al|ice \"\u{1F600}\"", Some("Al\n")), member("bob", None)] {
            assert_eq!(decode_member(&encode_member(&member)), Some(member));
        }
        assert_eq!(decode_member(b"{\"user\":\"\",\"socket\":\"s\"}"), None);
        assert_eq!(decode_member(b"\xff"), None);
    }

    #[test]
    fn a_user_on_two_instances_is_listed_once() {
        let entry = |user| Value::BulkString(encode_member(&member(user, None)));
        let answer =
            Value::Array(vec![Value::Int(2), Value::Array(vec![entry("a"), entry("b"), entry("a")])]);
        let (count, members) = decode_members(&answer).unwrap();
        assert_eq!(count, 2);
        assert_eq!(members, [member("a", None), member("b", None)]);
    }

    #[test]
    fn reads_what_register_answers() {
        let alive = decode_registered(Value::Array(vec![bulk("new"), bulk("i1"), bulk("i2")]));
        let instances = vec![InstanceId::parse("i1").unwrap(), InstanceId::parse("i2").unwrap()];
        assert_eq!(alive, Some(Registered::Alive { known: false, instances }));
        let held = decode_registered(Value::Array(vec![bulk("held"), bulk("20"), bulk("250")]));
        let (age, grace) = (Duration::from_millis(20), Duration::from_millis(250));
        assert_eq!(held, Some(Registered::Held { age, grace }));
        assert_eq!(decode_registered(Value::Int(1)), None);
    }
}
