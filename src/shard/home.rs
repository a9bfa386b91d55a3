//! Which shard is home to a room or a user: the one that decides about it and knows all its members.

use foldhash::fast::FixedState;
use std::hash::BuildHasher;

use crate::identity::ShardId;

/// Any fixed seeds do: all threads of one process must agree, other processes need not. Two seeds, so
/// that a user and a room of the same name do not land on the same shard by rule.
const ROOM_SEED: u64 = 0x7461_626c_6566_6f72;
const USER_SEED: u64 = 0x6765_7573_6572_7331;

/// The home of the room called `name` among `shards` shards.
///
/// # Panics
/// When `shards` is 0.
pub fn of_room(name: &str, shards: usize) -> ShardId {
    pick(ROOM_SEED, name, shards)
}

/// The home of the user called `name` among `shards` shards.
///
/// # Panics
/// When `shards` is 0.
pub fn of_user(name: &str, shards: usize) -> ShardId {
    pick(USER_SEED, name, shards)
}

fn pick(seed: u64, name: &str, shards: usize) -> ShardId {
    let hash = FixedState::with_seed(seed).hash_one(name);
    ShardId((hash % shards as u64) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_stable_and_spread_over_all_shards() {
        let mut counts = [0u32; 4];
        for n in 0..4_000 {
            let name = format!("table-{n}");
            let home = of_room(&name, 4);
            assert_eq!(home, of_room(&name, 4));
            counts[home.index()] += 1;
        }
        assert!(counts.iter().all(|&c| c > 800), "{counts:?}");
    }

    #[test]
    fn one_shard_is_home_to_all() {
        assert_eq!(of_user("alice", 1), ShardId(0));
    }
}
