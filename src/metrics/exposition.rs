//! The Prometheus text format: every metric with its help and type, every sample with the instance's name.

use std::fmt::{Display, Write};

use super::cells::{AuthorizationCells, ControlCells, ShardCells, UplinkCells};
use super::histogram::Histogram;
use super::kinds::Limit;
use super::{Cell, process};
use crate::instance::Instance;
use crate::logging;
use crate::trace::TraceCounts;

/// Name, help, and the cell of each shard.
type ShardMetric = (&'static str, &'static str, fn(&ShardCells) -> &Cell);

const TRAFFIC: [ShardMetric; 23] = [
    ("websocket_messages_sent_total", "Messages delivered to clients, one per receiver.", |s| &s.deliveries),
    ("websocket_messages_received_total", "Client messages received.", |s| &s.messages_in),
    ("websocket_messages_compressed_total", "Messages compressed, once per shard for all receivers.", |s| {
        &s.compressed
    }),
    ("websocket_accepts_total", "Sockets accepted.", |s| &s.accepts),
    (
        "websocket_steered_total",
        "New clients sent to another instance by an overloaded or draining one.",
        |s| &s.steered,
    ),
    ("websocket_accept_pauses_total", "Times that accepting failed and paused.", |s| &s.accept_pauses),
    ("websocket_received_bytes_total", "Bytes received from clients.", |s| &s.bytes_in),
    ("websocket_sent_bytes_total", "Bytes sent to clients.", |s| &s.bytes_out),
    ("websocket_sends_total", "Send operations.", |s| &s.sends),
    ("websocket_flushes_total", "Flushes of dirty connections.", |s| &s.flushes),
    ("websocket_errors_total", "Error replies.", |s| &s.errors),
    ("websocket_limited_total", "Messages over a rate limit.", |s| &s.limited),
    ("websocket_shed_total", "Messages to others refused by an overloaded shard.", |s| &s.shed),
    (
        "websocket_connections_refused_total",
        "Connections refused as too many of a user, from an address, or at once.",
        |s| &s.refused_connections,
    ),
    (
        "websocket_unread_closes_total",
        "Connections closed because an overloaded shard could not read what they sent.",
        |s| &s.unread_closes,
    ),
    ("websocket_slow_closes_total", "Connections closed as too slow.", |s| &s.slow_closes),
    (
        "websocket_outbox_dropped_bytes_total",
        "Bytes that waited for connections closed as too slow, and were dropped.",
        |s| &s.outbox_dropped_bytes,
    ),
    ("websocket_violations_total", "Connections closed for violating RFC 6455.", |s| &s.violations),
    ("mesh_dropped_total", "Room frames dropped between shards; members were told to resync.", |s| {
        &s.mesh_dropped
    }),
    ("tls_handshakes_total", "TLS handshakes completed.", |s| &s.tls_handshakes),
    ("tls_failures_total", "Connections whose TLS failed, mostly in the handshake.", |s| &s.tls_failures),
    ("panics_total", "Panics contained to one connection.", |s| &s.panics),
    ("mesh_backlog_messages", "Control messages that wait for room in a queue to another shard.", |s| {
        &s.mesh_backlog
    }),
];

/// The same for each shard by itself.
const BY_SHARD: [ShardMetric; 3] = [
    ("shard_connections", "WebSocket connections open now.", |s| &s.connections),
    ("mesh_queue_messages", "Messages of other shards that wait for this one.", |s| &s.mesh_waiting),
    (
        "uplink_queue_messages",
        "Messages of the uplink, the control thread and the authorisation threads that wait for this shard.",
        |s| &s.uplink_waiting,
    ),
];

/// Name, help, and the cell of the uplink.
type UplinkMetric = (&'static str, &'static str, fn(&UplinkCells) -> &Cell);

