//! The ring's table of client sockets, and what is in flight on each.

use std::os::fd::OwnedFd;

use super::send_batch::SendBatch;

/// Names a connection of one ring: a slot, and how often the slot had been used before (24 bits,
/// then from 0 again).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Index into tables with one entry per connection.
    pub slot: u32,
    /// Tells this connection from earlier ones of the slot.
    pub generation: u32,
}

pub(super) const GENERATIONS: u32 = 1 << 24;

/// One slot: 24 bytes, all that an idle connection costs in this table.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) socket: Option<OwnedFd>,
    pub(super) generation: u32,
    /// A multishot receive is in flight.
    pub(super) receiving: bool,
    /// The receive has brought bytes since it was submitted.
    pub(super) fed: bool,
    /// [`super::Ring::stop_receiving`] was called.
    pub(super) deaf: bool,
    /// The receive ended for want of buffers and is to be submitted again.
    pub(super) starved: bool,
    /// [`super::Ring::close`] was called: no completion is reported but the last, `Closed`.
    pub(super) closing: bool,
    /// The batch that is being sent.
    pub(super) sending: Option<Box<SendBatch>>,
}

/// All slots.
#[derive(Default)]
pub(super) struct Connections {
    slots: Vec<Connection>,
    free: Vec<u32>,
}

impl Connections {
    /// Gives the socket a slot.
    pub(super) fn insert(&mut self, socket: OwnedFd) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Connection::default());
            (self.slots.len() - 1) as u32
        });
        let connection = &mut self.slots[slot as usize];
        connection.socket = Some(socket);
        Key { slot, generation: connection.generation }
    }

    /// The connection, unless it has gone.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Connection> {
        let connection = self.slots.get_mut(key.slot as usize)?;
        (connection.generation == key.generation && connection.socket.is_some()).then_some(connection)
    }

    /// The connection, unless it has gone.
    pub(super) fn get(&self, key: Key) -> Option<&Connection> {
        let connection = self.slots.get(key.slot as usize)?;
        (connection.generation == key.generation && connection.socket.is_some()).then_some(connection)
    }

    /// The connection that has the slot now.
    pub(super) fn key(&self, slot: u32) -> Option<Key> {
        let connection = self.slots.get(slot as usize)?;
        connection.socket.is_some().then_some(Key { slot, generation: connection.generation })
    }

    /// Closes the socket and frees the slot if nothing is in flight on a closing connection.
    pub(super) fn release_if_done(&mut self, key: Key) -> bool {
        let Some(connection) = self.get_mut(key) else { return false };
        if !connection.closing || connection.receiving || connection.sending.is_some() {
            return false;
        }
        let generation = (connection.generation + 1) % GENERATIONS;
        *connection = Connection { generation, ..Connection::default() };
        self.free.push(key.slot);
        true
    }

    /// Every connection that has a socket.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.slots.iter_mut().filter(|connection| connection.socket.is_some())
    }
}
