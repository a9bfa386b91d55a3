//! Which connections a user has: on this shard, and, for the users that this shard is home to, on
//! which shards.

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::hashing::Hashing;
use crate::identity::{ShardId, UserId};

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
    shards: ByUser<SmallVec<[(ShardId, u32); 1]>>,
}

impl UserHomes {
    /// The user has one more connection on `shard`. Returns whether it is the first of this instance.
    pub fn attach(&mut self, user: &UserId, shard: ShardId) -> bool {
        let shards = self.shards.entry(user.clone()).or_default();
        match shards.iter_mut().find(|(other, _)| *other == shard) {
            Some((_, count)) => *count += 1,
            None => shards.push((shard, 1)),
        }
        shards.len() == 1 && shards[0].1 == 1
    }

    /// The user has one connection less on `shard`. Returns whether it was the last of this instance.
    pub fn detach(&mut self, user: &UserId, shard: ShardId) -> bool {
        let Some(shards) = self.shards.get_mut(user) else { return false };
        if let Some(place) = shards.iter().position(|(other, _)| *other == shard) {
            shards[place].1 -= 1;
            if shards[place].1 == 0 {
                shards.swap_remove(place);
            }
        }
        let gone = shards.is_empty();
        if gone {
            self.shards.remove(user);
        }
        gone
    }

    /// How many connections the user has.
    pub fn connections(&self, user: &str) -> u32 {
        self.shards.get(user).into_iter().flatten().map(|(_, count)| count).sum()
    }

    /// The shards on which the user has connections.
    pub fn shards(&self, user: &str) -> impl Iterator<Item = ShardId> + '_ {
        self.shards.get(user).into_iter().flatten().map(|(shard, _)| *shard)
    }

    /// Every user.
    pub fn users(&self) -> impl Iterator<Item = &UserId> {
        self.shards.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_connection_and_the_last_one_are_told() {
        let user = UserId::parse("u").unwrap();
        let mut homes = UserHomes::default();
        assert!(homes.attach(&user, ShardId(1)));
        assert!(!homes.attach(&user, ShardId(1)));
        assert!(!homes.attach(&user, ShardId(2)));
        assert_eq!((homes.connections("u"), homes.connections("v")), (3, 0));
        assert_eq!(homes.shards("u").collect::<Vec<_>>(), [ShardId(1), ShardId(2)]);
        assert!(!homes.detach(&user, ShardId(1)));
        assert!(!homes.detach(&user, ShardId(1)));
        assert!(homes.detach(&user, ShardId(2)));
        assert!(!homes.detach(&user, ShardId(2)), "nobody to detach");
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
