//! Who and where: the names of rooms, users, instances, shards and connections.

use arcstr::ArcStr;
use std::fmt;

use crate::limits;

/// A room's name: 1 to 128 bytes of `A-Z a-z 0-9 _ . : -`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(ArcStr);

impl RoomId {
    /// Takes `name` if it is a valid room name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::is_valid(name).then(|| Self(name.into()))
    }

    /// Whether `name` has an allowed length and only allowed characters.
    pub fn is_valid(name: &str) -> bool {
        (1..=limits::ROOM_ID_BYTES).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-'))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lets a map keyed by [`RoomId`] be asked with a plain `&str`.
impl std::borrow::Borrow<str> for RoomId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user's name: a token's `sub`, or made up by the server for an anonymous user.
/// May hold any characters; 1 to 256 bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(ArcStr);

impl UserId {
    /// Takes `name` if its length is allowed.
    pub fn parse(name: &str) -> Option<Self> {
        (1..=limits::USER_ID_BYTES).contains(&name.len()).then(|| Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lets a map keyed by [`UserId`] be asked with a plain `&str`.
impl std::borrow::Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of one TableForge process in its cluster; the same rules as a room's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(ArcStr);

impl InstanceId {
    /// Takes `name` if it is valid (see [`RoomId::is_valid`]).
    pub fn parse(name: &str) -> Option<Self> {
        RoomId::is_valid(name).then(|| Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a shard within its instance, from 0; below [`limits::SHARDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u8);

impl ShardId {
    /// The shard's place in a list of all shards.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// One connection of this instance. A slot is used again after its connection has gone; the
/// generation tells the two apart, so a late message never reaches a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// The shard that owns the connection.
    pub shard: ShardId,
    /// The connection's place in the shard's tables.
    pub slot: u32,
    /// How often the slot had been used before.
    pub generation: u32,
}

/// What clients see as `socketId`: a connection, made unique across instances and restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// Random number that this process drew at its start.
    pub boot: u32,
    /// The connection within the process.
    pub connection: ConnectionId,
}

impl SocketId {
    /// The id as text: 22 hexadecimal digits, without `fmt`, because every message carries one.
    pub fn text(&self) -> SocketText {
        let ConnectionId { shard, slot, generation } = self.connection;
        let mut digits = [0; SocketText::BYTES];
        put_hex(&mut digits[..8], self.boot);
        put_hex(&mut digits[8..10], u32::from(shard.0));
        put_hex(&mut digits[10..16], slot);
        put_hex(&mut digits[16..], generation);
        SocketText(digits)
    }
}

/// The lowest digits of `value`, as many as fit.
fn put_hex(digits: &mut [u8], mut value: u32) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 0xf) as usize];
        value >>= 4;
    }
}

/// The text of a [`SocketId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketText([u8; Self::BYTES]);

impl SocketText {
    const BYTES: usize = 22;

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_id_shows_boot_shard_slot_and_generation() {
        let connection = ConnectionId { shard: ShardId(0x3f), slot: 0xabc, generation: 0xff_ffff };
        let id = SocketId { boot: 0x12, connection };
        assert_eq!(id.text().as_str(), "000000123f000abcffffff");
        assert_eq!(id.to_string(), id.text().as_str());
    }
}
