//! One shard's slices of rooms: which of its connections are members of what.

use std::cell::Cell;
use std::sync::Arc;

use hashbrown::HashMap;

use super::fanout::SliceMember;
use super::route::RoomRoute;
use crate::hashing::Hashing;
use crate::identity::RoomId;

/// A room's members on this shard. It exists while there are any.
#[derive(Debug)]
pub struct Slice {
    /// The room.
    pub room: RoomId,
    /// Which shards have members of it.
    pub route: Arc<RoomRoute>,
    /// Whether its messages are numbered and kept.
    pub history: bool,
    /// Those on this shard, in no order.
    pub members: Vec<SliceMember>,
    /// The latest count of users in the whole cluster that this shard was told.
    pub member_count: u32,
    /// Whether `member_count` has changed since members were told, in a room too large for single
    /// joins and leaves.
    pub size_changed: bool,
    /// Messages that members here were sent, one for each receiver.
    deliveries: Cell<u64>,
    /// How many of them had been sent when [`Slice::take_recent`] was last called.
    looked_at: Cell<u64>,
}

impl Slice {
    /// Notes that a message went to `receivers` members.
    #[inline]
    pub fn count(&self, receivers: u64) {
        self.deliveries.set(self.deliveries.get().wrapping_add(receivers));
    }

    /// Messages that members here were sent, one for each receiver.
    pub fn deliveries(&self) -> u64 {
        self.deliveries.get()
    }

    /// Those of them that were sent since the last call.
    pub fn take_recent(&self) -> u64 {
        let all = self.deliveries.get();
        all.wrapping_sub(self.looked_at.replace(all))
    }
}

/// Where a connection stands in a slice; the connection keeps one for each of its rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The slice's number.
    pub slice: u32,
    /// The connection's place among the slice's members.
    pub position: u32,
}

/// A member that took the place of another, which has left: its own record must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The slot of the connection that moved.
    pub slot: u32,
    /// Its place before.
    pub from: Membership,
    /// Its place now.
    pub to: Membership,
}

/// All slices of one shard.
#[derive(Debug, Default)]
pub struct Directory {
    by_room: HashMap<RoomId, u32, Hashing>,
    slices: Vec<Option<Slice>>,
    free: Vec<u32>,
    resized: Vec<u32>,
}

impl Directory {
    /// The number of the room's slice, if this shard has members of it.
    #[inline]
    pub fn find(&self, room: &str) -> Option<u32> {
        self.by_room.get(room).copied()
    }

    /// The slice with that number.
    ///
    /// # Panics
    /// When there is none: numbers come from [`Self::find`] and from memberships that are kept exact.
    #[inline]
    pub fn slice(&self, number: u32) -> &Slice {
        self.slices[number as usize].as_ref().expect("a slice lives as long as it has members")
    }

    /// As [`Self::slice`].
    ///
    /// # Panics
    /// As [`Self::slice`].
    pub fn slice_mut(&mut self, number: u32) -> &mut Slice {
        self.slices[number as usize].as_mut().expect("a slice lives as long as it has members")
    }

    /// Adds a connection to a room that it is not in.
    pub fn add(
        &mut self,
        room: &RoomId,
        route: &Arc<RoomRoute>,
        history: bool,
        member: SliceMember,
    ) -> Membership {
        let number = match self.by_room.get(room) {
            Some(number) => *number,
            None => self.insert(room, route, history),
        };
        let slice = self.slice_mut(number);
        slice.members.push(member);
        Membership { slice: number, position: slice.members.len() as u32 - 1 }
    }

    fn insert(&mut self, room: &RoomId, route: &Arc<RoomRoute>, history: bool) -> u32 {
        let slice = Slice {
            room: room.clone(),
            route: route.clone(),
            history,
            members: Vec::new(),
            member_count: 0,
            size_changed: false,
            deliveries: Cell::new(0),
            looked_at: Cell::new(0),
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.slices.push(None);
            self.slices.len() as u32 - 1
        });
        self.slices[number as usize] = Some(slice);
        self.by_room.insert(room.clone(), number);
        number
    }

    /// Takes a connection out of a room; returns who moved into its place. The slice ends with its
    /// last member.
    pub fn remove(&mut self, membership: Membership) -> Option<Moved> {
        let slice = self.slice_mut(membership.slice);
        slice.members.swap_remove(membership.position as usize);
        let last = Membership { slice: membership.slice, position: slice.members.len() as u32 };
        if slice.members.is_empty() {
            self.by_room.remove(&self.slices[membership.slice as usize].take().expect("it was there").room);
            self.free.push(membership.slice);
            return None;
        }
        let moved = slice.members.get(membership.position as usize)?;
        Some(Moved { slot: moved.slot, from: last, to: membership })
    }

    /// Notes a new member count that members hear of only once a second.
    pub fn resize(&mut self, number: u32, member_count: u32) {
        let slice = self.slice_mut(number);
        slice.member_count = member_count;
        if !slice.size_changed {
            slice.size_changed = true;
            self.resized.push(number);
        }
    }

    /// The slices whose members are to hear of a new count.
    pub fn take_resized(&mut self) -> Vec<u32> {
        let mut resized = std::mem::take(&mut self.resized);
        resized.retain(|number| {
            let slice = self.slices[*number as usize].as_mut();
            slice.is_some_and(|slice| std::mem::take(&mut slice.size_changed))
        });
        resized
    }

    /// One more than the largest number that a slice may have.
    pub fn capacity(&self) -> usize {
        self.slices.len()
    }

    /// The slice with that number, if there is one.
    pub fn get(&self, number: usize) -> Option<&Slice> {
        self.slices.get(number)?.as_ref()
    }

    /// Every slice's number.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_room.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(slot: u32) -> SliceMember {
        SliceMember { slot, echo: false, window: 0 }
    }

    #[test]
    fn a_slice_lives_as_long_as_it_has_members_and_places_follow_removals() {
        let mut directory = Directory::default();
        let room = RoomId::parse("r").unwrap();
        let route = Arc::default();
        let places: Vec<_> = (0..3).map(|slot| directory.add(&room, &route, false, member(slot))).collect();
        let moved = directory.remove(places[0]).unwrap();
        assert_eq!(moved, Moved { slot: 2, from: places[2], to: places[0] });
        assert_eq!(directory.remove(places[1]), None, "the last place moves nobody");
        assert_eq!(directory.slice(places[0].slice).members, [member(2)]);
        assert_eq!(directory.remove(places[0]), None);
        assert_eq!(directory.find("r"), None);
        assert_eq!(
            directory.add(&room, &route, false, member(9)).slice,
            places[0].slice,
            "numbers are used again"
        );
    }

    #[test]
    fn a_resized_room_is_told_once_and_not_after_its_end() {
        let mut directory = Directory::default();
        let route = Arc::default();
        let first = directory.add(&RoomId::parse("a").unwrap(), &route, false, member(1));
        let second = directory.add(&RoomId::parse("b").unwrap(), &route, false, member(1));
        directory.resize(first.slice, 300);
        directory.resize(first.slice, 301);
        directory.resize(second.slice, 400);
        directory.remove(second);
        assert_eq!(directory.take_resized(), [first.slice]);
        assert!(directory.take_resized().is_empty());
    }
}
