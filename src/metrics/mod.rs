//! Counters, gauges and histograms: one cell per shard and thread, summed by whoever asks.
//!
//! A thread writes only its own cells, with plain loads and stores, so counting costs a few instructions and nothing
//! is locked. [`exposition`] sums them and writes the Prometheus text format.

pub mod cells;
pub mod exposition;
pub mod histogram;
pub mod kinds;
pub mod process;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use self::cells::{AuthorizationCells, ControlCells, PortCells, ShardCells, UplinkCells};
pub use self::exposition::exposition;
pub use self::process::memory;

/// A number that one thread writes and any thread reads. Writing is a plain load and store: there is
/// one writer per cell, so nothing is locked and nothing is lost.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `n`. Only the cell's owning thread may call it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Subtracts `n`. Only the cell's owning thread may call it.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Sets the value. Only the cell's owning thread may call it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
