//! Every bound that is not a setting, with its unit and its reason.

/// Bytes of a `roomId`: long enough for a prefix and two UUIDs, short enough for a Redis channel name.
pub const ROOM_ID_BYTES: usize = 128;

/// Bytes of a user id (`sub`): covers e-mail addresses (254) and every common identity provider's ids.
pub const USER_ID_BYTES: usize = 256;

/// Fragments of one client message: what no client needs, and few enough that empty ones cost nothing.
pub const MESSAGE_FRAGMENTS: u32 = 1024;

/// Bytes of payload from which a message to many is compressed for those who take it so: below, it saves
/// no packet and costs more than it saves.
pub const COMPRESS_FROM_BYTES: usize = 512;

/// Bytes of a `messageId`: a UUID and a prefix; it is kept for as long as the message can be repeated.
pub const MESSAGE_ID_BYTES: usize = 64;

/// Bytes of the `epoch` that a client gives back: what this server hands out is shorter.
pub const EPOCH_BYTES: usize = 64;

/// Levels of nesting in a message's JSON, the message itself being the first.
pub const JSON_DEPTH: usize = 32;

/// Shards of one instance: a room's set of shards is one 64-bit word.
pub const SHARDS: usize = 64;

/// Header lines of a request: browsers send about 20, proxies add a few.
pub const REQUEST_HEADERS: usize = 64;

/// Bytes of a request head: what common proxies pass on.
pub const REQUEST_HEAD_BYTES: usize = 16 * 1024;

/// Handshakes under way on one shard: as many as the listener's backlog, which one turn may accept.
pub const HALF_OPEN_HANDSHAKES: usize = 4096;

/// Bytes of a display name (a token's `name`): it is repeated in every presence message.
pub const DISPLAY_NAME_BYTES: usize = 256;

/// Bytes of a token: real ones have 300 to 2,000; it must fit into a request head of 16 KiB.
pub const TOKEN_BYTES: usize = 8192;

/// Bytes of an HMAC secret, at least: the output of HS256, RFC 7518 section 3.2.
pub const JWT_SECRET_BYTES: usize = 32;

/// Bytes of locked memory that the executor of a shard asks for (RLIMIT_MEMLOCK), at least.
pub const MEMLOCK_BYTES: u64 = 512 * 1024;

/// Bytes of frames that one room's history holds in this process: 1,000 messages of 16 KiB. It bounds what a room of
/// large messages costs; with small ones HISTORY_SIZE comes first.
pub const HISTORY_BYTES: usize = 16 << 20;

/// Milliseconds for which a `messageId` is remembered: long enough for any client to come back and try again.
pub const REPETITION_MS: u64 = 5 * 60 * 1000;

/// Message ids that are remembered per room: 200 messages per second for those five minutes, some 10 MB at most.
pub const REPETITIONS: usize = 60_000;

/// The oldest Linux: DEFER_TASKRUN came with 6.1, multishot receive with 6.0.
pub const KERNEL: (u32, u32) = (6, 1);

/// Descriptors that a process uses besides one per connection: listeners, rings, eventfds, Redis, log.
pub const SPARE_DESCRIPTORS: u64 = 64 + 16 * SHARDS as u64;

const _: () = assert!(SHARDS <= u64::BITS as usize, "a set of shards is one u64");
const _: () = assert!(USER_ID_BYTES + DISPLAY_NAME_BYTES < TOKEN_BYTES, "a token holds both names");
