//! `rooms`: members of rooms send messages to each other, and every delivery is verified.

use std::time::Duration;

use serde_json::json;

use super::{Traffic, connection_problems, connection_rows, nothing_connected, per_second, plan};
use crate::args::RoomsArguments;
use crate::fleet::{ConnectFigures, Fleet};
use crate::process;
use crate::report::{GeneratorFigures, Latency, Report, Table, grouped, rounded};
use crate::servers::{CpuReading, ServerFigures};
use crate::tally::Tally;

/// A generator this late with one message in a hundred does not keep its schedule, in milliseconds.
const LATE_MS: f64 = 10.0;

/// What was measured.
struct Figures {
    connect: ConnectFigures,
    tally: Tally,
    generator: GeneratorFigures,
    server: Option<ServerFigures>,
}

/// Runs the scenario.
///
/// # Errors
/// The run could not be made; the text says why.
pub fn run(arguments: &RoomsArguments) -> Result<Report, String> {
    let traffic = Traffic {
        join: true,
        payload_bytes: arguments.payload as usize,
        acknowledged: arguments.ack,
        read_interval: Duration::from_millis(arguments.read_every_ms),
    };
    let plan = plan(&arguments.common, traffic)?;
    let threads = plan.workers;
    CpuReading::take(&arguments.common.pid)?;
    let fleet = Fleet::start(plan)?;
    let connect = fleet.wait_connected();
    if connect.ready == 0 {
        return Err(nothing_connected(&fleet.finish()?));
    }
    let seconds = arguments.duration.as_secs_f64();
    eprintln!(
        "{} connections ready in {:.2} s; sending {} messages/s for {seconds} s",
        grouped(connect.ready),
        connect.ready_seconds,
        arguments.rate,
    );
    let load = fleet.start_load(arguments.rate, arguments.warmup, arguments.duration);
    fleet.sleep_until(load.measured_from_us);
    let (server_before, own_before) = (CpuReading::take(&arguments.common.pid)?, process::own_cpu());
    fleet.sleep_until(load.end_us);
    let own_used = (process::own_cpu() - own_before).as_secs_f64();
    // Read before the run settles: what the server does afterwards is not part of the measured time.
    let server = server_before.since(seconds)?;
    fleet.settle(&load, Duration::from_millis(arguments.settle_ms));
    let tally = fleet.finish()?;
    let server = server.map(|figures| figures.per_delivery(tally.measured_deliveries));
    let generator = GeneratorFigures::new(own_used, seconds, threads);
    Ok(report(arguments, &Figures { connect, tally, generator, server }))
}

fn report(arguments: &RoomsArguments, figures: &Figures) -> Report {
    let warnings = warnings(figures);
    let problems = problems(arguments, &figures.tally);
    Report {
        json: json(arguments, figures, &problems, &warnings),
        table: table(arguments, figures),
        problems,
        warnings,
    }
}

fn problems(arguments: &RoomsArguments, tally: &Tally) -> Vec<String> {
    let mut problems = connection_problems(tally);
    let lost_too_many = if tally.lost() > arguments.max_loss { tally.lost() } else { 0 };
    let faults = [
        (lost_too_many, "deliveries were lost"),
        (tally.duplicated, "deliveries arrived twice"),
        (tally.out_of_order, "deliveries arrived out of order"),
        (tally.unexpected, "messages reached a connection they were not for"),
        (tally.malformed, "messages were malformed or had a wrong field"),
        (tally.unsent, "messages were not sent for want of a working connection"),
        (tally.acks_awaited.unsigned_abs(), "acks are missing or too many"),
    ];
    let found = faults.iter().filter(|(number, _)| *number > 0);
    problems.extend(found.map(|(number, fault)| format!("{} {fault}", grouped(*number))));
    problems
}

fn warnings(figures: &Figures) -> Vec<String> {
    let mut warnings = Vec::new();
    let GeneratorFigures { cpu_percent, threads, saturated } = figures.generator;
    if saturated {
        warnings.push(format!(
            "the generator used {cpu_percent:.0} % of a core with {threads} thread(s): these figures may be \
             its own and not the server's (try --threads or --read-every-ms 5)"
        ));
    }
    if let Some(lag) = Latency::of(&figures.tally.send_lag).filter(|lag| lag.p99 > LATE_MS) {
        warnings.push(format!(
            "the generator sent late (p99 {:.1} ms behind its schedule), which is part of all latencies: \
             it had too much to do, or another process held its CPU",
            lag.p99
        ));
    }
    warnings
}