const UPLINK: [UplinkMetric; 22] = [
    ("redis_link_up", "Whether the link to Redis is up.", |u| &u.link_up),
    ("redis_link_refused", "Whether Redis refuses this instance: a wrong password, a missing right.", |u| {
        &u.link_refused
    }),
    ("redis_link_losses_total", "Times the link was lost.", |u| &u.link_losses),
    ("redis_published_total", "Events handed to the publisher for other instances.", |u| &u.published),
    ("redis_batches_sent_total", "Batches published.", |u| &u.batches_out),
    ("redis_batch_sent_bytes_total", "Bytes of batches published.", |u| &u.batch_bytes_out),
    ("redis_lane_batches_sent_total", "Batches sent over the lane.", |u| &u.lane_batches_out),
    ("redis_received_total", "Events received from other instances.", |u| &u.received),
    ("redis_batches_received_total", "Batches received.", |u| &u.batches_in),
    ("redis_lane_batches_received_total", "Batches received over other instances' lanes.", |u| {
        &u.lane_batches_in
    }),
    ("redis_foreign_total", "Plain JSON publications of other programs.", |u| &u.foreign_in),
    ("redis_garbage_total", "Payloads that were neither batch nor JSON.", |u| &u.garbage_in),
    ("redis_gaps_total", "Gaps noticed in other instances' sequences.", |u| &u.gaps),
    (
        "redis_late_batches_total",
        "Batches dropped because they came after later ones of their sender.",
        |u| &u.late_batches,
    ),
    ("redis_filled_total", "Stored messages read after a gap.", |u| &u.filled),
    ("redis_publications_dropped_total", "Events that could not be published.", |u| &u.publications_dropped),
    ("redis_deliveries_dropped_total", "Events that a shard's queue could not take.", |u| {
        &u.deliveries_dropped
    }),
    ("redis_clock_skewed_total", "Batches whose first event was stamped later than it arrived.", |u| {
        &u.from_the_future
    }),
    ("redis_publication_queue_messages", "Publications that wait for the publisher.", |u| {
        &u.publications_waiting
    }),
    ("redis_command_queue_messages", "Joins, leaves and reads that wait for the ingress thread.", |u| {
        &u.commands_waiting
    }),
    ("redis_unwritten_bytes", "Bytes that wait for the publisher's socket.", |u| &u.unwritten_bytes),
    ("redis_unanswered_commands", "Commands of the publisher without an answer yet.", |u| &u.unanswered),
];

/// The Prometheus text format, version 0.0.4. `uptime_ms` in milliseconds.
pub fn exposition(instance: &Instance, uptime_ms: u64) -> String {
    let mut text = Exposition { text: String::with_capacity(32 * 1024), instance: instance.id.as_str() };
    let sum = |cell: fn(&ShardCells) -> &Cell| -> u64 {
        instance.shards.iter().map(|cells| cell(cells).get()).sum()
    };
    // Named by the contract, which has them end in _total; conventional names stand beside them.
    text.metric("websocket_connections_total", "WebSocket connections open now.", "gauge");
    text.sample("websocket_connections_total", "", instance.connections());
    text.metric("websocket_rooms_total", "Rooms with members on this instance now.", "gauge");
    text.sample("websocket_rooms_total", "", instance.rooms());
    text.one("websocket_connections", "WebSocket connections open now.", instance.connections());
    text.one(
        "websocket_connections_limit",
        "Connections that the instance takes: WS_MAX_CONNECTIONS, or as many as descriptors allow.",
        instance.capacity(),
    );
    text.one("websocket_rooms", "Rooms with members on this instance now.", instance.rooms());
    for (name, help, cell) in TRAFFIC {
        text.one(name, help, sum(cell));
    }
    labelled_exposition(&mut text, instance);
    shard_exposition(&mut text, instance, uptime_ms);
    histogram_exposition(&mut text, instance);
    control_exposition(&mut text, &instance.control);
    let overloaded = instance.is_overloaded();
    text.one("overloaded", "Whether new clients are sent to other instances.", overloaded.into());
    text.one("instances", "Instances of the cluster, this one included.", instance.instances());
    text.one("uptime_seconds", "Seconds since the start.", uptime_ms / 1000);
    text.one("log_lines_dropped_total", "Log lines dropped because standard error was read too slowly.", {
        logging::dropped_lines()
    });
    text.one("log_lines_left_out_total", "Log lines left out as repetitions.", logging::left_out_lines());
    if let Some(cells) = &instance.uplink {
        uplink_exposition(&mut text, cells);
    }
    if let Some(cells) = &instance.authorization {
        authorization_exposition(&mut text, cells);
    }
    if let Some(tracer) = &instance.tracer {
        trace_exposition(&mut text, tracer.counts());
    }
    process_exposition(&mut text, &instance.control);
    text.text
}

