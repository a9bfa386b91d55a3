//! Counters and gauges: one cell per shard and thread, summed by whoever asks.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::instance::Instance;

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
    /// Stored messages that were not heard and have been read from the history instead.
    pub filled: Cell,
    /// Publications dropped because the publisher's queue or link could not take them.
    pub publications_dropped: Cell,
    /// Events dropped because a shard's queue was full.
    pub deliveries_dropped: Cell,
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
    /// When the shard's last turn began, in ms since the process started.
    pub last_turn: Cell,
}

/// Resident bytes of this process, and bytes of memory the machine has; 0 where /proc does not tell.
pub fn memory() -> (u64, u64) {
    let page = rustix::param::page_size() as u64;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    (resident * page, total * 1024)
}

/// The Prometheus text format, version 0.0.4. `uptime` in seconds.
pub fn exposition(instance: &Instance, uptime: u64) -> String {
    let mut text = Exposition { text: String::with_capacity(8192), instance: instance.id.as_str() };
    let sum = |cell: fn(&ShardCells) -> &Cell| -> u64 {
        instance.shards.iter().map(|cells| cell(cells).get()).sum()
    };
    text.gauge("websocket_connections_total", "WebSocket connections open now.", instance.connections());
    text.gauge("websocket_rooms_total", "Rooms with members on this instance now.", instance.rooms());
    traffic_exposition(&mut text, sum);
    text.counter(
        "websocket_accept_pauses_total",
        "Times that accepting failed and paused.",
        sum(|cells| &cells.accept_pauses),
    );
    text.counter(
        "websocket_received_bytes_total",
        "Bytes received from clients.",
        sum(|cells| &cells.bytes_in),
    );
    text.counter("websocket_sent_bytes_total", "Bytes sent to clients.", sum(|cells| &cells.bytes_out));
    text.counter("websocket_sends_total", "Send operations.", sum(|cells| &cells.sends));
    text.counter("websocket_flushes_total", "Flushes of dirty connections.", sum(|cells| &cells.flushes));
    text.counter("websocket_errors_total", "Error replies.", sum(|cells| &cells.errors));
    text.counter("websocket_limited_total", "Requests over a limit.", sum(|cells| &cells.limited));
    text.counter(
        "websocket_shed_total",
        "Messages to others refused because a shard was overloaded.",
        sum(|cells| &cells.shed),
    );
    text.counter(
        "websocket_connections_refused_total",
        "Connections refused as too many of a user, from an address, or at once.",
        sum(|cells| &cells.refused_connections),
    );
    text.counter(
        "websocket_slow_closes_total",
        "Connections closed as too slow.",
        sum(|cells| &cells.slow_closes),
    );
    text.counter(
        "websocket_violations_total",
        "Connections closed for violating RFC 6455.",
        sum(|cells| &cells.violations),
    );
    text.counter(
        "mesh_dropped_total",
        "Room frames dropped between shards; members were told to resync.",
        sum(|cells| &cells.mesh_dropped),
    );
    text.counter("tls_handshakes_total", "TLS handshakes completed.", sum(|cells| &cells.tls_handshakes));
    text.counter(
        "tls_failures_total",
        "Connections whose TLS failed, mostly in the handshake.",
        sum(|cells| &cells.tls_failures),
    );
    text.counter("panics_total", "Panics contained to one connection.", sum(|cells| &cells.panics));
    control_exposition(&mut text, &instance.control);
    text.gauge("instances", "Instances of the cluster, this one included.", instance.instances());
    text.gauge("uptime_seconds", "Seconds since the start.", uptime);
    text.gauge("resident_memory_bytes", "Resident memory of the process.", memory().0);
    if let Some(cells) = &instance.uplink {
        uplink_exposition(&mut text, cells);
    }
    if let Some(cells) = &instance.authorization {
        authorization_exposition(&mut text, cells);
    }
    text.text
}

/// What went in and out.
fn traffic_exposition(text: &mut Exposition<'_>, sum: impl Fn(fn(&ShardCells) -> &Cell) -> u64) {
    text.counter(
        "websocket_messages_sent_total",
        "Frames handed to connections, one per receiver.",
        sum(|cells| &cells.deliveries),
    );
    text.counter(
        "websocket_messages_received_total",
        "Client messages received.",
        sum(|cells| &cells.messages_in),
    );
    text.counter(
        "websocket_messages_compressed_total",
        "Messages compressed, once per shard for all receivers.",
        sum(|cells| &cells.compressed),
    );
    text.counter("websocket_accepts_total", "Sockets accepted.", sum(|cells| &cells.accepts));
}

fn control_exposition(text: &mut Exposition<'_>, cells: &ControlCells) {
    text.counter(
        "shard_stalls_total",
        "Times that a shard stood still for STALL_THRESHOLD.",
        cells.stalls.get(),
    );
    text.counter(
        "admin_commands_refused_total",
        "Administrative commands from Redis whose signature, time or form was wrong.",
        cells.refused.get(),
    );
}

fn uplink_exposition(text: &mut Exposition<'_>, cells: &UplinkCells) {
    text.gauge("redis_link_up", "Whether the link to Redis is up.", cells.link_up.get());
    text.counter("redis_link_losses_total", "Times the link was lost.", cells.link_losses.get());
    text.counter("redis_published_total", "Events published to other instances.", cells.published.get());
    text.counter("redis_batches_sent_total", "Batches published.", cells.batches_out.get());
    text.counter("redis_batch_sent_bytes_total", "Bytes of batches published.", cells.batch_bytes_out.get());
    text.counter("redis_received_total", "Events received from other instances.", cells.received.get());
    text.counter("redis_batches_received_total", "Batches received.", cells.batches_in.get());
    text.counter("redis_foreign_total", "Plain JSON publications of other programs.", cells.foreign_in.get());
    text.counter("redis_garbage_total", "Payloads that were neither batch nor JSON.", cells.garbage_in.get());
    text.counter("redis_gaps_total", "Gaps noticed in other instances' sequences.", cells.gaps.get());
    text.counter("redis_filled_total", "Stored messages read after a gap.", cells.filled.get());
    text.counter(
        "redis_publications_dropped_total",
        "Events that could not be published.",
        cells.publications_dropped.get(),
    );
    text.counter(
        "redis_deliveries_dropped_total",
        "Events that a shard's queue could not take.",
        cells.deliveries_dropped.get(),
    );
}

fn authorization_exposition(text: &mut Exposition<'_>, cells: &AuthorizationCells) {
    text.counter("authorize_cached_total", "Joins decided from the cache of answers.", cells.cached.get());
    text.counter("authorize_asked_total", "Questions sent to AUTHORIZE_URL.", cells.asked.get());
    text.counter("authorize_failures_total", "Questions without a usable answer.", cells.failures.get());
    text.counter("authorize_refused_total", "Questions not sent while it failed.", cells.refused.get());
    text.gauge("authorize_breaker_open", "Whether AUTHORIZE_URL is left alone.", cells.breaker_open.get());
}

struct Exposition<'a> {
    text: String,
    instance: &'a str,
}

impl Exposition<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.sample(name, help, "gauge", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.sample(name, help, "counter", value);
    }

    /// An instance id has no character that a label value would have to escape.
    fn sample(&mut self, name: &str, help: &str, kind: &str, value: u64) {
        let _ = writeln!(
            self.text,
            "# HELP tableforge_{name} {help}\n# TYPE tableforge_{name} {kind}\n\
             tableforge_{name}{{instance_id=\"{}\"}} {value}",
            self.instance
        );
    }
}
