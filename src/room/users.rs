//! Which connections a user has: on this shard, and, for the users that this shard is home to, on all
//! shards.

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::route::ShardSet;
use crate::hashing::Hashing;
use crate::identity::{ConnectionId, UserId};

type ByUser<T> = HashMap<UserId, T, Hashing>;

/// The users with connections on this shard.
#[derive(Debug, Default)]
pub struct ShardUsers {
    slots: ByUser<SmallVec<[u32; 2]>>,
}

impl ShardUsers {
    /// The connection in `slot` is the user's.
    pub fn add(&mut self, user: &UserId, slot: u32) {
        self.slots.entry(user.clone()).or_default().push(slot);
    }

    /// The connection in `slot` has gone.
    pub fn remove(&mut self, user: &UserId, slot: u32) {
        if let Some(slots) = self.slots.get_mut(user) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.slots.remove(user);
            }
        }
    }

    /// The user's slots on this shard.
    pub fn slots(&self, user: &str) -> &[u32] {
        self.slots.get(user).map_or(&[], |slots| slots)
    }
}

/// The users that this shard is home to.
#[derive(Debug, Default)]
pub struct UserHomes {
    connections: ByUser<SmallVec<[ConnectionId; 1]>>,
}

/// What became of a connection that was to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// It was none of the user's.
    Unknown,
    /// The user has others on this instance.
    OneOfSeveral,
    /// It was the last one on this instance.
    Last,
}

impl UserHomes {
    /// The user has one more connection.
    pub fn attach(&mut self, user: &UserId, connection: ConnectionId) {
        self.connections.entry(user.clone()).or_default().push(connection);
    }

    /// The user has one connection less.
    pub fn detach(&mut self, user: &UserId, connection: ConnectionId) -> Detached {
        let Some(connections) = self.connections.get_mut(user) else { return Detached::Unknown };
        let Some(place) = connections.iter().position(|other| *other == connection) else {
            return Detached::Unknown;
        };
        connections.swap_remove(place);
        if !connections.is_empty() {
            return Detached::OneOfSeveral;
        }
        self.connections.remove(user);
        Detached::Last
    }

    /// The user's connections on this instance.
    pub fn connections(&self, user: &str) -> &[ConnectionId] {
        self.connections.get(user).map_or(&[], |connections| connections)
    }

    /// The shards on which the user has connections.
    pub fn shards(&self, user: &str) -> ShardSet {
        self.connections(user).iter().map(|connection| connection.shard).collect()
    }

    /// Every user, with its connections.
    pub fn iter(&self) -> impl Iterator<Item = (&UserId, &[ConnectionId])> {
        self.connections.iter().map(|(user, connections)| (user, &connections[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ShardId;

    fn connection(shard: u8, slot: u32) -> ConnectionId {
        ConnectionId { shard: ShardId(shard), slot, generation: 0 }
    }

    #[test]
    fn the_last_connection_is_told() {
        let user = UserId::parse("u").unwrap();
        let mut homes = UserHomes::default();
        let all = [connection(1, 0), connection(1, 1), connection(2, 0)];
        all.iter().for_each(|connection| homes.attach(&user, *connection));
        assert_eq!((homes.connections("u").len(), homes.connections("v").len()), (3, 0));
        assert_eq!(homes.shards("u").collect::<Vec<_>>(), [ShardId(1), ShardId(2)]);
        assert_eq!(homes.detach(&user, all[0]), Detached::OneOfSeveral);
        assert_eq!(homes.detach(&user, all[0]), Detached::Unknown, "it has gone already");
        assert_eq!(homes.detach(&user, all[2]), Detached::OneOfSeveral);
        assert_eq!(homes.shards("u").collect::<Vec<_>>(), [ShardId(1)]);
        assert_eq!(homes.detach(&user, all[1]), Detached::Last);
        assert_eq!(homes.detach(&user, all[1]), Detached::Unknown, "nobody to detach");
    }

    #[test]
    fn a_shard_knows_its_own_slots() {
        let user = UserId::parse("u").unwrap();
        let mut users = ShardUsers::default();
        users.add(&user, 3);
        users.add(&user, 5);
        users.remove(&user, 3);
        assert_eq!(users.slots("u"), [5]);
        users.remove(&user, 5);
        assert!(users.slots("u").is_empty());
    }
}