fn labelled_exposition(text: &mut Exposition<'_>, instance: &Instance) {
    let shards = || instance.shards.iter();
    let name = "websocket_closes_total";
    let help =
        "WebSocket connections ended, by who ended them and close code; 1006 is without a close frame.";
    let each = shards().map(|cells| {
        cells.closes.each().map(|(by, code, n)| (format!("by=\"{by}\",code=\"{code}\""), n)).collect()
    });
    text.labelled(name, help, each);
    let statuses = shards().map(|cells| &cells.statuses).chain([&instance.port.statuses]);
    let each =
        statuses.map(|cells| cells.each().map(|(status, n)| (format!("status=\"{status}\""), n)).collect());
    text.labelled("http_responses_total", "Answers to requests that did not become a WebSocket.", each);
    let limits = shards().map(|cells| &cells.limits).chain([&instance.port.limits]);
    let each = limits.map(|cells| {
        let limits = Limit::ALL.iter().zip(cells);
        limits.map(|(limit, cell)| (format!("limit=\"{}\"", limit.as_str()), cell.get())).collect()
    });
    text.labelled("limits_reached_total", "Requests and connections refused at a limit.", each);
    let each = shards().map(|cells| {
        cells.recoveries.each().map(|(outcome, n)| (format!("outcome=\"{outcome}\""), n)).collect()
    });
    text.labelled("recoveries_total", "Joins that asked for what they had missed, by outcome.", each);
    let each = shards().map(|cells| {
        let reasons = [("full", &cells.outboxes_full), ("stalled", &cells.outboxes_stalled)];
        reasons.map(|(reason, cell)| (format!("reason=\"{reason}\""), cell.get())).to_vec()
    });
    text.labelled("websocket_outbox_drops_total", "Outboxes dropped with their connection.", each);
}

/// One line per shard.
fn shard_exposition(text: &mut Exposition<'_>, instance: &Instance, uptime_ms: u64) {
    let shards = || instance.shards.iter().enumerate();
    for (name, help, cell) in BY_SHARD {
        text.metric(name, help, "gauge");
        for (shard, cells) in shards() {
            text.sample(name, &format!("shard=\"{shard}\""), cell(cells).get());
        }
    }
    let name = "shard_last_turn_age_seconds";
    text.metric(
        name,
        "Time since the shard's last turn began; a healthy one has ten or more a second.",
        "gauge",
    );
    for (shard, cells) in shards() {
        let age = uptime_ms.saturating_sub(cells.last_turn.get()) as f64 / 1e3;
        text.sample(name, &format!("shard=\"{shard}\""), age);
    }
    let name = "shard_busy_seconds_total";
    text.metric(name, "Time that the shard has worked and not waited; its rate is at most 1.", "counter");
    for (shard, cells) in shards() {
        text.sample(name, &format!("shard=\"{shard}\""), cells.busy_us.get() as f64 / 1e6);
    }
}

fn histogram_exposition(text: &mut Exposition<'_>, instance: &Instance) {
    let shards = &instance.shards;
    text.histogram(
        "websocket_receive_to_flush_seconds",
        "Time from the turn in which a client message is read to the flush that follows it.",
        1e6,
        shards.iter().map(|cells| &cells.receive_to_flush_us),
    );
    text.histogram(
        "websocket_fan_out_receivers",
        "Receivers of one room message on one shard.",
        1.0,
        shards.iter().map(|cells| &cells.fan_out),
    );
    text.histogram(
        "websocket_flush_bytes",
        "Bytes of one flush.",
        1.0,
        shards.iter().map(|cells| &cells.flush_bytes),
    );
    text.histogram(
        "websocket_flush_connections",
        "Connections that one flush sends to.",
        1.0,
        shards.iter().map(|cells| &cells.flush_connections),
    );
}

fn control_exposition(text: &mut Exposition<'_>, cells: &ControlCells) {
    text.one("shard_stalls_total", "Times that a shard stood still for STALL_THRESHOLD.", cells.stalls.get());
    text.one(
        "admin_commands_refused_total",
        "Administrative commands from Redis whose signature, time or form was wrong.",
        cells.refused.get(),
    );
    text.one("reloads_total", "Times that settings were read again.", cells.reloads.get());
    text.one(
        "reload_failures_total",
        "Times that reading settings again failed and those from before stayed.",
        cells.reload_failures.get(),
    );
}

