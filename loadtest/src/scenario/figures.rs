//! What a run with messages found: problems, warnings, JSON and table.

use serde_json::{Map, Value, json};

use super::traffic::Figures;
use super::{connection_problems, connection_rows, per_second};
use crate::args::CommonArguments;
use crate::layout::PRESENCE_MEMBERS;
use crate::origin::origin;
use crate::report::{GeneratorFigures, Latency, Report, Table, grouped, percentiles, rounded};
use crate::tally::Tally;

/// A generator this late with one message in a hundred does not keep its schedule, in milliseconds.
const LATE_MS: f64 = 10.0;

/// What was asked for, beside the options of all scenarios: names and values of JSON fields.
pub type Settings = Vec<(&'static str, Value)>;

/// The report of a run.
pub fn report(
    name: &str,
    common: &CommonArguments,
    settings: Settings,
    max_loss: u64,
    figures: &Figures,
) -> Report {
    let (problems, warnings) = (problems(max_loss, &figures.tally), warnings(figures));
    let mut json = json(name, common, figures);
    json.extend(settings.into_iter().map(|(name, value)| (name.to_owned(), value)));
    json.insert("problems".to_owned(), json!(problems));
    json.insert("warnings".to_owned(), json!(warnings));
    json.insert("passed".to_owned(), json!(problems.is_empty()));
    Report { json: Value::Object(json), table: table(common, figures), problems, warnings }
}

/// What is wrong with a run.
pub fn problems(max_loss: u64, tally: &Tally) -> Vec<String> {
    let mut problems = connection_problems(tally);
    let lost_too_many = if tally.lost() > max_loss { tally.lost() } else { 0 };
    let faults = [
        (lost_too_many, "deliveries were lost"),
        (tally.comings.lost, "deliveries were lost to members who come and go, while they were there"),
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

/// What makes the figures of a run doubtful.
pub fn warnings(figures: &Figures) -> Vec<String> {
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
    if figures.tally.comings.skipped > 0 {
        warnings.push(format!(
            "{} times a client that should have left was not there yet: --churn-rate is more than these \
             clients can do",
            grouped(figures.tally.comings.skipped)
        ));
    }
    warnings
}

fn json(name: &str, common: &CommonArguments, figures: &Figures) -> Map<String, Value> {
    let Figures { connect, tally, generator, server, sending, series } = figures;
    let Value::Object(mut json) = json!({
        "scenario": name,
        "origin": origin(),
        "servers": common.url.len(),
        "connections": common.connections,
        "room_size": common.room_size,
        "rate": sending.rate,
        "warmup_seconds": sending.warmup.as_secs_f64(),
        "duration_seconds": sending.duration.as_secs_f64(),
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
        "deliveries_per_second": rounded(figures.deliveries_per_second()),
        "bytes_per_delivery": tally.bytes_per_delivery().map(rounded),
        "lost": tally.lost(),
        "duplicated": tally.duplicated,
        "out_of_order": tally.out_of_order,
        "unexpected": tally.unexpected,
        "malformed": tally.malformed,
        "latency_ms": Latency::of(&tally.latency),
        "latency_local_ms": Latency::of(&tally.latency_local),
        "latency_cross_ms": Latency::of(&tally.latency_cross),
        "acks_received": tally.acks,
        "acks_missing": tally.acks_awaited,
        "ack_latency_ms": Latency::of(&tally.ack_latency),
        "send_lag_ms": Latency::of(&tally.send_lag),
        "percentiles_ms": {
            "all": percentiles(&tally.latency),
            "local": percentiles(&tally.latency_local),
            "cross": percentiles(&tally.latency_cross),
            "ack": percentiles(&tally.ack_latency),
        },
        "notices": tally.notices,
        "pings_answered": tally.pings_answered,
        "server": server,
        "generator": generator,
        "interval_seconds": 1.0,
        "series": series,
    }) else {
        unreachable!("the literal is an object")
    };
    let has_churn = tally.comings.left > 0;
    json.insert("churn".to_owned(), if has_churn { comings(common, tally) } else { Value::Null });
    json
}

fn comings(common: &CommonArguments, tally: &Tally) -> Value {
    let comings = &tally.comings;
    let tells_each = common.room_size <= PRESENCE_MEMBERS;
    json!({
        "left": comings.left,
        "back": comings.back,
        "skipped": comings.skipped,
        "back_latency_ms": Latency::of(&comings.latency),
        "deliveries_received": comings.received,
        "lost": comings.lost,
        "presence_received": comings.presence_received,
        "presence_expected": tells_each.then_some(comings.presence_expected),
    })
}

fn table(common: &CommonArguments, figures: &Figures) -> Table {
    let Figures { connect, tally, generator, server, .. } = figures;
    let mut table = Table::default();
    connection_rows(&mut table, common.connections, connect, tally);
    table.row("messages sent", grouped(tally.sent));
    if tally.unsent > 0 {
        table.row("  not sent", grouped(tally.unsent));
    }
    table.counts("  refused", &tally.refused);
    table.counts("  uncertain", &tally.uncertain);
    let received =
        format!("{} of {} expected", grouped(tally.received), grouped(tally.expected.max(0) as u64));
    table.row("deliveries", received);
    table.row("deliveries per second", grouped(figures.deliveries_per_second().round() as u64));
    let wrong = [tally.lost(), tally.duplicated, tally.out_of_order].map(grouped);
    table.row("lost / duplicated / out of order", wrong.join(" / "));
    if tally.unexpected + tally.malformed > 0 {
        let wrong = [tally.unexpected, tally.malformed].map(grouped);
        table.row("unexpected / malformed", wrong.join(" / "));
    }
    for (label, histogram) in [
        ("latency", &tally.latency),
        ("  within one server", &tally.latency_local),
        ("  across servers", &tally.latency_cross),
        ("ack latency", &tally.ack_latency),
        ("late sends", &tally.send_lag),
    ] {
        if let Some(latency) = Latency::of(histogram) {
            table.row(label, latency);
        }
    }
    coming_rows(&mut table, common, tally);
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

fn coming_rows(table: &mut Table, common: &CommonArguments, tally: &Tally) {
    let comings = &tally.comings;
    if comings.left == 0 {
        return;
    }
    table.row("left / came back", format!("{} / {}", grouped(comings.left), grouped(comings.back)));
    if let Some(latency) = Latency::of(&comings.latency) {
        table.row("  until ready again", latency);
    }
    table.row("  deliveries to those who come and go", grouped(comings.received));
    table.row("  lost while they were there", grouped(comings.lost));
    let told = grouped(comings.presence_received);
    let told = match common.room_size <= PRESENCE_MEMBERS {
        true => format!("{told} of {} expected", grouped(comings.presence_expected)),
        false => told,
    };
    table.row("  joins and leaves told to those who stay", told);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_fails_a_run_and_loss_only_above_what_is_allowed() {
        let mut tally = Tally::new();
        (tally.expected, tally.received) = (10, 10);
        assert!(problems(0, &tally).is_empty());
        tally.received = 8;
        assert_eq!(problems(0, &tally), ["2 deliveries were lost"]);
        assert!(problems(2, &tally).is_empty());

        let faults: [fn(&mut Tally); 8] = [
            |tally| tally.duplicated = 1,
            |tally| tally.out_of_order = 1,
            |tally| tally.unexpected = 1,
            |tally| tally.malformed = 1,
            |tally| tally.unsent = 1,
            |tally| tally.acks_awaited = -1,
            |tally| tally.comings.lost = 1,
            |tally| tally.closed.add("reset"),
        ];
        for (number, plant) in faults.iter().enumerate() {
            let mut tally = Tally::new();
            plant(&mut tally);
            assert_eq!(problems(0, &tally).len(), 1, "fault {number}");
        }
    }

    #[test]
    fn refused_sends_are_reported_but_no_fault() {
        let mut tally = Tally::new();
        tally.refused.add("rate_limited");
        assert!(problems(0, &tally).is_empty());
    }
}
