//! The names of the Redis channels.

use crate::shard::envelope::Target;

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel<'a> {
    /// Heartbeats.
    Instances,
    /// Messages to everyone.
    Global,
    /// Messages of the room with this name.
    Room(&'a str),
    /// Messages to the user with this name.
    User(&'a str),
    /// Whatever the instance with this name sends to all others.
    Lane(&'a str),
}

/// Makes and reads channel names under one prefix.
#[derive(Clone, Debug)]
pub struct Channels {
    prefix: String,
}

impl Channels {
    /// The channels under `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The name of a channel.
    pub fn name(&self, channel: Channel<'_>) -> String {
        let prefix = &self.prefix;
        match channel {
            Channel::Instances => format!("{prefix}instances"),
            Channel::Global => format!("{prefix}global"),
            Channel::Room(room) => format!("{prefix}rooms:{room}"),
            Channel::User(user) => format!("{prefix}users:{user}"),
            Channel::Lane(instance) => format!("{prefix}lane:{instance}"),
        }
    }

    /// The name of the channel that reaches `target`.
    pub fn of(&self, target: &Target) -> String {
        self.name(match target {
            Target::Room(room) => Channel::Room(room.as_str()),
            Target::User(user) => Channel::User(user.as_str()),
            Target::Global => Channel::Global,
        })
    }

    /// Which channel `name` is, if it is one of these.
    pub fn parse<'a>(&self, name: &'a [u8]) -> Option<Channel<'a>> {
        let rest = std::str::from_utf8(name).ok()?.strip_prefix(&self.prefix)?;
        match rest {
            "instances" => Some(Channel::Instances),
            "global" => Some(Channel::Global),
            _ => {
                let (kind, name) = rest.split_once(':')?;
                match kind {
                    "rooms" => Some(Channel::Room(name)),
                    "users" => Some(Channel::User(name)),
                    "lane" => Some(Channel::Lane(name)),
                    _ => None,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_made() {
        let channels = Channels::new("a:b:");
        for channel in [
            Channel::Instances,
            Channel::Global,
            Channel::Room("x:y"),
            Channel::User("u:\u{e9}"),
            Channel::Room("global"),
            Channel::Lane("i-1"),
        ] {
            assert_eq!(channels.parse(channels.name(channel).as_bytes()), Some(channel));
        }
        for name in ["a:b:admin", "a:instances", "a:b:rooms", "other"] {
            assert_eq!(channels.parse(name.as_bytes()), None);
        }
    }
}
