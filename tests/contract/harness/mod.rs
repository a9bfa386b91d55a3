//! What the contract tests stand on: real server and Redis processes, and clients over real sockets.

pub mod client;
pub mod file;
pub mod http;
pub mod process;
pub mod raw;
pub mod redis;
pub mod server;
pub mod token;
pub mod webdriver;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for something that must happen. Far above what a loaded machine needs: it
/// decides only how long a failing test takes.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A port of the loopback address that nobody listens on. Below the range from which the kernel takes
/// the ports of outgoing connections, and never the same twice in one run.
pub fn free_port() -> u16 {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(97) + DRAWN.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (number % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Asks until `answer` gives something; fails the test, saying `what` was awaited, after [`DEADLINE`].
/// For what sends no event: other processes' starts and ends, counters, pages.
#[track_caller]
pub fn eventually<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = answer() {
            return found;
        }
        assert!(Instant::now() < until, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes two tests of each function: with one shard, and with four.
macro_rules! with_one_shard_and_four {
    ($($name:ident),* $(,)?) => {
        mod one_shard {
            $(#[test] fn $name() { super::$name(1); })*
        }
        mod four_shards {
            $(#[test] fn $name() { super::$name(4); })*
        }
    };
}
