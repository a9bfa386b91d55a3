//! This instance and the others: Redis between them.
pub mod batch;
pub mod channel;
pub mod delivery;
pub mod foreign;
pub mod frame;
pub mod link;
pub mod presence;
pub mod publisher;
pub mod registry;
pub mod script_queue;
pub mod wire;
