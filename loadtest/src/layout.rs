//! Which connection sits in which room, and on which server.

use std::ops::Range;

/// Members of a room up to which the others are told of joins and leaves one by one (`PRESENCE_MAX_MEMBERS`).
pub const PRESENCE_MEMBERS: usize = 200;

/// Connections are numbered; rooms are filled with consecutive ones, servers taken in turn. So a
/// room has members on every server, as far as it has that many members. All rooms' first members speak behind each
/// other; each room begins with another server, so that no server is the only one to speak for a while.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Connections in all.
    pub connections: usize,
    /// Members of a room; the last room may have fewer.
    pub room_size: usize,
    /// Server addresses.
    pub servers: usize,
    /// The last so many places of every room are those of members that come and go.
    pub transients: usize,
}

impl Layout {
    /// How many rooms there are.
    pub fn rooms(&self) -> usize {
        self.connections.div_ceil(self.room_size)
    }

    /// The room of a connection.
    pub fn room_of(&self, connection: usize) -> usize {
        connection / self.room_size
    }

    /// The connections of a room.
    pub fn members(&self, room: usize) -> Range<usize> {
        let first = room * self.room_size;
        first..(first + self.room_size).min(self.connections)
    }

    /// The place of a connection within its room.
    pub fn position(&self, connection: usize) -> usize {
        connection % self.room_size
    }

    /// Whether a connection stays for the whole run.
    pub fn is_stable(&self, connection: usize) -> bool {
        self.transients == 0 || self.position(connection) + self.transients < self.room_size
    }

    /// The server of a connection.
    pub fn server_of(&self, connection: usize) -> usize {
        (self.position(connection) + self.room_of(connection)) % self.servers
    }

    /// The part of the connections that worker number `worker` of `workers` drives.
    pub fn share(&self, worker: usize, workers: usize) -> Range<usize> {
        self.connections * worker / workers..self.connections * (worker + 1) / workers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_room_has_members_on_every_server() {
        let layout = Layout { connections: 103, room_size: 10, servers: 3, transients: 0 };
        assert_eq!(layout.rooms(), 11);
        for room in 0..layout.rooms() {
            let members = layout.members(room);
            assert!(members.clone().all(|member| layout.room_of(member) == room));
            let servers: std::collections::HashSet<usize> = members.map(|m| layout.server_of(m)).collect();
            assert_eq!(servers.len(), 3, "room {room}");
        }
        assert_eq!(layout.members(10), 100..103);
    }

    #[test]
    fn every_place_is_on_all_servers_and_all_servers_have_as_many_connections() {
        for (room_size, servers) in [(10, 2), (10, 3), (10, 4), (2, 4), (12, 4), (5, 1)] {
            let layout = Layout { connections: 120, room_size, servers, transients: 0 };
            for place in 0..room_size {
                let of_place = (0..120).filter(|connection| layout.position(*connection) == place);
                let seen: std::collections::HashSet<usize> =
                    of_place.map(|one| layout.server_of(one)).collect();
                assert_eq!(seen.len(), servers, "place {place} of {room_size} on {servers}");
            }
            let first = (0..120).filter(|connection| layout.server_of(*connection) == 0).count();
            assert_eq!(first, 120 / servers, "rooms of {room_size} on {servers}");
        }
    }

    #[test]
    fn the_last_places_of_a_room_are_those_that_come_and_go() {
        let layout = Layout { connections: 13, room_size: 5, servers: 1, transients: 2 };
        let stable: Vec<usize> = (0..13).filter(|connection| layout.is_stable(*connection)).collect();
        assert_eq!(stable, [0, 1, 2, 5, 6, 7, 10, 11, 12]);
    }

    #[test]
    fn shares_cover_all_connections_once() {
        let layout = Layout { connections: 101, room_size: 10, servers: 1, transients: 0 };
        let all: Vec<usize> = (0..4).flat_map(|worker| layout.share(worker, 4)).collect();
        assert_eq!(all, (0..101).collect::<Vec<_>>());
    }
}
