//! Administration of the whole cluster: commands between instances, bans, the watch over shards, the separate port
//! and the command line.
//!
//! One thread per process, the control thread, carries out what concerns more than one shard. It asks its shards, asks
//! the other instances over a Redis connection of its own, and puts the answers together.

pub mod client;
pub mod command_line;
pub mod control;
pub mod driver;
pub mod encoding;
pub mod port;
pub mod remote;
pub mod report;
pub mod signing;
pub mod unsaved;
