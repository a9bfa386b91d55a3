//! `storm`: all clients connect, drop at once and come back, each with what it has seen; how long that takes, who is
//! refused meanwhile, and whether everyone gets what was sent while it was away.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::{Features, connection_problems, connection_rows, per_second, plan};
use crate::args::StormArguments;
use crate::control::Control;
use crate::fleet::{ConnectFigures, Fleet};
use crate::origin::origin;
use crate::payloads::Mix;
use crate::process;
use crate::report::{GeneratorFigures, Latency, Report, Table, grouped, percentiles, rounded};
use crate::servers::{CpuReading, ServerFigures};
use crate::tally::Tally;
use crate::watch::{Point, Watch};

/// Bytes of data in the messages that are missed and of those at the end.
const PAYLOAD_BYTES: usize = 128;

/// Connections under way at once where the options do not say: a storm's clients do not wait for each other.
const IN_FLIGHT: usize = 1_000;

/// Length of the intervals of the series, in microseconds: a storm is over in seconds.
const INTERVAL_US: u64 = 100_000;

/// Longest wait for the answers to what is sent in between.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What was measured.
struct Figures {
    /// Connections under way at once.
    in_flight: usize,
    connect: ConnectFigures,
    /// Clients that left.
    left: u64,
    /// Seconds from the word to come back until the last one was ready.
    back_seconds: f64,
    /// Clients that had not come back when the time was up.
    missing: u64,
    /// When, in seconds since the first connection: all were dropped, and were told to come back.
    dropped_at: f64,
    back_from: f64,
    tally: Tally,
    server: Option<ServerFigures>,
    generator: GeneratorFigures,
    series: Vec<Point>,
}

/// Runs the scenario.
///
/// # Errors
/// The run could not be made; the text says why.
pub fn run(arguments: &StormArguments) -> Result<Report, String> {
    let StormArguments { common, missed, .. } = arguments;
    if *missed > 0 && !common.dialect.has_history() {
        return Err("--missed needs --dialect tableforge: the others have no history".to_owned());
    }
    let stay = usize::from(*missed > 0);
    let features = Features {
        acknowledged: common.dialect.has_acks(),
        transients: common.room_size.saturating_sub(stay),
        in_flight: IN_FLIGHT,
        ..Features::of(Mix::of_one_size(PAYLOAD_BYTES), 0)
    };
    let mut plan = plan(common, features)?;
    (plan.resume, plan.round_messages, plan.interval_us) = (true, *missed, INTERVAL_US);
    Ok(report(arguments, &measure(arguments, plan)?))
}

fn measure(arguments: &StormArguments, plan: crate::plan::Plan) -> Result<Figures, String> {
    let (common, threads, in_flight) = (&arguments.common, plan.workers, plan.handshakes);
    let (server_before, own_before) = (CpuReading::take(&common.pid)?, process::own_cpu());
    let fleet = Fleet::start(plan)?;
    let control = fleet.control().clone();
    let origin_us = control.interval_start(control.now_us(), INTERVAL_US);
    let mut watch = Watch::new(control.clone(), &common.pid, &common.output, origin_us, INTERVAL_US);
    let all = common.connections as u64;
    await_open(&mut watch, &control, all, arguments.within);
    let connect = fleet.connect_figures();
    if connect.ready == 0 {
        let tally = fleet.finish()?;
        let reasons: Vec<_> =
            tally.comings.refused.iter().map(|(name, times)| format!("{name} ({times} times)")).collect();
        return Err(format!("no connection became ready: {}", reasons.join("; ")));
    }
    eprintln!(
        "{} connections ready in {:.2} s; dropping them",
        grouped(connect.ready),
        connect.ready_seconds
    );

    let dropped_us = control.now_us();
    let before = control.sum(|progress| &progress.open);
    control.leave();
    // Everyone who is to leave has left once that number does not change any more: all workers look at once.
    let leaving = (all - stayers(arguments)).min(before);
    await_open_at_most(&mut watch, &control, before - leaving);
    let left = before - control.sum(|progress| &progress.open);
    watch.until(control.now_us() + arguments.away.as_micros() as u64);
    publish(&mut watch, &control, arguments);

    let back_us = control.come_back();
    await_open(&mut watch, &control, before, arguments.within);
    let open = control.sum(|progress| &progress.open);
    let back_seconds = control.max(|progress| &progress.last_ready_us).saturating_sub(back_us) as f64 / 1e6;
    // A last round: those who are back hear of what is sent from now on.
    publish(&mut watch, &control, arguments);
    let seconds = control.now_us() as f64 / 1e6;
    let server = server_before.since(seconds)?;
    let own_used = (process::own_cpu() - own_before).as_secs_f64();
    watch.end();
    let tally = fleet.finish()?;
    let since_origin = |time_us: u64| time_us.saturating_sub(origin_us) as f64 / 1e6;
    Ok(Figures {
        in_flight,
        connect,
        left,
        back_seconds,
        missing: before.saturating_sub(open),
        dropped_at: since_origin(dropped_us),
        back_from: since_origin(back_us),
        tally,
        server,
        generator: GeneratorFigures::new(own_used, seconds, threads),
        series: watch.finish(),
    })
}

