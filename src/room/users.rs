//! Which connections a user has: on this shard, and, for the users that this shard is home to, on all
//! shards.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::presence::Connections;
use super::route::ShardSet;
use crate::hashing::Hashing;
use crate::identity::{ConnectionId, UserId};

/// The users with connections on this shard. Nearly all have one, so a connection costs its place in two lists and
/// in a table of numbers: the connections of a user are a ring of slots.
#[derive(Debug, Default)]
pub struct ShardUsers {
    /// Whose connection is in the slot.
    users: Vec<Option<UserId>>,
    /// The slot of the same user's next connection; the first one's after the last.
    next: Vec<u32>,
    /// The slot of each user's last connection.
    last: HashTable<u32>,
    hashing: Hashing,
}

impl ShardUsers {
    /// The connection in `slot`, which is nobody's yet, is the user's.
    pub fn add(&mut self, user: &UserId, slot: u32) {
        let index = slot as usize;
        if index >= self.users.len() {
            self.users.resize(index + 1, None);
            self.next.resize(index + 1, 0);
        }
        debug_assert!(self.users[index].is_none(), "a connection has one user");
        self.users[index] = Some(user.clone());
        let Self { users, next, last, hashing } = self;
        let is_user = |other: &u32| users[*other as usize].as_ref() == Some(user);
        let hash_of = |slot: &u32| users[*slot as usize].as_ref().map_or(0, |user| hashing.hash_one(user));
        match last.entry(hashing.hash_one(user), is_user, hash_of) {
            Entry::Occupied(mut entry) => {
                let before = std::mem::replace(entry.get_mut(), slot);
                next[index] = std::mem::replace(&mut next[before as usize], slot);
            }
            Entry::Vacant(entry) => {
                entry.insert(slot);
                next[index] = slot;
            }
        }
    }

    /// The connection in `slot` has gone.
    pub fn remove(&mut self, user: &UserId, slot: u32) {
        let index = slot as usize;
        if self.users.get(index).and_then(Option::as_ref) != Some(user) {
            return;
        }
        let Self { users, next, last, hashing } = self;
        let is_user = |other: &u32| users[*other as usize].as_ref() == Some(user);
        if let Ok(mut entry) = last.find_entry(hashing.hash_one(user), is_user) {
            let mut before = *entry.get();
            while next[before as usize] != slot {
                before = next[before as usize];
            }
            if before == slot {
                entry.remove();
            } else {
                next[before as usize] = next[index];
                if *entry.get() == slot {
                    *entry.get_mut() = before;
                }
            }
        }
        users[index] = None;
    }

    /// The user's slots on this shard, in the order in which they came.
    pub fn slots(&self, user: &str) -> impl Iterator<Item = u32> + '_ {
        let is_user =
            |slot: &u32| self.users[*slot as usize].as_ref().is_some_and(|other| other.as_str() == user);
        let last = self.last.find(self.hashing.hash_one(user), is_user).copied();
        let first = last.map(|last| self.next[last as usize]);
        std::iter::successors(first, move |slot| (Some(*slot) != last).then(|| self.next[*slot as usize]))
    }
}

/// A user, as its home shard knows it.
#[derive(Debug)]
struct Attached {
    user: UserId,
    connections: Connections,
}

const _: () = assert!(size_of::<Option<Attached>>() <= 24, "there is one per user");

/// The users that this shard is home to.
#[derive(Debug, Default)]
pub struct UserHomes {
    /// In a list, because what a hash table has twice as much of as it needs should be small.
    users: Vec<Option<Attached>>,
    free: Vec<u32>,
    /// Places in that list.
    places: HashTable<u32>,
    hashing: Hashing,
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
    fn place(&self, user: &str) -> Option<u32> {
        let is_user = |place: &u32| {
            self.users[*place as usize].as_ref().is_some_and(|other| other.user.as_str() == user)
        };
        self.places.find(self.hashing.hash_one(user), is_user).copied()
    }

