//! Which shards of this instance have members of a room: one atomic word, read on the message path.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::identity::ShardId;

/// The shards that have members of one room. Shared by everyone who forwards the room's messages;
/// written only when a shard's first member comes or its last one goes.
#[derive(Debug, Default)]
pub struct RoomRoute {
    shards: AtomicU64,
}

impl RoomRoute {
    /// From now on `shard` receives the room's messages.
    pub fn add(&self, shard: ShardId) {
        self.shards.fetch_or(1 << shard.0, SeqCst);
    }

    /// `shard` has no member of the room any more.
    pub fn remove(&self, shard: ShardId) {
        self.shards.fetch_and(!(1 << shard.0), SeqCst);
    }

    /// The shards that have members now.
    pub fn shards(&self) -> ShardSet {
        ShardSet(self.shards.load(SeqCst))
    }
}

/// A set of shards; iterates in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardSet(u64);

impl ShardSet {
    /// Whether no shard is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `shard` is in the set.
    pub fn contains(self, shard: ShardId) -> bool {
        self.0 & (1 << shard.0) != 0
    }

    /// The set without `shard`.
    pub fn without(self, shard: ShardId) -> Self {
        Self(self.0 & !(1 << shard.0))
    }
}

impl FromIterator<ShardId> for ShardSet {
    fn from_iter<I: IntoIterator<Item = ShardId>>(shards: I) -> Self {
        Self(shards.into_iter().fold(0, |set, shard| set | 1 << shard.0))
    }
}

impl Iterator for ShardSet {
    type Item = ShardId;

    fn next(&mut self) -> Option<ShardId> {
        if self.0 == 0 {
            return None;
        }
        let shard = ShardId(self.0.trailing_zeros() as u8);
        self.0 &= self.0 - 1;
        Some(shard)
    }
}
