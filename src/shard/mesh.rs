//! The way to the other shards of this instance, and to this one.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::envelope::Envelope;
use super::outlet::Outlet;
use crate::hashing::Hashing;
use crate::identity::{RoomId, ShardId};
use crate::room::history::Position;

/// Rooms per peer whose members are told to resync one by one; above it, all rooms are.
const LOSSY_ROOMS: usize = 1024;

/// Control messages that may wait for one peer before joins that would add to them are refused.
pub const BACKLOG: usize = 100_000;

#[derive(Debug)]
struct Peer {
    outlet: Outlet<Envelope>,
    /// Where each stood when a frame of it was dropped last, if it has a history.
    lossy: HashMap<RoomId, Option<Position>, Hashing>,
    all_lossy: bool,
}

/// One bounded queue to each other shard. What a shard says to itself goes through the same code and
/// is handled in the same turn.
#[derive(Debug)]
pub struct Mesh {
    me: ShardId,
    peers: Vec<Option<Peer>>,
    local: VecDeque<Envelope>,
}

impl Mesh {
    /// A mesh for shard `me`; `outlets` has one entry per shard, `None` for itself.
    pub fn new(me: ShardId, outlets: Vec<Option<Outlet<Envelope>>>) -> Self {
        let peer = |outlet| Peer { outlet, lossy: HashMap::default(), all_lossy: false };
        Self {
            me,
            peers: outlets.into_iter().map(|outlet| outlet.map(peer)).collect(),
            local: VecDeque::new(),
        }
    }

    /// How many shards the instance has.
    pub fn shards(&self) -> usize {
        self.peers.len()
    }

    /// All other shards.
    pub fn others(&self) -> impl Iterator<Item = ShardId> + use<> {
        let me = self.me;
        (0..self.peers.len() as u8).map(ShardId).filter(move |shard| *shard != me)
    }

    /// Sends a control message: in order, never lost.
    pub fn send(&mut self, to: ShardId, envelope: Envelope) {
        match &mut self.peers[to.index()] {
            Some(peer) => peer.outlet.send(envelope),
            None => self.local.push_back(envelope),
        }
    }

    /// Sends a message that may be dropped when the peer cannot keep up. Returns whether it was taken.
    pub fn offer(&mut self, to: ShardId, envelope: Envelope) -> bool {
        match &mut self.peers[to.index()] {
            Some(peer) => peer.outlet.offer(envelope).is_ok(),
            None => {
                self.local.push_back(envelope);
                true
            }
        }
    }

    /// A frame of the room was dropped on the way to `to`: its members there are told as soon as the
    /// queue has room, with `position` as where the room goes on from.
    pub fn lost(&mut self, to: ShardId, room: &RoomId, position: Option<Position>) {
        let Some(peer) = &mut self.peers[to.index()] else { return };
        if peer.lossy.len() < LOSSY_ROOMS || peer.lossy.contains_key(room) {
            peer.lossy.insert(room.clone(), position);
        } else {
            peer.all_lossy = true;
        }
    }

    /// Whether a frame of the room was dropped on the way to `to`, and its members there have not been told.
    pub fn is_lossy(&self, to: ShardId, room: &RoomId) -> bool {
        let peer = self.peers[to.index()].as_ref();
        peer.is_some_and(|peer| !peer.lossy.is_empty() && peer.lossy.contains_key(room))
    }

    /// Whether a peer is so far behind that new control traffic should be refused.
    pub fn is_congested(&self, to: ShardId) -> bool {
        self.peers[to.index()].as_ref().is_some_and(|peer| peer.outlet.backlog() > BACKLOG)
    }

    /// Control messages that wait for room in the queues to the other shards.
    pub fn backlog(&self) -> usize {
        self.peers.iter().flatten().map(|peer| peer.outlet.backlog()).sum()
    }

    /// The next message of this shard to itself.
    pub fn next_local(&mut self) -> Option<Envelope> {
        self.local.pop_front()
    }

    /// Ends the turn: moves what waits, tells of losses, wakes the peers that got something.
    pub fn flush(&mut self) {
        const REASON: &str = "overload";
        for peer in self.peers.iter_mut().flatten() {
            if peer.all_lossy
                && peer
                    .outlet
                    .offer(Envelope::RoomResync { room: None, reason: REASON, position: None })
                    .is_ok()
            {
                peer.all_lossy = false;
                peer.lossy.clear();
            }
            if !peer.lossy.is_empty() {
                let outlet = &mut peer.outlet;
                peer.lossy.retain(|room, position| {
                    let (room, position) = (Some(room.clone()), *position);
                    outlet.offer(Envelope::RoomResync { room, reason: REASON, position }).is_err()
                });
            }
            peer.outlet.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::history::Epoch;
    use crate::shard::outlet::Waker;

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    #[test]
    fn a_dropped_frame_is_followed_by_a_resync_once_there_is_room() {
        let (outlet, inbox) = Outlet::new(1, Waker::new().unwrap());
        let mut mesh = Mesh::new(ShardId(0), vec![None, Some(outlet)]);
        let frame = || Envelope::RoomFrame { room: room("r"), sender: None, frame: bytes::Bytes::new() };
        assert!(mesh.offer(ShardId(1), frame()));
        assert!(!mesh.offer(ShardId(1), frame()));
        let position = Some(Position { epoch: Epoch(1), offset: 7 });
        mesh.lost(ShardId(1), &room("r"), position);
        assert!(mesh.is_lossy(ShardId(1), &room("r")) && !mesh.is_lossy(ShardId(1), &room("q")));
        mesh.flush();
        assert!(matches!(inbox.try_recv(), Ok(Envelope::RoomFrame { .. })));
        assert!(inbox.try_recv().is_err());
        mesh.flush();
        assert!(
            matches!(inbox.try_recv(), Ok(Envelope::RoomResync { room: Some(lossy), position: told, .. })
                if lossy == room("r") && told == position)
        );
        assert!(!mesh.is_lossy(ShardId(1), &room("r")));
        mesh.flush();
        assert!(inbox.try_recv().is_err(), "told once");
    }

    #[test]
    fn control_messages_wait_in_order_and_nothing_overtakes_them() {
        let (outlet, inbox) = Outlet::new(1, Waker::new().unwrap());
        let mut mesh = Mesh::new(ShardId(0), vec![None, Some(outlet)]);
        let resync = |name| Envelope::RoomResync { room: Some(room(name)), reason: "test", position: None };
        mesh.send(ShardId(1), resync("a"));
        mesh.send(ShardId(1), resync("b"));
        let mut heard = Vec::new();
        while let Ok(Envelope::RoomResync { room: Some(room), .. }) = inbox.try_recv() {
            heard.push(room);
            assert!(heard.len() > 1 || !mesh.offer(ShardId(1), resync("c")), "b is still waiting");
            mesh.flush();
        }
        assert_eq!(heard, [room("a"), room("b")]);
    }
}
