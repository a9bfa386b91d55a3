//! A whole cluster on one thread: real shards, real uplink logic and bytes on all ways, in a world of its own.
//!
//! Three processes of four shards each, fifty clients that speak WebSocket and a Redis that understands what
//! the uplink says are moved forward in turns by a made-up clock. All chance, the faults among it, comes from
//! one seed, so a run can be repeated as it was. First things go wrong; then everything is put right, and
//! within [`checker::CURRENT_WITHIN_MS`] all must be well again. What the clients live through is judged by the
//! checker. Built for tests only.

mod client;
mod driver;
mod fault;
mod host;
mod ledger;
mod pipe;
mod random;
mod redis;
mod register;
mod sessions;
mod simulation;
mod uplink;

/// When the made-up clock began, in milliseconds since 1970.
const EPOCH_UNIX_MS: u64 = 1_790_000_000_000;