fn uplink_exposition(text: &mut Exposition<'_>, cells: &UplinkCells) {
    for (name, help, cell) in UPLINK {
        text.one(name, help, cell(cells).get());
    }
    text.histogram(
        "redis_batch_bytes",
        "Bytes of a published batch.",
        1.0,
        std::iter::once(&cells.batch_sizes),
    );
    text.histogram(
        "redis_batch_messages",
        "Messages published with one command.",
        1.0,
        std::iter::once(&cells.batch_events),
    );
    text.histogram(
        "redis_store_messages",
        "Messages stored with one command.",
        1.0,
        std::iter::once(&cells.store_messages),
    );
    text.histogram(
        "redis_reply_seconds",
        "Time until Redis answered a heartbeat, behind all that was sent before it.",
        1e6,
        std::iter::once(&cells.reply_us),
    );
    text.histogram(
        "redis_delivery_seconds",
        "Time from a message's timestamp on the instance that took it to its arrival here, by both clocks: the \
         first of each batch.",
        1e3,
        std::iter::once(&cells.delivery_ms),
    );
}

fn authorization_exposition(text: &mut Exposition<'_>, cells: &AuthorizationCells) {
    text.one("authorize_cached_total", "Joins decided from the cache of answers.", cells.cached.get());
    text.one("authorize_asked_total", "Questions sent to AUTHORIZE_URL.", cells.asked.get());
    text.one("authorize_failures_total", "Questions without a usable answer.", cells.failures.get());
    text.one("authorize_refused_total", "Questions not sent while it failed.", cells.refused.get());
    text.one("authorize_breaker_open", "Whether AUTHORIZE_URL is left alone.", cells.breaker_open.get());
}

fn trace_exposition(text: &mut Exposition<'_>, counts: &TraceCounts) {
    text.one("trace_spans_total", "Spans recorded.", counts.recorded());
    text.one("trace_spans_dropped_total", "Spans that were not exported.", counts.dropped());
    text.one("trace_export_failures_total", "Exports that OTLP_ENDPOINT did not take.", counts.failures());
}

/// What Prometheus expects of every process, under the names that it expects.
fn process_exposition(text: &mut Exposition<'_>, cells: &ControlCells) {
    let (resident, _) = process::memory();
    text.one("resident_memory_bytes", "Resident memory of the process.", resident);
    text.metric("build_info", "What runs here; always 1.", "gauge");
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("TABLEFORGE_COMMIT").unwrap_or("unknown");
    text.sample("build_info", &format!("version=\"{version}\",commit=\"{commit}\""), 1);
    text.standard("process_cpu_seconds_total", "CPU time of all threads.", "counter", process::cpu_seconds());
    text.standard("process_resident_memory_bytes", "Resident memory.", "gauge", resident);
    text.standard("process_virtual_memory_bytes", "Address space.", "gauge", process::virtual_memory());
    text.standard("process_open_fds", "Open descriptors.", "gauge", cells.open_descriptors.get());
    if let Some(most) = process::most_descriptors() {
        text.standard("process_max_fds", "Descriptors that may be open.", "gauge", most);
    }
    let started = cells.started_unix_ms.get() as f64 / 1e3;
    text.standard("process_start_time_seconds", "Start of the process, since 1970.", "gauge", started);
}

struct Exposition<'a> {
    text: String,
    instance: &'a str,
}

