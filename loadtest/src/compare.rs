//! `compare`: two results side by side, and whether the second is worse.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::args::CompareArguments;
use crate::report::{Report, Table, rounded};

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    Less,
    More,
}

/// A figure of results: where it stands, what it is called, and from which difference on it counts at all.
struct Measure {
    pointer: &'static str,
    name: &'static str,
    better: Better,
    /// Smaller differences are chance whatever they are in percent.
    matters_from: f64,
    /// Whether any more of it is worse: faults have no tolerance.
    is_fault: bool,
}

const fn measure(pointer: &'static str, name: &'static str, better: Better, matters_from: f64) -> Measure {
    Measure { pointer, name, better, matters_from, is_fault: false }
}

const fn fault(pointer: &'static str, name: &'static str) -> Measure {
    Measure { pointer, name, better: Better::Less, matters_from: 0.0, is_fault: true }
}

/// Smallest difference of latencies that counts, in milliseconds: a scheduler's whim is as long.
const LATENCY: f64 = 0.1;

/// Everything that is compared, where both results have it.
const MEASURES: [Measure; 33] = [
    fault("/lost", "lost"),
    fault("/duplicated", "duplicated"),
    fault("/out_of_order", "out of order"),
    fault("/unexpected", "unexpected"),
    fault("/malformed", "malformed"),
    fault("/messages_unsent", "messages not sent"),
    fault("/acks_missing", "acks missing"),
    fault("/churn/lost", "lost to those who come and go"),
    fault("/not_back", "clients not back"),
    measure("/highest_rate", "highest rate, messages/s", Better::More, 0.0),
    measure("/highest_deliveries_per_second", "deliveries/s at the highest rate", Better::More, 0.0),
    measure("/deliveries_per_second", "deliveries/s", Better::More, 0.0),
    measure("/latency_ms/p50", "latency p50, ms", Better::Less, LATENCY),
    measure("/latency_ms/p90", "latency p90, ms", Better::Less, LATENCY),
    measure("/latency_ms/p99", "latency p99, ms", Better::Less, LATENCY),
    measure("/latency_ms/p999", "latency p99.9, ms", Better::Less, LATENCY),
    measure("/latency_local_ms/p99", "p99 within one server, ms", Better::Less, LATENCY),
    measure("/latency_cross_ms/p99", "p99 across servers, ms", Better::Less, LATENCY),
    measure("/ack_latency_ms/p50", "ack p50, ms", Better::Less, LATENCY),
    measure("/ack_latency_ms/p99", "ack p99, ms", Better::Less, LATENCY),
    measure("/bytes_per_delivery", "bytes per delivery", Better::Less, 0.5),
    measure("/server/cpu_us_per_delivery", "server CPU per delivery, µs", Better::Less, 0.01),
    measure("/server/cpu_percent", "server CPU, % of a core", Better::Less, 1.0),
    measure("/server/cpu_seconds", "server CPU, s", Better::Less, 0.05),
    measure("/server/resident_bytes", "server resident memory, bytes", Better::Less, 1e6),
    measure("/resident_bytes_per_connection", "resident bytes per connection", Better::Less, 10.0),
    measure("/connects_per_second", "connected and joined per second", Better::More, 0.0),
    measure("/accepts_per_second", "accepted per second", Better::More, 0.0),
    measure("/back_seconds", "all back, s", Better::Less, 0.05),
    measure("/back_latency_ms/p50", "back p50, ms", Better::Less, 10.0),
    measure("/back_latency_ms/p99", "back p99, ms", Better::Less, 10.0),
    measure("/churn/back_latency_ms/p99", "ready again p99, ms", Better::Less, 1.0),
    measure("/send_lag_ms/p99", "generator's own lateness p99, ms", Better::Less, f64::INFINITY),
];

/// Settings that make two results different things.
const SETTINGS: [&str; 16] = [
    "servers",
    "connections",
    "room_size",
    "rate",
    "payload_bytes",
    "payloads",
    "duration_seconds",
    "read_every_ms",
    "join",
    "churn_rate",
    "transients",
    "room_rate_lowest",
    "room_rate_highest",
    "missed_messages",
    "in_flight",
    "p99_goal_ms",
];

