//! TableForge: a self-hosted realtime room server.
pub mod accept;
pub mod command;
pub mod config;
pub mod identity;
pub mod instance;
pub mod limits;
pub mod metrics;
pub mod ring;
pub mod room;
pub mod send;
pub mod shard;
pub mod uplink;
