//! TableForge: a self-hosted realtime room server.
//!
//! Clients join rooms over WebSocket; what one says reaches everyone in the room, on whichever instance
//! they are. Each core runs a *shard* that owns its connections and its slice of every room; shards
//! talk by bounded queues, instances by Redis.
//!
//! The stages, in the order in which a message passes them; a stage imports only stages before it:
//!
//! ```text
//! ring ─▶ accept ─▶ codec ─▶ command ─▶ room ─▶ send        (all of it owned by a) shard ─▶ uplink
//! bytes   upgrade   frames   meaning    members  outboxes                                    Redis
//! ```
//!
//! ARCHITECTURE.md has the glossary, the path of one message file by file, the invariants, and what is
//! deliberately absent.
pub mod accept;
pub mod admin;
pub mod authorization;
pub mod ban;
pub mod codec;
pub mod command;
pub mod config;
pub mod doctor;
pub mod hashing;
pub mod identity;
pub mod instance;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod permission;
pub mod preflight;
pub mod quota;
pub mod reload;
pub mod ring;
pub mod room;
pub mod send;
pub mod server;
pub mod shard;
pub mod steering;
pub mod systemd;
pub mod trace;
pub mod uplink;
#[cfg(test)]
mod world;
