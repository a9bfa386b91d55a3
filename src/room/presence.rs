//! Who is in the rooms that this shard is home to: every room has one home shard per instance, where
//! joins and leaves from all shards come together in one order.

use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;

use super::route::RoomRoute;
use crate::hashing::Hashing;
use crate::identity::{ConnectionId, RoomId, ShardId, UserId};

/// A member as the other members may know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user: UserId,
    /// The display name from the token's `name`, if it had one.
    pub name: Option<Arc<str>>,
    /// The `socketId` of the connection with which the user came into the room.
    pub socket: Arc<str>,
}

#[derive(Debug)]
struct Present {
    member: Member,
    connections: SmallVec<[ConnectionId; 1]>,
    registered: bool,
}

/// One room, as its home shard knows it.
#[derive(Debug, Default)]
pub struct Home {
    /// Which shards have members.
    pub route: Arc<RoomRoute>,
    users: HashMap<UserId, Present, Hashing>,
    /// Connections per shard, for the shards that have any.
    shards: SmallVec<[(ShardId, u32); 1]>,
    told_alone: bool,
}

impl Home {
    /// Users of this instance in the room.
    pub fn user_count(&self) -> u32 {
        self.users.len() as u32
    }

    /// Those users.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.users.values().map(|present| &present.member)
    }

    /// Someone has been told who is in the room, or of a join or leave, as far as this instance knows.
    pub fn mark_told_alone(&mut self) {
        self.told_alone = true;
    }

    /// Whether that has happened since the last call.
    pub fn take_told_alone(&mut self) -> bool {
        std::mem::take(&mut self.told_alone)
    }

    /// Notes whether the other instances know of the user, or are about to.
    pub fn set_registered(&mut self, user: &UserId, registered: bool) {
        if let Some(present) = self.users.get_mut(user) {
            present.registered = registered;
        }
    }

    /// The other instances know of all users now.
    pub fn set_all_registered(&mut self) {
        self.users.values_mut().for_each(|present| present.registered = true);
    }

    /// The users that the other instances know of, and those that they do not.
    pub fn by_registration(&self) -> (Vec<Member>, Vec<Member>) {
        let of = |registered| {
            let present = self.users.values().filter(move |present| present.registered == registered);
            present.map(|present| present.member.clone()).collect()
        };
        (of(true), of(false))
    }

    fn join(&mut self, connection: ConnectionId, member: &Member) -> bool {
        let entry = self.users.entry(member.user.clone());
        let enters = matches!(entry, Entry::Vacant(_));
        let present = entry.or_insert_with(|| Present {
            member: member.clone(),
            connections: SmallVec::new(),
            registered: false,
        });
        if present.connections.contains(&connection) {
            return false;
        }
        present.connections.push(connection);
        match self.shards.iter_mut().find(|(shard, _)| *shard == connection.shard) {
            Some((_, count)) => *count += 1,
            None => {
                self.shards.push((connection.shard, 1));
                self.route.add(connection.shard);
            }
        }
        enters
    }

    fn leave(&mut self, connection: ConnectionId, user: &UserId) -> Option<Member> {
        let present = self.users.get_mut(user)?;
        let place = present.connections.iter().position(|present| *present == connection)?;
        present.connections.swap_remove(place);
        let gone = present.connections.is_empty();
        if let Some(place) = self.shards.iter().position(|(shard, _)| *shard == connection.shard) {
            self.shards[place].1 -= 1;
            if self.shards[place].1 == 0 {
                self.shards.swap_remove(place);
                self.route.remove(connection.shard);
            }
        }
        gone.then(|| self.users.remove(user).map(|present| present.member)).flatten()
    }
}

/// A user's last connection of this instance has left a room.
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    /// Who.
    pub member: Member,
    /// Users of this instance that are still there; at 0 the room has ended here.
    pub remaining: u32,
}

/// All rooms that one shard is home to.
#[derive(Debug, Default)]
pub struct Homes {
    rooms: HashMap<RoomId, Home, Hashing>,
}

impl Homes {
    /// The connection is in the room from now on. Returns the room, and whether this is the user's
    /// first connection in it; joining twice changes nothing.
    pub fn join(&mut self, room: &RoomId, connection: ConnectionId, member: &Member) -> (&mut Home, bool) {
        let home = self.rooms.entry(room.clone()).or_default();
        let enters = home.join(connection, member);
        (home, enters)
    }

    /// The connection is not in the room any more. Returns the user, if that was its last connection
    /// there; the room ends with its last user.
    pub fn leave(&mut self, room: &RoomId, connection: ConnectionId, user: &UserId) -> Option<Left> {
        let home = self.rooms.get_mut(room)?;
        let member = home.leave(connection, user)?;
        let remaining = home.user_count();
        if remaining == 0 {
            self.rooms.remove(room);
        }
        Some(Left { member, remaining })
    }

    /// The room, if anyone of this instance is in it.
    pub fn get(&self, room: &str) -> Option<&Home> {
        self.rooms.get(room)
    }

    /// As [`Self::get`].
    pub fn get_mut(&mut self, room: &str) -> Option<&mut Home> {
        self.rooms.get_mut(room)
    }

    /// How many rooms there are.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Every room.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&RoomId, &mut Home)> {
        self.rooms.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(shard: u8, slot: u32) -> ConnectionId {
        ConnectionId { shard: ShardId(shard), slot, generation: 0 }
    }

    fn member(user: &str) -> Member {
        Member { user: UserId::parse(user).unwrap(), name: None, socket: "s".into() }
    }

    #[test]
    fn a_user_with_two_connections_joins_once_and_leaves_once() {
        let mut homes = Homes::default();
        let room = RoomId::parse("r").unwrap();
        let (alice, bob) = (member("alice"), member("bob"));
        assert!(homes.join(&room, connection(0, 1), &alice).1);
        assert!(!homes.join(&room, connection(1, 1), &alice).1);
        assert!(homes.join(&room, connection(0, 2), &bob).1);
        assert_eq!(homes.get("r").unwrap().user_count(), 2);
        homes.get_mut("r").unwrap().set_registered(&bob.user, true);
        let (known, unknown) = homes.get("r").unwrap().by_registration();
        assert_eq!((known, unknown), (vec![bob.clone()], vec![alice.clone()]));
        assert_eq!(homes.leave(&room, connection(0, 1), &alice.user), None);
        assert_eq!(homes.leave(&room, connection(0, 1), &alice.user), None, "it had left already");
        let left = homes.leave(&room, connection(1, 1), &alice.user).unwrap();
        assert_eq!(left, Left { member: alice, remaining: 1 });
    }

    #[test]
    fn the_route_has_exactly_the_shards_with_connections() {
        let mut homes = Homes::default();
        let room = RoomId::parse("r").unwrap();
        let alice = member("alice");
        homes.join(&room, connection(0, 1), &alice);
        homes.join(&room, connection(3, 1), &alice);
        homes.join(&room, connection(3, 1), &alice);
        let route = homes.get("r").unwrap().route.clone();
        assert_eq!(route.shards().collect::<Vec<_>>(), [ShardId(0), ShardId(3)]);
        homes.leave(&room, connection(3, 1), &alice.user);
        assert_eq!(route.shards().collect::<Vec<_>>(), [ShardId(0)]);
        homes.leave(&room, connection(0, 1), &alice.user);
        assert!(route.shards().is_empty());
        assert!(homes.is_empty());
    }
}
