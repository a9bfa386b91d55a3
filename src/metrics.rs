//! Counters and gauges: one cell per shard and thread, summed by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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

/// What the uplink counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct UplinkCells {
    /// Instances alive in the cluster, this one included.
    pub instances: Cell,
    /// 1 while the link to Redis is up.
    pub link_up: Cell,
    /// Times the link was lost.
    pub link_losses: Cell,
    /// Events handed to the publisher.
    pub published: Cell,
    /// Batches sent to Redis.
    pub batches_out: Cell,
    /// Bytes of those batches.
    pub batch_bytes_out: Cell,
    /// Events received from other instances.
    pub received: Cell,
    /// Batches received from other instances.
    pub batches_in: Cell,
    /// Plain JSON publications received from other programs.
    pub foreign_in: Cell,
    /// Payloads that were neither a batch nor JSON with `data`: dropped.
    pub garbage_in: Cell,
    /// Gaps noticed in another instance's sequence.
    pub gaps: Cell,
    /// Publications dropped because the publisher's queue or link could not take them.
    pub publications_dropped: Cell,
    /// Events dropped because a shard's queue was full.
    pub deliveries_dropped: Cell,
}
