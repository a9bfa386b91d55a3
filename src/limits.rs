//! Every bound that is not a setting, with its unit and its reason.

/// Bytes of a `roomId`: long enough for a prefix and two UUIDs, short enough for a Redis channel name.
pub const ROOM_ID_BYTES: usize = 128;

/// Bytes of a user id (`sub`): covers e-mail addresses (254) and every common identity provider's ids.
pub const USER_ID_BYTES: usize = 256;

/// Shards of one instance: a room's set of shards is one 64-bit word.
pub const SHARDS: usize = 64;

/// Header lines of a request: browsers send about 20, proxies add a few.
pub const REQUEST_HEADERS: usize = 64;

/// Bytes of a request head: what common proxies pass on.
pub const REQUEST_HEAD_BYTES: usize = 16 * 1024;
