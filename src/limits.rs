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

/// Header lines of a request: browsers send about 20, proxies add a few.
pub const REQUEST_HEADERS: usize = 64;

/// Bytes of a request head: what common proxies pass on.
pub const REQUEST_HEAD_BYTES: usize = 16 * 1024;

/// Bytes of a TLS record or handshake message that is not complete: the largest ClientHello that is read has
/// 64 KiB, and comes in records with headers.
pub const TLS_INCOMPLETE_BYTES: usize = 72 * 1024;
/// Bytes of a request's body beyond [`crate::config::Settings::max_message_bytes`]: the `messageId`, the braces, some
/// white space.
pub const REQUEST_BODY_SPARE_BYTES: usize = 1024;

/// Bytes of an administrator's reason: a close frame has room for 123, RFC 6455 section 5.5.
pub const REASON_BYTES: usize = 120;

/// Milliseconds that a ban lasts at most: ten years.
pub const BAN_MS: u64 = 10 * 365 * 86_400_000;

/// Users banned at the same time: their list is copied to every instance, a few MB.
pub const BANS: usize = 10_000;

/// Rooms in a list of the busiest ones, at most.
pub const LISTED_ROOMS: usize = 100;

/// Bytes of a display name (a token's `name`): it is repeated in every presence message.
pub const DISPLAY_NAME_BYTES: usize = 256;

/// Bytes of a token: real ones have 300 to 2,000; it must fit into a request head of 16 KiB.
pub const TOKEN_BYTES: usize = 8192;

/// Milliseconds before a token runs out at which its connection is told: enough to fetch a new one.
pub const EXPIRY_WARNING_MS: u64 = 30_000;

/// Bytes of an HMAC secret, at least: the output of HS256, RFC 7518 section 3.2.
pub const JWT_SECRET_BYTES: usize = 32;

/// Questions to the application that may wait for a thread: more than it could answer before they time out.
pub const AUTHORIZE_QUEUE: usize = 4096;

/// Answers of the application that are remembered: users who come back at once, at some 200 bytes each.
pub const AUTHORIZE_CACHE: usize = 50_000;

/// Failures in a row after which the application is left alone for a while.
pub const AUTHORIZE_FAILURES: u32 = 5;

/// Bytes of an answer of the application: a list of four words is far shorter.
pub const AUTHORIZE_ANSWER_BYTES: u64 = 16 * 1024;

/// Bytes of a file with keys: a JSON Web Key Set of hundreds of them is smaller.
pub const KEY_FILE_BYTES: u64 = 1 << 20;

/// Bytes of locked memory that the executor of a shard asks for (RLIMIT_MEMLOCK), at least.
pub const MEMLOCK_BYTES: u64 = 512 * 1024;

/// Bytes of frames that one room's history holds in this process: 1,000 messages of 16 KiB. It bounds what a room of
/// large messages costs; with small ones HISTORY_SIZE comes first.
pub const HISTORY_BYTES: usize = 16 << 20;

/// Milliseconds for which a `messageId` is remembered: long enough for any client to come back and try again.
pub const REPETITION_MS: u64 = 5 * 60 * 1000;

/// Message ids that are remembered per room: 200 messages per second for those five minutes, some 10 MB at most.
pub const REPETITIONS: usize = 60_000;

/// Rooms without a kept message, and so without anything but a position, that one shard remembers although nobody is in
/// them: some MB. Anyone may ask for the history of rooms with names that nobody else uses.
pub const EMPTY_ROOMS: usize = 10_000;

/// Rooms in one `resume`: more than a connection may be in by default, and what one reply can list.
pub const RESUME_ROOMS: usize = 1024;

/// Messages of one connection that wait for their ack at once: what a client pipelines within a round trip.
pub const AWAITED_ACKS: usize = 4096;

/// Rooms that one shard remembers having published in while the link to Redis was down: some 20 MB of names. In further rooms
/// nothing is published until it is back.
pub const ROOMS_ALONE: usize = 131_072;

/// Questions of one shard's clients that wait for the homes of rooms: what they ask within some milliseconds.
pub const OPEN_QUESTIONS: usize = 4096;

/// Bytes of a correlation id (`X-Request-Id`): a UUID and a prefix. It is repeated in log lines and spans.
pub const REQUEST_ID_BYTES: usize = 64;

/// Rooms in the list of those with the most traffic in `/stats`.
pub const TOP_ROOMS: usize = 10;

/// The oldest Linux: DEFER_TASKRUN came with 6.1, multishot receive with 6.0.
pub const KERNEL: (u32, u32) = (6, 1);

/// Descriptors that a process uses besides one per connection: listeners, rings, eventfds, Redis, log.
pub const SPARE_DESCRIPTORS: u64 = 64 + 16 * SHARDS as u64;

const _: () = assert!(SHARDS <= u64::BITS as usize, "a set of shards is one u64");
const _: () = assert!(USER_ID_BYTES + DISPLAY_NAME_BYTES < TOKEN_BYTES, "a token holds both names");