/// How two figures compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Better,
    Worse,
}

impl Measure {
    fn is_speed_of_connecting(&self) -> bool {
        ["/connects_per_second", "/accepts_per_second"].contains(&self.pointer)
    }

    /// The change in percent (`None` from nothing to something), and what it means.
    fn judge(&self, before: f64, after: f64, tolerance: f64) -> (Option<f64>, Verdict) {
        let change = match (before, after) {
            (before, after) if before == after => Some(0.0),
            (0.0, _) => None,
            (before, after) => Some((after - before) / before.abs() * 100.0),
        };
        let is_less = after < before;
        let is_good = is_less == (self.better == Better::Less);
        if self.is_fault {
            let verdict = if after == before {
                Verdict::Same
            } else if is_good {
                Verdict::Better
            } else {
                Verdict::Worse
            };
            return (change, verdict);
        }
        let is_small = (after - before).abs() <= self.matters_from
            || change.is_some_and(|change| change.abs() <= tolerance);
        let verdict = match (after == before || is_small, is_good) {
            (true, _) => Verdict::Same,
            (false, true) => Verdict::Better,
            (false, false) => Verdict::Worse,
        };
        (change, verdict)
    }
}

/// Reads both results and compares them.
///
/// # Errors
/// A file cannot be read, is no result, or the results are of different scenarios; the text says which.
pub fn run(arguments: &CompareArguments) -> Result<Report, String> {
    let (before, after) = (read(&arguments.before)?, read(&arguments.after)?);
    if before["scenario"] != after["scenario"] {
        return Err(format!(
            "{} is of {} and {} of {}: only results of the same scenario can be compared",
            arguments.before.display(),
            before["scenario"],
            arguments.after.display(),
            after["scenario"]
        ));
    }
    Ok(compare(&before, &after, arguments.tolerance))
}

fn read(path: &Path) -> Result<Value, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let json: Value = serde_json::from_str(&text).map_err(|error| format!("{shown} is not JSON: {error}"))?;
    match json["scenario"].as_str() {
        None | Some("compare") => {
            Err(format!("{shown} is not the result of a scenario: write one with --json"))
        }
        Some(_) => Ok(json),
    }
}

fn compare(before: &Value, after: &Value, tolerance: f64) -> Report {
    let (mut table, mut figures, mut problems) = (Table::default(), Vec::new(), Vec::new());
    table.row("", format!("{:>14}  {:>14}  {:>9}", "before", "after", "change"));
    for measure in &MEASURES {
        let number = |result: &Value| result.pointer(measure.pointer).and_then(Value::as_f64);
        let (Some(old), Some(new)) = (number(before), number(after)) else { continue };
        if measure.is_speed_of_connecting() && (is_small(before) || is_small(after)) {
            continue;
        }
        let (change, verdict) = measure.judge(old, new, tolerance);
        let shown = change.map_or_else(|| "from none".to_owned(), |change| format!("{change:+.1} %"));
        let word = match verdict {
            Verdict::Same => "",
            Verdict::Better => "  better",
            Verdict::Worse => "  WORSE",
        };
        table.row(measure.name, format!("{:>14}  {:>14}  {shown:>9}{word}", figure(old), figure(new)));
        if verdict == Verdict::Worse {
            problems.push(format!("{}: {} → {} ({shown})", measure.name, figure(old), figure(new)));
        }
        figures.push(json!({
            "name": measure.name,
            "field": measure.pointer.trim_start_matches('/').replace('/', "."),
            "before": old,
            "after": new,
            "change_percent": change.map(rounded),
            "verdict": match verdict { Verdict::Same => "same", Verdict::Better => "better", Verdict::Worse => "worse" },
        }));
    }
    let mut warnings: Vec<String> = SETTINGS
        .iter()
        .filter(|name| before[**name] != after[**name])
        .map(|name| format!("{name} differs: {} and {}", before[*name], after[*name]))
        .collect();
    for (side, result) in [("before", before), ("after", after)] {
        if result["passed"] == false {
            warnings.push(format!("the run {side} had failed: {}", result["problems"]));
        }
        if result.pointer("/generator/saturated") == Some(&Value::Bool(true)) {
            warnings.push(format!("in the run {side} the generator was at its limit"));
        }
    }
    if figures.is_empty() {
        problems.push("the results have no figure in common".to_owned());
    }
    let json = json!({
        "scenario": "compare",
        "of": after["scenario"],
        "tolerance_percent": tolerance,
        "figures": figures,
        "before": plotted(before),
        "after": plotted(after),
        "problems": problems,
        "warnings": warnings,
        "passed": problems.is_empty(),
    });
    Report { json, table, problems, warnings }
}

