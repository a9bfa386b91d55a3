//! Who is in the rooms that this shard is home to: every room has one home shard per instance, where
//! joins and leaves from all shards come together in one order.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::hash_table::Entry;
use hashbrown::{HashMap, HashTable};
use smallvec::SmallVec;

use super::route::RoomRoute;
use crate::hashing::Hashing;
use crate::identity::{ConnectionId, RoomId, ShardId, SocketId, UserId};

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

/// Connections of one user, or of one user in a room: hardly ever more than one.
#[derive(Debug)]
pub(super) enum Connections {
    One(ConnectionId),
    // Boxed, because there is one of these per member.
    #[allow(clippy::box_collection, reason = "a list here would double the size of all the others")]
    Many(Box<Vec<ConnectionId>>),
}

impl Connections {
    pub(super) fn as_slice(&self) -> &[ConnectionId] {
        match self {
            Self::One(connection) => std::slice::from_ref(connection),
            Self::Many(connections) => connections,
        }
    }

    /// Adds one that is not there.
    pub(super) fn add(&mut self, connection: ConnectionId) {
        match self {
            Self::One(other) => *self = Self::Many(Box::new(vec![*other, connection])),
            Self::Many(connections) => connections.push(connection),
        }
    }

    /// Takes out one that is there; returns whether it was the last.
    pub(super) fn remove(&mut self, connection: ConnectionId) -> bool {
        match self {
            Self::One(_) => return true,
            Self::Many(connections) => connections.retain(|other| *other != connection),
        }
        if let [one] = self.as_slice() {
            *self = Self::One(*one);
        }
        false
    }
}

/// A [`Member`] whose `socket` is known by the connection, so that nobody has its text in memory.
#[derive(Debug)]
struct Present {
    user: UserId,
    name: Option<Arc<str>>,
    /// The connection with which the user came into the room.
    came_by: ConnectionId,
    connections: Connections,
    registered: bool,
}

const _: () = assert!(size_of::<Present>() <= 56, "there is one per member");

impl Present {
    fn member(&self, boot: u32) -> Member {
        let socket = SocketId { boot, connection: self.came_by };
        Member { user: self.user.clone(), name: self.name.clone(), socket: socket.text().as_str().into() }
    }
}

/// One room, as its home shard knows it.
#[derive(Debug, Default)]
pub struct Home {
    /// Which shards have members.
    pub route: Arc<RoomRoute>,
    users: HashTable<Present>,
    hashing: Hashing,
    /// What makes this process's `socketId`s its own.
    boot: u32,
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
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.users.iter().map(|present| present.member(self.boot))
    }

    /// Someone has been told who is in the room, or of a join or leave, as far as this instance knows.
    pub fn mark_told_alone(&mut self) {
        self.told_alone = true;
    }

    /// Whether that has happened since the other instances were last told of the room.
    pub fn is_told_alone(&self) -> bool {
        self.told_alone
    }

    /// The other instances know of all users of the room, and these of all others.
    pub fn settle(&mut self) {
        self.told_alone = false;
        self.set_all_registered();
    }

    /// Notes whether the other instances know of the user, or are about to.
    pub fn set_registered(&mut self, user: &UserId, registered: bool) {
        let hash = self.hashing.hash_one(user);
        if let Some(present) = self.users.find_mut(hash, |present| present.user == *user) {
            present.registered = registered;
        }
    }

    /// The other instances know of all users now.
    pub fn set_all_registered(&mut self) {
        self.users.iter_mut().for_each(|present| present.registered = true);
    }

    /// The users that the other instances know of, and those that they do not.
    pub fn by_registration(&self) -> (Vec<Member>, Vec<Member>) {
        let of = |registered| {
            let present = self.users.iter().filter(move |present| present.registered == registered);
            present.map(|present| present.member(self.boot)).collect()
        };
        (of(true), of(false))
    }

    fn join(&mut self, connection: ConnectionId, member: &Member) -> bool {
        let hashing = &self.hashing;
        let is_user = |present: &Present| present.user == member.user;
        let hash_of = |present: &Present| hashing.hash_one(&present.user);
        let enters = match self.users.entry(hashing.hash_one(&member.user), is_user, hash_of) {
            Entry::Occupied(mut entry) => {
                let present = entry.get_mut();
                if present.connections.as_slice().contains(&connection) {
                    return false;
                }
                present.connections.add(connection);
                false
            }
            Entry::Vacant(entry) => {
                entry.insert(Present {
                    user: member.user.clone(),
                    name: member.name.clone(),
                    came_by: connection,
                    connections: Connections::One(connection),
                    registered: false,
                });
                true
            }
        };
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
        let hash = self.hashing.hash_one(user);
        let mut entry = self.users.find_entry(hash, |present| present.user == *user).ok()?;
        let connections = &mut entry.get_mut().connections;
        if !connections.as_slice().contains(&connection) {
            return None;
        }
        let gone = connections.remove(connection);
        if let Some(place) = self.shards.iter().position(|(shard, _)| *shard == connection.shard) {
            self.shards[place].1 -= 1;
            if self.shards[place].1 == 0 {
                self.shards.swap_remove(place);
                self.route.remove(connection.shard);
            }
        }
        gone.then(|| entry.remove().0.member(self.boot))
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
    /// How the users of all rooms are hashed.
    hashing: Hashing,
    boot: u32,
}

impl Homes {
    /// No rooms; `boot` is what makes this process's `socketId`s its own.
    pub fn new(boot: u32) -> Self {
        Self { boot, ..Self::default() }
    }

    /// The connection is in the room from now on. Returns the room, and whether this is the user's
    /// first connection in it; joining twice changes nothing.
    pub fn join(&mut self, room: &RoomId, connection: ConnectionId, member: &Member) -> (&mut Home, bool) {
        let (hashing, boot) = (&self.hashing, self.boot);
        let new = || Home { hashing: hashing.clone(), boot, ..Home::default() };
        let home = self.rooms.entry(room.clone()).or_insert_with(new);
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

    /// The user, who comes by `connection`.
    fn member(user: &str, connection: ConnectionId) -> Member {
        let socket = SocketId { boot: 7, connection }.text();
        Member { user: UserId::parse(user).unwrap(), name: None, socket: socket.as_str().into() }
    }

    #[test]
    fn a_user_with_two_connections_joins_once_and_leaves_once() {
        let mut homes = Homes::new(7);
        let room = RoomId::parse("r").unwrap();
        let (alice, bob) = (member("alice", connection(0, 1)), member("bob", connection(0, 2)));
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
        let alice = member("alice", connection(0, 1));
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