impl Exposition<'_> {
    /// A metric with one sample: a counter if its name says so, else a gauge.
    fn one(&mut self, name: &str, help: &str, value: u64) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        self.metric(name, help, kind);
        self.sample(name, "", value);
    }

    /// Begins a metric.
    fn metric(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP tableforge_{name} {help}\n# TYPE tableforge_{name} {kind}");
    }

    /// One sample of the metric that was begun. An instance id, as every other label here, has no character that
    /// would have to be escaped.
    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let comma = if labels.is_empty() { "" } else { "," };
        let instance = self.instance;
        let _ = writeln!(self.text, "tableforge_{name}{{instance_id=\"{instance}\"{comma}{labels}}} {value}");
    }

    /// A metric whose name does not begin with the program's.
    fn standard(&mut self, name: &str, help: &str, kind: &str, value: impl Display) {
        let instance = self.instance;
        let _ = writeln!(
            self.text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{instance_id=\"{instance}\"}} {value}"
        );
    }

    /// A counter with the same labels on every shard, summed.
    fn labelled(&mut self, name: &str, help: &str, shards: impl Iterator<Item = Vec<(String, u64)>>) {
        self.metric(name, help, "counter");
        let mut sums: Vec<(String, u64)> = Vec::new();
        for shard in shards {
            if sums.is_empty() {
                sums = shard;
            } else {
                sums.iter_mut().zip(shard).for_each(|(sum, (_, n))| sum.1 += n);
            }
        }
        for (labels, value) in sums {
            self.sample(name, &labels, value);
        }
    }

    /// Histograms of several threads as one. What was observed is so small that `unit` of it are what the name says.
    fn histogram<'h, const LOWEST: u32>(
        &mut self,
        name: &str,
        help: &str,
        unit: f64,
        parts: impl Iterator<Item = &'h Histogram<LOWEST>>,
    ) {
        self.metric(name, help, "histogram");
        let (mut buckets, mut sum): (Vec<(Option<u64>, u64)>, u64) = (Vec::new(), 0);
        for part in parts {
            sum = sum.wrapping_add(part.sum());
            if buckets.is_empty() {
                buckets = part.buckets().collect();
            } else {
                buckets.iter_mut().zip(part.buckets()).for_each(|(all, (_, n))| all.1 += n);
            }
        }
        let mut count = 0;
        for (bound, n) in buckets {
            count += n;
            let bound = bound.map_or("+Inf".to_owned(), |bound| (bound as f64 / unit).to_string());
            self.sample(&format!("{name}_bucket"), &format!("le=\"{bound}\""), count);
        }
        self.sample(&format!("{name}_sum"), "", sum as f64 / unit);
        self.sample(&format!("{name}_count"), "", count);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::codec::close::CloseCode;
    use crate::config::Settings;
    use crate::metrics::kinds::Ending;

    fn text(change: impl FnOnce(&Instance)) -> String {
        let instance = Arc::new(Instance::new(Settings { shards: 2, ..Settings::for_tests() }, 1));
        change(&instance);
        exposition(&instance, 5_000)
    }

    fn value(text: &str, name: &str, labels: &str) -> f64 {
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let line = lines.find(|line| line.contains(labels)).unwrap_or_else(|| panic!("{name} {labels}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    #[test]
    fn shards_add_up_under_each_label() {
        let text = text(|instance| {
            for cells in &instance.shards {
                cells.closes.count(Ending::Server(CloseCode::SlowReader));
                cells.reached(Limit::JoinRate);
            }
            instance.shards[1].last_turn.set(4_750);
            instance.shards[1].busy_us.set(1_500_000);
        });
        assert_eq!(value(&text, "tableforge_websocket_closes_total", "code=\"4003\""), 2.0);
        assert_eq!(value(&text, "tableforge_limits_reached_total", "limit=\"join_rate\""), 2.0);
        assert_eq!(value(&text, "tableforge_shard_last_turn_age_seconds", "shard=\"1\""), 0.25);
        assert_eq!(value(&text, "tableforge_shard_busy_seconds_total", "shard=\"1\""), 1.5);
    }

    #[test]
    fn buckets_of_a_histogram_add_up_over_shards_and_bounds() {
        let text = text(|instance| {
            instance.shards[0].receive_to_flush_us.observe(100);
            instance.shards[1].receive_to_flush_us.observe(1_000);
            instance.shards[1].receive_to_flush_us.observe(u64::from(u32::MAX));
        });
        let name = "tableforge_websocket_receive_to_flush_seconds";
        let bucket = |bound: &str| value(&text, &format!("{name}_bucket"), &format!("le=\"{bound}\""));
        assert_eq!((bucket("0.000064"), bucket("0.000128"), bucket("0.001024")), (0.0, 1.0, 2.0));
        assert_eq!((bucket("+Inf"), value(&text, &format!("{name}_count"), "")), (3.0, 3.0));
        let sum = value(&text, &format!("{name}_sum"), "");
        assert!((sum - 4_294.968_395).abs() < 1e-3, "{sum}");
    }
}