/// How many connections stay: the first of each room, if anybody is to send.
fn stayers(arguments: &StormArguments) -> u64 {
    let rooms = arguments.common.connections.div_ceil(arguments.common.room_size) as u64;
    if arguments.missed > 0 { rooms } else { 0 }
}

fn await_open(watch: &mut Watch, control: &Arc<Control>, number: u64, limit: Duration) {
    let until = control.now_us() + limit.as_micros() as u64;
    watch.until_or(until, || control.sum(|progress| &progress.open) >= number);
}

fn await_open_at_most(watch: &mut Watch, control: &Arc<Control>, number: u64) {
    let until = control.now_us() + ANSWER_LIMIT.as_micros() as u64;
    watch.until_or(until, || control.sum(|progress| &progress.open) <= number);
}

/// Has the first member of each room send, and waits for the answers.
fn publish(watch: &mut Watch, control: &Arc<Control>, arguments: &StormArguments) {
    if arguments.missed > 0 {
        let rounds = control.publish();
        let until = control.now_us() + ANSWER_LIMIT.as_micros() as u64;
        watch.until_or(until, || control.published(rounds));
    }
}

impl Figures {
    fn problems(&self) -> Vec<String> {
        let tally = &self.tally;
        let mut problems = connection_problems(tally);
        let recovered = |recovered: bool| {
            let counts =
                tally.comings.recovered.iter().filter(move |(name, _)| (*name == "recovered") == recovered);
            counts.map(|(_, number)| number).sum::<u64>()
        };
        for (number, what) in [
            (self.missing, "clients did not come back in time"),
            (recovered(false), "clients were not told what they had missed"),
            (tally.lost(), "messages were lost"),
            (tally.duplicated, "messages arrived twice"),
            (tally.out_of_order, "messages arrived out of order"),
            (tally.unexpected, "messages reached a connection they were not for"),
            (tally.malformed, "messages were malformed"),
            (tally.acks_awaited.unsigned_abs(), "acks are missing or too many"),
            (tally.refused.total(), "messages were refused"),
        ] {
            if number > 0 {
                problems.push(format!("{} {what}", grouped(number)));
            }
        }
        problems
    }
}

fn report(arguments: &StormArguments, figures: &Figures) -> Report {
    let problems = figures.problems();
    let warnings = warnings(arguments, &figures.tally);
    let mut json = json(arguments, figures);
    json["warnings"] = json!(warnings);
    json["problems"] = json!(problems);
    json["passed"] = json!(problems.is_empty());
    Report { json, table: table(arguments, figures), problems, warnings }
}

