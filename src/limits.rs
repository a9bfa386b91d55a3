//! Every bound that is not a setting, with its unit and its reason.

/// Bytes of a `roomId`: long enough for a prefix and two UUIDs, short enough for a Redis channel name.
pub const ROOM_ID_BYTES: usize = 128;

/// Bytes of a user id (`sub`): covers e-mail addresses (254) and every common identity provider's ids.
pub const USER_ID_BYTES: usize = 256;

/// Fragments of one client message: what no client needs, and few enough that empty ones cost nothing.
pub const MESSAGE_FRAGMENTS: u32 = 1024;

/// Bytes of a `messageId`: a UUID and a prefix; it is kept for as long as the message can be repeated.
pub const MESSAGE_ID_BYTES: usize = 64;

/// Bytes of the `epoch` that a client gives back: what this server hands out is shorter.
pub const EPOCH_BYTES: usize = 64;

/// Levels of nesting in a message's JSON, the message itself being the first.
pub const JSON_DEPTH: usize = 32;

/// Shards of one instance: a room's set of shards is one 64-bit word.
pub const SHARDS: usize = 64;
