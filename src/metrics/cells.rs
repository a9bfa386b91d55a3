//! What each thread counts.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::Cell;
use super::histogram::{Counts, Micros, Millis, Sizes};
use super::kinds::{Closes, Limit, Recoveries, Statuses};
use crate::steering::InstanceLoad;

/// What the uplink counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct UplinkCells {
    /// Instances alive in the cluster, this one included.
    pub instances: Cell,
    /// 1 while the link to Redis is up.
    pub link_up: Cell,
    /// 1 since Redis refused this instance for a reason that does not pass, until the link is up again.
    pub link_refused: Cell,
    /// Times the link was lost.
    pub link_losses: Cell,
    /// Events handed to the publisher.
    pub published: Cell,
    /// Batches sent to Redis.
    pub batches_out: Cell,
    /// Bytes of those batches.
    pub batch_bytes_out: Cell,
    /// Those among the batches that went over the instance's lane, to all other instances at once.
    pub lane_batches_out: Cell,
    /// Events received from other instances.
    pub received: Cell,
    /// Batches received from other instances.
    pub batches_in: Cell,
    /// Those among them that came over the sender's lane.
    pub lane_batches_in: Cell,
    /// Plain JSON publications received from other programs.
    pub foreign_in: Cell,
    /// Payloads that were neither a batch nor JSON with `data`: dropped.
    pub garbage_in: Cell,
    /// Gaps noticed in another instance's sequence.
    pub gaps: Cell,
    /// Batches that came after later ones of their sender, and were dropped.
    pub late_batches: Cell,
    /// Stored messages that were not heard and have been read from the history instead.
    pub filled: Cell,
    /// Publications dropped because the publisher's queue or link could not take them.
    pub publications_dropped: Cell,
    /// Events dropped because a shard's queue was full.
    pub deliveries_dropped: Cell,
    /// Whether the next heartbeat is due at once, because what it says has changed. Any thread may set it.
    pub announce: AtomicBool,
    /// What the other instances said of their load in their last heartbeats.
    pub others: ArcSwap<Vec<InstanceLoad>>,
    /// Publications that wait for the publisher now.
    pub publications_waiting: Cell,
    /// What shards have asked of the ingress and it has not taken yet.
    pub commands_waiting: Cell,
    /// Bytes that wait for the publisher's socket now.
    pub unwritten_bytes: Cell,
    /// Commands of the publisher that Redis has not answered yet.
    pub unanswered: Cell,
    /// Bytes of a batch that was published.
    pub batch_sizes: Sizes,
    /// Events in a batch that was published.
    pub batch_events: Counts,
    /// Messages stored with one command.
    pub store_messages: Counts,
    /// Microseconds until Redis answered a heartbeat, behind all that was sent before.
    pub reply_us: Micros,
    /// Milliseconds from an event's timestamp, taken where it was sent, to its arrival here: the first event of each
    /// batch. What is negative, because the clocks differ, counts as 0.
    pub delivery_ms: Millis,
    /// Batches whose first event was from the future: the clocks differ by more than the way took.
    pub from_the_future: Cell,
}

/// What the asking of the application counts. Several threads write, one at a time: under the lock of the cache.
#[derive(Debug, Default)]
pub struct AuthorizationCells {
    /// Questions answered from the cache.
    pub cached: Cell,
    /// Questions sent to the application.
    pub asked: Cell,
    /// Questions that got no usable answer in time.
    pub failures: Cell,
    /// Questions refused unasked, because the breaker was open or they had waited too long.
    pub refused: Cell,
    /// 1 while the breaker is open.
    pub breaker_open: Cell,
}

/// What the control thread counts.
#[derive(Debug, Default)]
pub struct ControlCells {
    /// Times that a shard was found to stand still.
    pub stalls: Cell,
    /// Administrative commands from Redis that were refused.
    pub refused: Cell,
    /// Times that settings were read again. Counted by the thread that waits for signals.
    pub reloads: Cell,
    /// Times that the settings from before stayed. Counted by the same thread.
    pub reload_failures: Cell,
    /// When the process started, in ms since 1970.
    pub started_unix_ms: Cell,
    /// Descriptors that were open at the last look.
    pub open_descriptors: Cell,
}

