//! Calls of `sessions.lua`, the script that counts the connections of each user over all instances.

use redis::{Cmd, Script, cmd};

use super::batch::Origin;
use super::presence::KEY_TTL;
use crate::identity::{ConnectionId, InstanceId, SocketId, UserId};

const TEXT: &str = include_str!("sessions.lua");

/// Users in one call that restores them: bounds how long it blocks Redis.
const USERS_PER_CALL: usize = 100;

/// A user and the connections that it has on this instance.
pub type UserSessions = (UserId, Vec<SocketId>);

/// One operation of the script.
#[derive(Debug)]
pub enum Call {
    /// A user has one more connection; answered with whether that may be.
    Attach {
        /// The user.
        user: UserId,
        /// The connection, as the script names it.
        socket: SocketId,
        /// The limit of the user's connections.
        most: u32,
    },
    /// A user has one connection less.
    Detach {
        /// The user.
        user: UserId,
        /// The connection.
        socket: SocketId,
    },
    /// This instance has no connections, until it says otherwise.
    Reset,
    /// Users with connections here.
    Restore(Vec<UserSessions>),
    /// Renews the expiry of what is kept.
    Renew,
    /// Checks the rights of the connection's user; answered with the first that is missing.
    Probe,
}

impl Call {
    /// The calls by which an instance says what connections `users` have.
    pub fn restoring(mut users: Vec<UserSessions>) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let rest = users.len().saturating_sub(USERS_PER_CALL);
            let some = users.split_off(rest);
            (!some.is_empty()).then_some(Self::Restore(some))
        })
    }

    /// The connection that waits for the answer.
    pub fn waiting(&self) -> Option<ConnectionId> {
        match self {
            Self::Attach { socket, .. } => Some(socket.connection),
            _ => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::Reset => "reset",
            Self::Restore(_) => "restore",
            Self::Renew => "renew",
            Self::Probe => "probe",
        }
    }
}

/// Makes the script's commands for one instance.
#[derive(Debug)]
pub struct SessionCaller {
    script: Script,
    prefix: String,
    instance: InstanceId,
    origin: Origin,
    /// The how-manieth connection of the process calls go out on.
    connection: u64,
    counts: bool,
}

impl SessionCaller {
    /// The caller for one instance. `counts` says whether connections are counted at all.
    pub fn new(prefix: &str, (instance, origin): (&InstanceId, Origin), counts: bool) -> Self {
        Self {
            script: Script::new(TEXT),
            prefix: prefix.to_owned(),
            instance: instance.clone(),
            origin,
            connection: 0,
            counts,
        }
    }

    /// Calls go out on another connection from now on: what is still on its way over earlier ones has no effect once
    /// the instance has registered over this one.
    pub fn reconnected(&mut self) {
        self.connection += 1;
    }

    /// Whether connections are counted at all.
    pub fn counts(&self) -> bool {
        self.counts
    }

    /// The channel that the instance subscribes to for as long as its connections count.
    pub fn alive_channel(&self) -> String {
        format!("{}alive:{}", self.prefix, self.instance)
    }

    /// The Redis command of `call`: EVAL with the script's text, which also loads it, or EVALSHA.
    pub fn command(&self, call: &Call, with_text: bool) -> Cmd {
        let mut command = if with_text { cmd("EVAL") } else { cmd("EVALSHA") };
        command.arg(if with_text { TEXT } else { self.script.get_hash() });
        command.arg(0).arg(&self.prefix).arg(call.name()).arg(KEY_TTL.as_secs()).arg(self.instance.as_str());
        command.arg(format!("{:016x}", self.origin.0)).arg(self.connection);
        match call {
            Call::Attach { user, socket, most } => {
                command.arg(user.as_str()).arg(named(&[*socket])).arg(*most);
            }
            Call::Detach { user, socket } => {
                command.arg(user.as_str()).arg(named(&[*socket]));
            }
            Call::Restore(users) => {
                for (user, sockets) in users {
                    command.arg(user.as_str()).arg(named(sockets));
                }
            }
            Call::Reset | Call::Renew | Call::Probe => {}
        }
        command
    }
}

/// Connections as the script keeps them: a space in front of each, so that none is found across two.
fn named(sockets: &[SocketId]) -> String {
    sockets.iter().flat_map(|socket| [" ".to_owned(), socket.to_string()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ShardId;

    fn socket(slot: u32) -> SocketId {
        SocketId { boot: 1, connection: ConnectionId { shard: ShardId(2), slot, generation: 3 } }
    }

    #[test]
    fn all_connections_have_names_of_one_length() {
        let names = named(&[socket(4), socket(5)]);
        assert_eq!(names, " 0000000102000004000003 0000000102000005000003");
    }

    #[test]
    fn users_are_restored_in_calls_of_bounded_size_and_each_once() {
        let user = |n: usize| UserId::parse(&format!("u{n}")).unwrap();
        let users: Vec<_> = (0..250).map(|n| (user(n), vec![socket(n as u32)])).collect();
        let mut restored = Vec::new();
        for call in Call::restoring(users.clone()) {
            let Call::Restore(some) = call else { panic!("{call:?}") };
            assert!(some.len() <= USERS_PER_CALL);
            restored.extend(some);
        }
        restored.sort_by_key(|(_, sockets)| sockets[0].connection.slot);
        assert_eq!(restored, users);
        assert_eq!(Call::restoring(Vec::new()).count(), 0);
    }
}
