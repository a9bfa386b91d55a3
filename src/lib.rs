//! TableForge: a self-hosted realtime room server.
pub mod codec;
pub mod command;
pub mod config;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod room;
pub mod shard;
pub mod uplink;
