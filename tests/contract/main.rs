//! The contracts of docs/ over real processes and sockets: clients, HTTP, shards, Redis, a browser.
//!
//! One test binary, so that the harness is compiled and linked once. Each module is one subject; a
//! test's name says what holds.

#[macro_use]
mod harness;

mod api;
mod authorization;
mod browser;
mod cluster;
mod drain;
mod http_interface;
mod observability;
mod overload;
mod process;
mod protocol;
mod proxies;
mod reload;
mod restart;
mod spread;
mod steering;
mod systemd;
mod websocket;