/// Whether a result has so few connections that how fast they came up is chance.
fn is_small(result: &Value) -> bool {
    const FEWEST: u64 = 1_000;
    result["connections"].as_u64().is_none_or(|connections| connections < FEWEST)
}

/// What plots need of a result.
fn plotted(result: &Value) -> Value {
    json!({
        "origin": result["origin"],
        "percentiles_ms": result["percentiles_ms"],
        "interval_seconds": result["interval_seconds"],
        "series": result["series"],
    })
}

/// A figure with as many decimals as it is worth.
fn figure(number: f64) -> String {
    match number.abs() {
        whole if whole == number.abs().trunc() && whole < 1e15 => {
            let sign = if number < 0.0 { "-" } else { "" };
            format!("{sign}{}", crate::report::grouped(whole as u64))
        }
        large if large >= 1_000.0 => crate::report::grouped(number.round() as u64),
        middle if middle >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(p99: f64, per_second: f64, lost: u64) -> Value {
        json!({
            "scenario": "rooms", "rate": 100, "lost": lost, "passed": true,
            "deliveries_per_second": per_second, "latency_ms": {"p50": 1.0, "p99": p99},
        })
    }

    #[test]
    fn the_same_twice_is_no_worse() {
        let report = compare(&result(5.0, 900.0, 0), &result(5.0, 900.0, 0), 0.0);
        assert!(report.problems.is_empty() && report.warnings.is_empty(), "{:?}", report.problems);
        assert_eq!(report.json["figures"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn what_is_worse_by_more_than_the_tolerance_is_named() {
        let before = result(5.0, 900.0, 0);
        let worse = |after: &Value| compare(&before, after, 10.0).problems;
        assert!(worse(&result(5.4, 820.0, 0)).is_empty());
        assert_eq!(worse(&result(6.0, 900.0, 0)), ["latency p99, ms: 5 → 6 (+20.0 %)"]);
        assert_eq!(worse(&result(5.0, 700.0, 0)), ["deliveries/s: 900 → 700 (-22.2 %)"]);
        assert!(worse(&result(0.5, 5_000.0, 0)).is_empty());
    }

    #[test]
    fn faults_have_no_tolerance() {
        assert_eq!(
            compare(&result(5.0, 900.0, 0), &result(5.0, 900.0, 1), 1e9).problems,
            ["lost: 0 → 1 (from none)"]
        );
        assert!(compare(&result(5.0, 900.0, 3), &result(5.0, 900.0, 1), 0.0).problems.is_empty());
    }

    #[test]
    fn tiny_latencies_differ_by_chance() {
        let judge = |before, after| {
            let p99 = MEASURES.iter().find(|measure| measure.pointer == "/latency_ms/p99").unwrap();
            p99.judge(before, after, 10.0).1
        };
        assert_eq!(judge(0.10, 0.19), Verdict::Same);
        assert_eq!(judge(0.10, 0.30), Verdict::Worse);
        assert_eq!(judge(0.30, 0.10), Verdict::Better);
    }

    #[test]
    fn different_settings_are_told() {
        let mut other = result(5.0, 900.0, 0);
        other["rate"] = json!(200);
        let warnings = compare(&result(5.0, 900.0, 0), &other, 10.0).warnings;
        assert_eq!(warnings, ["rate differs: 100 and 200"]);
    }
}
