//! Which shard is home to a room or a user: a hash of the name, the same on every thread.

use std::hash::BuildHasher;

use crate::identity::ShardId;

/// The shard where the room's joins and leaves come together.
pub fn of_room(room: &str, shards: usize) -> ShardId {
    of(room, shards)
}

/// The shard that knows where the user's connections are.
pub fn of_user(user: &str, shards: usize) -> ShardId {
    of(user, shards)
}

fn of(name: &str, shards: usize) -> ShardId {
    let hash = foldhash::fast::FixedState::default().hash_one(name);
    ShardId((hash % shards as u64) as u8)
}