/// What the separate port counts. Several threads write, one at a time: under its lock.
#[derive(Debug, Default)]
pub struct PortCells {
    writing: Mutex<()>,
    /// Its answers.
    pub statuses: Statuses,
    /// Limits that were run into, by [`Limit`].
    pub limits: [Cell; Limit::ALL.len()],
}

impl PortCells {
    /// A complete HTTP response goes out.
    pub fn answered(&self, response: &str) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.statuses.count(response);
    }

    /// A limit was run into.
    pub fn reached(&self, limit: Limit) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.limits[limit as usize].add(1);
    }
}

/// What a shard counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardCells {
    /// WebSocket connections open now.
    pub connections: Cell,
    /// Rooms that the shard is home to now.
    pub rooms: Cell,
    /// Sockets accepted.
    pub accepts: Cell,
    /// Times that accepting failed, mostly for want of descriptors, and paused until the next tick.
    pub accept_pauses: Cell,
    /// Client messages received.
    pub messages_in: Cell,
    /// Bytes received from clients.
    pub bytes_in: Cell,
    /// Frames handed to connections: one per receiver.
    pub deliveries: Cell,
    /// Messages compressed: each at most once, whatever the number of its receivers.
    pub compressed: Cell,
    /// Bytes sent to clients.
    pub bytes_out: Cell,
    /// Send operations.
    pub sends: Cell,
    /// Flushes.
    pub flushes: Cell,
    /// Error replies sent.
    pub errors: Cell,
    /// Connections closed because their outbox was full or stood still.
    pub slow_closes: Cell,
    /// Connections that were closed because an overloaded shard could not read in time what they sent.
    pub unread_closes: Cell,
    /// Connections closed for a violation of RFC 6455.
    pub violations: Cell,
    /// Room frames dropped because another shard's queue was full; its members got `room_resync`.
    pub mesh_dropped: Cell,
    /// Requests refused because a limit was reached.
    pub limited: Cell,
    /// Messages to others refused because the shard had more of them than it can handle.
    pub shed: Cell,
    /// Connections refused because there were too many: of their user, from their address, or at once.
    pub refused_connections: Cell,
    /// TLS handshakes completed.
    pub tls_handshakes: Cell,
    /// Connections whose TLS failed, mostly in the handshake.
    pub tls_failures: Cell,
    /// Panics contained to one connection.
    pub panics: Cell,
    /// New clients that were sent to another instance, or refused because this one drains.
    pub steered: Cell,
    /// When the shard's last turn began, in ms since the process started.
    pub last_turn: Cell,
    /// Microseconds that the shard has worked, and not waited.
    pub busy_us: Cell,
    /// Messages of other shards that waited at the last tick.
    pub mesh_waiting: Cell,
    /// Messages of the uplink and the other threads that waited at the last tick.
    pub uplink_waiting: Cell,
    /// Control messages that did not fit into a queue to another shard and wait here, at the last tick.
    pub mesh_backlog: Cell,
    /// WebSocket connections that have ended.
    pub closes: Closes,
    /// Answers to requests that did not become a WebSocket.
    pub statuses: Statuses,
    /// Limits that were run into, by [`Limit`].
    pub limits: [Cell; Limit::ALL.len()],
    /// Joins that asked for what was missed.
    pub recoveries: Recoveries,
    /// Connections whose outbox was full.
    pub outboxes_full: Cell,
    /// Connections whose outbox was not read for too long.
    pub outboxes_stalled: Cell,
    /// Bytes that waited for such a connection and were dropped.
    pub outbox_dropped_bytes: Cell,
    /// Receivers on this shard of one room message.
    pub fan_out: Counts,
    /// Bytes of a flush.
    pub flush_bytes: Sizes,
    /// Connections of a flush.
    pub flush_connections: Counts,
    /// Microseconds from a client message's turn to the flush after it.
    pub receive_to_flush_us: Micros,
}

impl ShardCells {
    /// A limit was run into.
    pub fn reached(&self, limit: Limit) {
        self.limits[limit as usize].add(1);
    }
}
