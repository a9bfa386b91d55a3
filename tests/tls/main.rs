//! TLS for clients and on the link to Redis, over real processes, with an authority made for each test.
//!
//! One test binary with the harness of the contract tests.

#[path = "../contract/harness/mod.rs"]
#[macro_use]
#[allow(dead_code, unused_macros, reason = "the harness has more than these tests need")]
mod harness;

mod application;
mod authority;
mod certificates;
mod connections;
mod proxied;
mod redis_link;
mod secured;