fn warnings(arguments: &StormArguments, tally: &Tally) -> Vec<String> {
    let told_nothing = arguments.missed > 0 && tally.comings.back > 0 && tally.comings.recovered.total() == 0;
    let warning = "these rooms have no history (HISTORY_ROOMS): what was sent while clients were away was not \
                   recovered, and not expected";
    if told_nothing { vec![warning.to_owned()] } else { Vec::new() }
}

fn json(arguments: &StormArguments, figures: &Figures) -> serde_json::Value {
    let Figures { connect, tally, .. } = figures;
    let comings = &tally.comings;
    json!({
        "scenario": "storm",
        "origin": origin(),
        "servers": arguments.common.url.len(),
        "connections": arguments.common.connections,
        "room_size": arguments.common.room_size,
        "in_flight": figures.in_flight,
        "connect_rate": arguments.common.connect_rate,
        "missed_messages": arguments.missed,
        "away_seconds": arguments.away.as_secs_f64(),
        "connections_ready": connect.ready,
        "connect_seconds": rounded(connect.ready_seconds),
        "connects_per_second": per_second(connect.ready, connect.ready_seconds),
        "accepts_per_second": per_second(connect.established, connect.established_seconds),
        "dropped": figures.left,
        "dropped_at_second": rounded(figures.dropped_at),
        "back_from_second": rounded(figures.back_from),
        "back": comings.back,
        "not_back": figures.missing,
        "back_seconds": rounded(figures.back_seconds),
        "back_per_second": per_second(comings.back, figures.back_seconds),
        "back_latency_ms": Latency::of(&comings.latency),
        "refused": comings.refused,
        "recovered": comings.recovered,
        "recovered_messages": comings.recovered_messages,
        "messages_sent": tally.sent,
        "deliveries_expected": tally.expected,
        "deliveries_received": tally.received,
        "lost": tally.lost(),
        "duplicated": tally.duplicated,
        "out_of_order": tally.out_of_order,
        "connect_failures": tally.connect_failures,
        "connections_lost": tally.closed,
        "percentiles_ms": { "all": percentiles(&comings.latency) },
        "notices": tally.notices,
        "server": figures.server,
        "generator": figures.generator,
        "interval_seconds": INTERVAL_US as f64 / 1e6,
        "series": figures.series,
    })
}

fn table(arguments: &StormArguments, figures: &Figures) -> Table {
    let Figures { connect, tally, .. } = figures;
    let comings = &tally.comings;
    let mut table = Table::default();
    connection_rows(&mut table, arguments.common.connections, connect, tally);
    let accepts = per_second(connect.established, connect.established_seconds);
    table.row("accepted per second", grouped(accepts as u64));
    table.row("dropped at once", grouped(figures.left));
    let speed = grouped(per_second(comings.back, figures.back_seconds) as u64);
    table.row("all back", format!("{} in {:.2} s ({speed}/s)", grouped(comings.back), figures.back_seconds));
    if let Some(latency) = Latency::of(&comings.latency) {
        table.row("  until ready again", latency);
    }
    table.counts("refused, and tried again", &comings.refused);
    table.counts("came back", &comings.recovered);
    table.row("messages recovered", grouped(comings.recovered_messages));
    let received =
        format!("{} of {} expected", grouped(tally.received), grouped(tally.expected.max(0) as u64));
    table.row("messages received in all", received);
    let wrong = [tally.lost(), tally.duplicated, tally.out_of_order].map(grouped);
    table.row("lost / duplicated / out of order", wrong.join(" / "));
    if let Some(server) = &figures.server {
        table.row("server CPU", format!("{:.2} s", server.cpu_seconds));
        table.row("server resident memory", format!("{} bytes", grouped(server.resident_bytes)));
    }
    table.row("generator CPU", format!("{:.1} % of a core", figures.generator.cpu_percent));
    table.counts("server said", &tally.notices);
    table
}
