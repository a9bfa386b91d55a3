//! Hostile peers over raw sockets: each gets the documented answer, and harms nobody else.
//!
//! One test binary with the harness of the contract tests. Each module is one kind of hostility.

#[path = "../contract/harness/mod.rs"]
#[macro_use]
#[allow(dead_code, unused_macros, reason = "the harness has more than these tests need")]
mod harness;

mod arena;
mod closing;
mod exhaustion;
mod flood;
mod frames;
mod injection;
mod limits;
mod messages;
mod pair;
mod pipelining;
mod tokens;
mod upgrade;
