//! A cluster of real processes that things are done to, while the checker watches its clients.
//!
//! Three instances, a Redis with a replica, and clients on all instances that publish into rooms with history and
//! without, come and go, and resume. A script made of a seed kills, stops, starves and cuts off Redis, instances and
//! the network between them. Everything that the clients live through goes to the `checker` crate, which says at the
//! end, and as soon as it shows, whether a promise of docs/guarantees.md was broken.
//!
//! `loadtest soak` runs it; the tests of the server do too, and use its parts.

#![allow(clippy::missing_panics_doc, reason = "a soak that cannot go on ends with what it was doing")]

pub mod arguments;
mod client;
mod cluster;
mod control;
mod crowd;
pub mod fault;
mod finals;
mod http;
mod pending;
pub mod process;
pub mod proxy;
mod redis_node;
pub mod report;
mod run;
mod script;
mod socket;
mod tally;

pub use arguments::SoakArguments;
pub use report::Report;
pub use run::run;

/// Milliseconds since the run began.
type Ms = u64;
