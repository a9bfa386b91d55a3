//! TableForge: a self-hosted realtime room server.
pub mod catalog;
pub mod command;
pub mod config;
pub mod identity;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod permission;
pub mod preflight;
pub mod room;
pub mod server;
pub mod setting;
pub mod shard;
pub mod sources;
pub mod uplink;
