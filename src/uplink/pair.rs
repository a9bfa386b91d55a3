//! What the uplink's two threads know of each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::ingress::PublisherLink;

/// What the two threads know of each other's connections. Neither is of use alone: without the ingress
/// the shards count the link as down, without the publisher other instances miss messages. So when one
/// loses its connection, the other one drops its own, and the shards hear of one loss and one return.
#[derive(Debug, Default)]
pub struct Pair {
    publisher_up: AtomicBool,
    publisher_losses: AtomicU64,
    wanted: AtomicU64,
    /// The value of `wanted` that the publisher's present connection answers to.
    served: AtomicU64,
    published_all: AtomicBool,
}

impl Pair {
    /// The publisher's connection is up and was made after `wanted` had this value.
    pub fn publisher_up(&self, wanted: u64) {
        self.served.store(wanted, SeqCst);
        self.publisher_up.store(true, SeqCst);
    }

    /// The publisher's connection was lost, if there was one.
    pub fn publisher_lost(&self) {
        if self.publisher_up.swap(false, SeqCst) {
            self.publisher_losses.fetch_add(1, SeqCst);
        }
    }

    /// The ingress has lost its connection: the publisher is to make a new one too.
    pub fn ingress_lost(&self) {
        self.wanted.fetch_add(1, SeqCst);
    }

    /// Rises whenever the publisher is to make a new connection.
    pub fn wanted(&self) -> u64 {
        self.wanted.load(SeqCst)
    }

    /// The publisher has sent its last.
    pub fn publisher_ended(&self) {
        self.published_all.store(true, SeqCst);
    }

    /// Whether the publisher has sent its last, so that the instance need not be registered any more.
    pub fn has_published_all(&self) -> bool {
        self.published_all.load(SeqCst)
    }

    /// The publisher's connection, as the ingress needs to know it.
    pub fn publisher(&self) -> PublisherLink {
        let losses = self.publisher_losses.load(SeqCst);
        let current = self.served.load(SeqCst) == self.wanted.load(SeqCst);
        PublisherLink { losses, up: current && self.publisher_up.load(SeqCst) }
    }
}
