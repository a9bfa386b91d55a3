//! `idle`: silent connections, what they cost in memory, and that they stay open.

use std::time::Duration;

use serde_json::json;

use super::{Features, connection_problems, connection_rows, nothing_connected, per_second, plan};
use crate::args::IdleArguments;
use crate::fleet::{ConnectFigures, Fleet};
use crate::origin::origin;
use crate::payloads::Mix;
use crate::process;
use crate::report::{GeneratorFigures, Report, Table, grouped, rounded};
use crate::servers::{self, CpuReading, ServerFigures};
use crate::tally::Tally;
use crate::watch::{Point, Watch};

/// Time for all connections to answer the ping at the end.
const PONG_LIMIT: Duration = Duration::from_secs(10);

/// What was measured.
struct Figures {
    /// The most connections that were under way at once.
    in_flight: usize,
    connect: ConnectFigures,
    resident_before: u64,
    resident_after: u64,
    server: Option<ServerFigures>,
    generator: GeneratorFigures,
    /// Connections open at the end.
    open: u64,
    /// Those that answered a ping.
    answered: u64,
    tally: Tally,
    series: Vec<Point>,
}

/// Runs the scenario.
///
/// # Errors
/// The run could not be made; the text says why.
pub fn run(arguments: &IdleArguments) -> Result<Report, String> {
    let pids = &arguments.common.pid;
    let features = Features { join: arguments.join, ..Features::of(Mix::of_one_size(0), 0) };
    let plan = plan(&arguments.common, features)?;
    let (threads, interval_us, in_flight) = (plan.workers, plan.interval_us, plan.handshakes);
    let resident_before = servers::resident_bytes(pids)?;
    let fleet = Fleet::start(plan)?;
    let connect = fleet.wait_connected();
    if connect.ready == 0 {
        return Err(nothing_connected(&fleet.finish()?));
    }
    let hold = arguments.hold.as_secs_f64();
    eprintln!(
        "{} connections ready in {:.2} s; holding them for {hold} s",
        grouped(connect.ready),
        connect.ready_seconds
    );
    let (server_before, own_before) = (CpuReading::take(pids)?, process::own_cpu());
    let control = fleet.control().clone();
    let (now_us, hold_us) = (control.now_us(), arguments.hold.as_micros() as u64);
    let origin_us = control.interval_start(now_us, interval_us);
    let output = &arguments.common.output;
    let mut watch = Watch::new(control, pids, output, origin_us, interval_us);
    watch.until(now_us + hold_us);
    let generator = GeneratorFigures::new((process::own_cpu() - own_before).as_secs_f64(), hold, threads);
    // Before the pings below, whose buffers are not part of being idle.
    let server = server_before.since(hold)?;
    let resident_after = servers::resident_bytes(pids)?;
    let (open, answered) = fleet.ping_all(PONG_LIMIT);
    watch.end();
    let tally = fleet.finish()?;
    let series = watch.finish();
    let figures = Figures {
        in_flight,
        connect,
        resident_before,
        resident_after,
        server,
        generator,
        open,
        answered,
        tally,
        series,
    };
    Ok(report(arguments, &figures))
}

impl Figures {
    /// What one connection adds to the servers' resident memory; `None` without their process numbers.
    fn bytes_per_connection(&self) -> Option<f64> {
        let more = self.resident_after as f64 - self.resident_before as f64;
        self.server.is_some().then(|| rounded(more / self.connect.ready as f64))
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = connection_problems(&self.tally);
        if self.answered < self.connect.ready {
            let silent = self.connect.ready - self.answered;
            problems.push(format!("{} connections did not answer a ping at the end", grouped(silent)));
        }
        if self.tally.malformed > 0 {
            problems.push(format!("{} messages were malformed", grouped(self.tally.malformed)));
        }
        problems
    }
}

fn report(arguments: &IdleArguments, figures: &Figures) -> Report {
    let Figures { connect, tally, server, .. } = figures;
    let problems = figures.problems();
    let accepted_per_second = per_second(connect.established, connect.established_seconds);
    let ready_per_second = per_second(connect.ready, connect.ready_seconds);
    let json = json!({
        "scenario": "idle",
        "origin": origin(),
        "servers": arguments.common.url.len(),
        "connections": arguments.common.connections,
        "room_size": arguments.common.room_size,
        "in_flight": figures.in_flight,
        "join": arguments.join,
        "hold_seconds": arguments.hold.as_secs_f64(),
        "connections_accepted": connect.established,
        "accept_seconds": rounded(connect.established_seconds),
        "accepts_per_second": accepted_per_second,
        "connections_ready": connect.ready,
        "connect_seconds": rounded(connect.ready_seconds),
        "connects_per_second": ready_per_second,
        "connect_failures": tally.connect_failures,
        "connections_lost": tally.closed,
        "resident_before_bytes": server.as_ref().map(|_| figures.resident_before),
        "resident_after_bytes": server.as_ref().map(|_| figures.resident_after),
        "resident_bytes_per_connection": figures.bytes_per_connection(),
        "open_at_end": figures.open,
        "answered_ping": figures.answered,
        "pings_answered": tally.pings_answered,
        "notices": tally.notices,
        "server": server,
        "generator": figures.generator,
        "interval_seconds": 1.0,
        "series": figures.series,
        "problems": problems,
        "warnings": [],
        "passed": problems.is_empty(),
    });
    let mut table = Table::default();
    connection_rows(&mut table, arguments.common.connections, connect, tally);
    table.row("accepted per second", grouped(accepted_per_second as u64));
    table.row(
        if arguments.join { "joined per second" } else { "ready per second" },
        grouped(ready_per_second as u64),
    );
    if let Some(bytes) = figures.bytes_per_connection() {
        let (before, after) = (grouped(figures.resident_before), grouped(figures.resident_after));
        table.row("server resident memory", format!("{before} bytes before, {after} after"));
        table.row("  per connection", format!("{bytes:.0} bytes"));
    }
    if let Some(server) = server {
        table.row("server CPU while idle", format!("{:.1} % of a core", server.cpu_percent));
    }
    let ready = grouped(connect.ready);
    let (open, answered) = (grouped(figures.open), grouped(figures.answered));
    table.row("open at the end", format!("{open} of {ready}, {answered} answered a ping"));
    table.row("server's pings answered", grouped(tally.pings_answered));
    table.counts("server said", &tally.notices);
    Report { json, table, problems, warnings: Vec::new() }
}