fn json(
    arguments: &RoomsArguments,
    figures: &Figures,
    problems: &[String],
    warnings: &[String],
) -> serde_json::Value {
    let Figures { connect, tally, generator, server } = figures;
    let common = &arguments.common;
    let seconds = arguments.duration.as_secs_f64();
    json!({
        "scenario": "rooms",
        "servers": common.url.len(),
        "connections": common.connections,
        "room_size": common.room_size,
        "rate": arguments.rate,
        "payload_bytes": arguments.payload,
        "warmup_seconds": arguments.warmup.as_secs_f64(),
        "duration_seconds": seconds,
        "read_every_ms": arguments.read_every_ms,
        "connections_ready": connect.ready,
        "connect_seconds": rounded(connect.ready_seconds),
        "connects_per_second": per_second(connect.ready, connect.ready_seconds),
        "connect_failures": tally.connect_failures,
        "connections_lost": tally.closed,
        "messages_sent": tally.sent,
        "messages_unsent": tally.unsent,
        "messages_refused": tally.refused,
        "messages_uncertain": tally.uncertain,
        "deliveries_expected": tally.expected,
        "deliveries_received": tally.received,
        "deliveries_per_second": rounded(tally.measured_deliveries as f64 / seconds),
        "bytes_per_delivery": tally.bytes_per_delivery().map(rounded),
        "lost": tally.lost(),
        "duplicated": tally.duplicated,
        "out_of_order": tally.out_of_order,
        "unexpected": tally.unexpected,
        "malformed": tally.malformed,
        "latency_ms": Latency::of(&tally.latency),
        "acks_received": tally.acks,
        "acks_missing": tally.acks_awaited,
        "ack_latency_ms": Latency::of(&tally.ack_latency),
        "send_lag_ms": Latency::of(&tally.send_lag),
        "notices": tally.notices,
        "pings_answered": tally.pings_answered,
        "server": server,
        "generator": generator,
        "problems": problems,
        "warnings": warnings,
        "passed": problems.is_empty(),
    })
}

fn table(arguments: &RoomsArguments, figures: &Figures) -> Table {
    let Figures { connect, tally, generator, server } = figures;
    let mut table = Table::default();
    connection_rows(&mut table, arguments.common.connections, connect, tally);
    table.row("messages sent", grouped(tally.sent));
    if tally.unsent > 0 {
        table.row("  not sent", grouped(tally.unsent));
    }
    table.counts("  refused", &tally.refused);
    table.counts("  uncertain", &tally.uncertain);
    let received =
        format!("{} of {} expected", grouped(tally.received), grouped(tally.expected.max(0) as u64));
    table.row("deliveries", received);
    let per_second = tally.measured_deliveries as f64 / arguments.duration.as_secs_f64();
    table.row("deliveries per second", grouped(per_second.round() as u64));
    let wrong = [tally.lost(), tally.duplicated, tally.out_of_order].map(grouped);
    table.row("lost / duplicated / out of order", wrong.join(" / "));
    if tally.unexpected + tally.malformed > 0 {
        let wrong = [tally.unexpected, tally.malformed].map(grouped);
        table.row("unexpected / malformed", wrong.join(" / "));
    }
    let latencies =
        [("latency", &tally.latency), ("ack latency", &tally.ack_latency), ("late sends", &tally.send_lag)];
    for (label, histogram) in latencies {
        if let Some(latency) = Latency::of(histogram) {
            table.row(label, latency);
        }
    }
    if let Some(server) = server {
        table.row("server CPU", format!("{:.1} % of a core", server.cpu_percent));
        if let Some(per_delivery) = server.cpu_us_per_delivery {
            table.row("server CPU per delivery", format!("{per_delivery:.2} µs"));
        }
        table.row("server resident memory", format!("{} bytes", grouped(server.resident_bytes)));
    }
    table.row("generator CPU", format!("{:.1} % of a core", generator.cpu_percent));
    table.counts("server said", &tally.notices);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Scenario};
    use clap::Parser;

    fn arguments(line: &str) -> RoomsArguments {
        match Arguments::parse_from(format!("loadtest rooms {line}").trim().split(' ')).scenario {
            Scenario::Rooms(rooms) => rooms,
            Scenario::Idle(_) => unreachable!("the line says rooms"),
        }
    }

    #[test]
    fn each_fault_fails_a_run_and_loss_only_above_what_is_allowed() {
        let clean = arguments("");
        let mut tally = Tally::new();
        (tally.expected, tally.received) = (10, 10);
        assert!(problems(&clean, &tally).is_empty());
        tally.received = 8;
        assert_eq!(problems(&clean, &tally), ["2 deliveries were lost"]);
        assert!(problems(&arguments("--max-loss 2"), &tally).is_empty());

        let faults: [fn(&mut Tally); 7] = [
            |tally| tally.duplicated = 1,
            |tally| tally.out_of_order = 1,
            |tally| tally.unexpected = 1,
            |tally| tally.malformed = 1,
            |tally| tally.unsent = 1,
            |tally| tally.acks_awaited = -1,
            |tally| tally.closed.add("reset"),
        ];
        for (number, plant) in faults.iter().enumerate() {
            let mut tally = Tally::new();
            plant(&mut tally);
            assert_eq!(problems(&clean, &tally).len(), 1, "fault {number}");
        }
    }

    #[test]
    fn acks_are_not_asked_of_a_dialect_without_them() {
        let refusal = run(&arguments("--dialect plain --ack")).err();
        assert!(refusal.is_some_and(|text| text.contains("--dialect tableforge")));
    }

    #[test]
    fn refused_sends_are_reported_but_no_fault() {
        let mut tally = Tally::new();
        tally.refused.add("rate_limited");
        assert!(problems(&arguments(""), &tally).is_empty());
    }
}
