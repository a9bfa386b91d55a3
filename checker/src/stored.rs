//! What is known of the rooms' histories: which message is at which place.

use std::collections::{BTreeMap, HashMap};

use crate::record::{Message, Room};
use crate::violation::Violation;

/// One numbering of a room.
#[derive(Debug, Default)]
pub(crate) struct Numbering {
    /// When anyone was first told of it, in ms.
    pub(crate) seen_ms: u64,
    pub(crate) messages: BTreeMap<u64, Message>,
    pub(crate) places: HashMap<Message, u64>,
}

/// All rooms with history.
#[derive(Default)]
pub(crate) struct StoredRooms {
    rooms: HashMap<Room, HashMap<u64, Numbering>>,
}

impl StoredRooms {
    /// Someone was told that the room has this epoch.
    pub(crate) fn seen_epoch(&mut self, at_ms: u64, room: Room, epoch: u64) -> &mut Numbering {
        let fresh = || Numbering { seen_ms: at_ms, ..Numbering::default() };
        self.rooms.entry(room).or_default().entry(epoch).or_insert_with(fresh)
    }

    /// Someone saw the message at this place.
    ///
    /// # Errors
    /// When another message is known to be there, or the message elsewhere.
    pub(crate) fn place(
        &mut self,
        at_ms: u64,
        room: Room,
        epoch: u64,
        offset: u64,
        message: Message,
    ) -> Result<(), Violation> {
        let numbering = self.seen_epoch(at_ms, room, epoch);
        let first = *numbering.messages.entry(offset).or_insert(message);
        if first != message {
            return Err(Violation::Fork { room, epoch, offset, first, second: message });
        }
        if *numbering.places.entry(message).or_insert(offset) != offset {
            return Err(Violation::Duplicate { room, message, member: None });
        }
        Ok(())
    }

    pub(crate) fn numbering(&self, room: Room, epoch: u64) -> Option<&Numbering> {
        self.rooms.get(&room)?.get(&epoch)
    }

    /// All numberings of the room.
    pub(crate) fn numberings(&self, room: Room) -> impl Iterator<Item = (u64, &Numbering)> {
        self.rooms.get(&room).into_iter().flatten().map(|(epoch, numbering)| (*epoch, numbering))
    }

    /// Every numbering of every room.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Room, &Numbering)> {
        self.rooms.iter().flat_map(|(room, all)| all.values().map(|numbering| (*room, numbering)))
    }
}
