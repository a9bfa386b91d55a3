//! The rooms of a shard with the most traffic, found by looking at a part of its rooms at a time.

use super::directory::Directory;
use crate::identity::RoomId;
use crate::limits;

/// Looks in which every room is looked at once.
const LOOKS_PER_PASS: usize = 50;

/// A room among those with the most traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct BusyRoom {
    /// The room.
    pub room: RoomId,
    /// Its members on this shard.
    pub connections: u64,
    /// Messages per second that they were sent, one for each receiver.
    pub per_second: f64,
}

/// A pass over all rooms, and what it has found so far.
#[derive(Debug, Default)]
pub struct Traffic {
    next: usize,
    began_ms: u64,
    /// Messages since the last pass, the most first; at most [`limits::TOP_ROOMS`].
    found: Vec<(u64, u64, RoomId)>,
}

impl Traffic {
    /// Looks at the next part of the rooms; the rooms with the most traffic when that was the last one. To be called
    /// at regular intervals.
    pub fn look(&mut self, directory: &Directory, now_ms: u64) -> Option<Vec<BusyRoom>> {
        let rooms = directory.capacity();
        let end = self.next + rooms.div_ceil(LOOKS_PER_PASS);
        for slice in (self.next..end.min(rooms)).filter_map(|number| directory.get(number)) {
            let sent = slice.take_recent();
            let least = self.found.last().map_or(0, |(least, ..)| *least);
            if sent == 0 || (self.found.len() == limits::TOP_ROOMS && sent <= least) {
                continue;
            }
            self.found.truncate(limits::TOP_ROOMS - 1);
            let place = self.found.partition_point(|(other, ..)| *other >= sent);
            self.found.insert(place, (sent, slice.members.len() as u64, slice.room.clone()));
        }
        self.next = end;
        // A shard without rooms does not count as looked at in one go: the time would be no measure.
        if end < rooms || now_ms.saturating_sub(self.began_ms) < 1000 {
            return None;
        }
        let seconds = now_ms.saturating_sub(self.began_ms) as f64 / 1e3;
        (self.next, self.began_ms) = (0, now_ms);
        let busy =
            |(sent, connections, room)| BusyRoom { room, connections, per_second: sent as f64 / seconds };
        Some(std::mem::take(&mut self.found).into_iter().map(busy).collect())
    }
}

/// The rooms with the most traffic of all shards together.
pub fn merged(shards: impl Iterator<Item = Vec<BusyRoom>>) -> Vec<BusyRoom> {
    let mut rooms: Vec<BusyRoom> = Vec::new();
    for busy in shards.flatten() {
        match rooms.iter_mut().find(|other| other.room == busy.room) {
            Some(other) => {
                other.connections += busy.connections;
                other.per_second += busy.per_second;
            }
            None => rooms.push(busy),
        }
    }
    rooms.sort_by(|a, b| {
        b.per_second.total_cmp(&a.per_second).then_with(|| a.room.as_str().cmp(b.room.as_str()))
    });
    rooms.truncate(limits::TOP_ROOMS);
    rooms
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::room::fanout::SliceMember;

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    fn pass(traffic: &mut Traffic, directory: &Directory, now_ms: u64) -> Vec<BusyRoom> {
        (0..200).find_map(|step| traffic.look(directory, now_ms + step)).expect("a pass ends")
    }

    #[test]
    fn the_busiest_rooms_of_a_pass_come_first_and_the_next_pass_counts_anew() {
        let mut directory = Directory::default();
        for number in 0..300 {
            let member = SliceMember { slot: number, echo: false, window: 0 };
            let place = directory.add(&room(&format!("r{number}")), &Arc::default(), false, member);
            directory.slice(place.slice).count(u64::from(number % 100) * 10);
        }
        let mut traffic = Traffic::default();
        let busy = pass(&mut traffic, &directory, 2_000);
        assert_eq!(busy.len(), limits::TOP_ROOMS);
        let sent: Vec<_> = busy.iter().map(|busy| (busy.per_second * 2.0).round()).collect();
        assert!(sent.is_sorted_by(|a, b| a >= b) && (960.0..=990.0).contains(&sent[0]), "{sent:?}");
        directory.slice(directory.find("r7").unwrap()).count(5);
        let busy = pass(&mut traffic, &directory, 4_000);
        assert_eq!(busy.iter().map(|busy| busy.room.as_str()).collect::<Vec<_>>(), ["r7"]);
    }

    #[test]
    fn shards_add_up() {
        let busy = |name, per_second| BusyRoom { room: room(name), connections: 1, per_second };
        let shards = [vec![busy("a", 5.0), busy("b", 4.0)], vec![busy("b", 3.0)]];
        let merged = merged(shards.into_iter());
        assert_eq!(merged[0], BusyRoom { room: room("b"), connections: 2, per_second: 7.0 });
        assert_eq!(merged[1], busy("a", 5.0));
    }
}