    /// The user has one more connection.
    pub fn attach(&mut self, user: &UserId, connection: ConnectionId) {
        if let Some(place) = self.place(user.as_str())
            && let Some(attached) = &mut self.users[place as usize]
        {
            return attached.connections.add(connection);
        }
        let attached = Attached { user: user.clone(), connections: Connections::One(connection) };
        let place = self.free.pop().unwrap_or_else(|| {
            self.users.push(None);
            self.users.len() as u32 - 1
        });
        self.users[place as usize] = Some(attached);
        let Self { users, places, hashing, .. } = self;
        let hash_of = |place: &u32| {
            users[*place as usize].as_ref().map_or(0, |attached| hashing.hash_one(&attached.user))
        };
        places.insert_unique(hashing.hash_one(user), place, hash_of);
    }

    /// The user has one connection less.
    pub fn detach(&mut self, user: &UserId, connection: ConnectionId) -> Detached {
        let Some(place) = self.place(user.as_str()) else { return Detached::Unknown };
        let Some(attached) = &mut self.users[place as usize] else { return Detached::Unknown };
        if !attached.connections.as_slice().contains(&connection) {
            return Detached::Unknown;
        }
        if !attached.connections.remove(connection) {
            return Detached::OneOfSeveral;
        }
        if let Ok(entry) = self.places.find_entry(self.hashing.hash_one(user), |other| *other == place) {
            entry.remove();
        }
        self.users[place as usize] = None;
        self.free.push(place);
        Detached::Last
    }

    /// The user's connections on this instance.
    pub fn connections(&self, user: &str) -> &[ConnectionId] {
        let attached = self.place(user).and_then(|place| self.users[place as usize].as_ref());
        attached.map_or(&[], |attached| attached.connections.as_slice())
    }

    /// The shards on which the user has connections.
    pub fn shards(&self, user: &str) -> ShardSet {
        self.connections(user).iter().map(|connection| connection.shard).collect()
    }

    /// Every user, with its connections.
    pub fn iter(&self) -> impl Iterator<Item = (&UserId, &[ConnectionId])> {
        self.users.iter().flatten().map(|attached| (&attached.user, attached.connections.as_slice()))
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
        let (user, other) = (UserId::parse("u").unwrap(), UserId::parse("v").unwrap());
        let mut users = ShardUsers::default();
        let slots = |users: &ShardUsers| users.slots("u").collect::<Vec<_>>();
        users.add(&user, 3);
        users.add(&other, 4);
        users.add(&user, 5);
        users.add(&user, 1);
        assert_eq!((slots(&users), users.slots("v").collect()), (vec![3, 5, 1], vec![4]));
        users.remove(&user, 4);
        assert_eq!(users.slots("v").collect::<Vec<_>>(), [4], "it is another user's");
        users.remove(&user, 1);
        users.add(&user, 1);
        users.remove(&user, 3);
        assert_eq!(slots(&users), [5, 1]);
        users.remove(&user, 5);
        users.remove(&user, 5);
        assert_eq!(slots(&users), [1]);
        users.remove(&user, 1);
        assert!(slots(&users).is_empty());
        users.add(&user, 3);
        assert_eq!(slots(&users), [3]);
    }

    #[test]
    fn many_users_come_and_go() {
        let user = |n: u32| UserId::parse(&format!("user-{n}")).unwrap();
        let (mut homes, mut users) = (UserHomes::default(), ShardUsers::default());
        for n in 0..1000 {
            homes.attach(&user(n), connection(0, n));
            users.add(&user(n), n);
        }
        for n in (0..1000).step_by(2) {
            assert_eq!(homes.detach(&user(n), connection(0, n)), Detached::Last);
            users.remove(&user(n), n);
        }
        for n in 0..1000 {
            assert_eq!(homes.connections(user(n).as_str()).len() as u32, n % 2);
            assert_eq!(users.slots(user(n).as_str()).collect::<Vec<_>>().len() as u32, n % 2);
        }
        assert_eq!(homes.iter().count(), 500);
        homes.attach(&user(0), connection(0, 0));
        assert_eq!(homes.users.len(), 1000, "places are used again");
    }
}
