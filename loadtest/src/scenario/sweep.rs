//! `sweep`: the highest rate at which the p99 stays within a goal and nothing is lost.

use serde_json::{Value, json};

use super::figures::problems;
use super::traffic::{Figures, Sending, measure};
use super::{Features, plan};
use crate::args::SweepArguments;
use crate::origin::origin;
use crate::payloads::Mix;
use crate::report::{Latency, Report, Table, grouped, rounded};

/// Share of the deliveries due in the measured time that have to arrive in it.
const IN_TIME: f64 = 0.98;

/// The state of the search: doubled until a rate is not reached, then halved in between (as ratios).
#[derive(Debug, Default)]
struct Search {
    reached: Option<f64>,
    missed: Option<f64>,
}

impl Search {
    fn note(&mut self, rate: f64, reached: bool) {
        *(if reached { &mut self.reached } else { &mut self.missed }) = Some(rate);
    }

    /// The rate to try next; `None` when the search is over.
    fn next(&self, arguments: &SweepArguments) -> Option<f64> {
        match (self.reached, self.missed) {
            (None, None) => Some(arguments.first_rate),
            (Some(reached), None) if reached >= arguments.last_rate => None,
            (Some(reached), None) => Some((reached * 2.0).min(arguments.last_rate)),
            // A server that cannot do one message per second has no rate.
            (None, Some(missed)) => Some(missed / 2.0).filter(|rate| *rate >= 1.0),
            (Some(reached), Some(missed)) => {
                (missed / reached > arguments.precision).then(|| (missed * reached).sqrt())
            }
        }
    }
}

/// One attempt at a rate.
struct Step {
    rate: f64,
    reached: bool,
    /// Why not.
    reason: String,
    figures: Figures,
}

/// Runs the scenario.
///
/// # Errors
/// A run could not be made; the text says why.
pub fn run(arguments: &SweepArguments) -> Result<Report, String> {
    let (mut search, mut steps) = (Search::default(), Vec::new());
    while let Some(rate) = search.next(arguments) {
        let mut reached = false;
        for _ in 0..arguments.attempts {
            let step = step(arguments, rate, steps.len())?;
            reached = step.reached;
            eprintln!("{}", line(&step));
            steps.push(step);
            if reached {
                break;
            }
        }
        search.note(rate, reached);
    }
    Ok(report(arguments, &steps))
}

fn step(arguments: &SweepArguments, rate: f64, number: usize) -> Result<Step, String> {
    let common = &arguments.common;
    let payloads = Mix::of_one_size(arguments.payload as usize);
    let mut plan = plan(common, Features::of(payloads, arguments.traffic.read_every_ms))?;
    // Rooms of its own: what an overloaded server still delivers of the step before is not for this one.
    plan.rooms.iter_mut().for_each(|room| room.push_str(&format!("-s{number}")));
    let figures = measure(common, plan, Sending::of(rate, &arguments.traffic))?;
    let reason = reason(arguments, &figures);
    Ok(Step { rate, reached: reason.is_none(), reason: reason.unwrap_or_default(), figures })
}

/// Why a rate was not reached; `None` if it was.
fn reason(arguments: &SweepArguments, figures: &Figures) -> Option<String> {
    if let Some(problem) = problems(arguments.traffic.max_loss, &figures.tally).into_iter().next() {
        return Some(problem);
    }
    if figures.tally.refused.total() > 0 {
        return Some(format!("{} messages were refused", grouped(figures.tally.refused.total())));
    }
    let expected = figures.tally.expected as f64 / figures.tally.sent.max(1) as f64 * figures.sending.rate;
    if figures.deliveries_per_second() < IN_TIME * expected {
        return Some(format!(
            "{} deliveries/s of {}",
            whole(figures.deliveries_per_second()),
            whole(expected)
        ));
    }
    let p99 = Latency::of(&figures.tally.latency).map_or(f64::INFINITY, |latency| latency.p99);
    (p99 > arguments.p99_ms).then(|| format!("p99 {p99:.1} ms"))
}

fn whole(number: f64) -> String {
    grouped(number.round() as u64)
}

fn line(step: &Step) -> String {
    let Step { figures, .. } = step;
    let latency =
        Latency::of(&figures.tally.latency).map_or_else(|| "nothing arrived".to_owned(), |l| l.to_string());
    let verdict = if step.reached { "reached".to_owned() } else { format!("not reached: {}", step.reason) };
    let server = figures.server.as_ref().map(|server| format!("  server {:.0} % CPU", server.cpu_percent));
    format!(
        "{} messages/s, {} deliveries/s: {verdict}  {latency}{}  generator {:.0} % CPU",
        whole(step.rate),
        whole(figures.deliveries_per_second()),
        server.unwrap_or_default(),
        figures.generator.cpu_percent
    )
}

fn step_json(step: &Step) -> Value {
    let Step { rate, reached, reason, figures } = step;
    json!({
        "rate": rate,
        "reached": reached,
        "reason": reason,
        "deliveries_per_second": rounded(figures.deliveries_per_second()),
        "lost": figures.tally.lost(),
        "latency_ms": Latency::of(&figures.tally.latency),
        "send_lag_ms": Latency::of(&figures.tally.send_lag),
        "server": figures.server,
        "generator": figures.generator,
    })
}

fn report(arguments: &SweepArguments, steps: &[Step]) -> Report {
    let common = &arguments.common;
    let best = steps.iter().filter(|step| step.reached).max_by(|one, other| one.rate.total_cmp(&other.rate));
    let failed = steps.iter().filter(|step| !step.reached);
    let is_bound = failed.clone().any(|step| step.figures.generator.saturated);
    let mut warnings = Vec::new();
    if is_bound {
        warnings.push(
            "the generator was at its limit in a rate that was not reached: the server may do more (try \
             --threads or --read-every-ms 5)"
                .to_owned(),
        );
    }
    let mut problems = Vec::new();
    match best {
        None => problems.push("no rate was reached".to_owned()),
        Some(best) if best.rate >= arguments.last_rate => {
            warnings.push("--last-rate was reached: the server may do more".to_owned());
        }
        Some(_) => {}
    }
    let json = json!({
        "scenario": "sweep",
        "origin": origin(),
        "servers": common.url.len(),
        "connections": common.connections,
        "room_size": common.room_size,
        "payload_bytes": arguments.payload,
        "read_every_ms": arguments.traffic.read_every_ms,
        "duration_seconds": arguments.traffic.duration.as_secs_f64(),
        "warmup_seconds": arguments.traffic.warmup.as_secs_f64(),
        "p99_goal_ms": arguments.p99_ms,
        "precision": arguments.precision,
        "highest_rate": best.map(|step| step.rate),
        "highest_deliveries_per_second": best.map(|step| rounded(step.figures.deliveries_per_second())),
        "latency_ms": best.and_then(|step| Latency::of(&step.figures.tally.latency)),
        "server": best.and_then(|step| step.figures.server.clone()),
        "generator_bound": is_bound,
        "steps": steps.iter().map(step_json).collect::<Vec<_>>(),
        "problems": problems,
        "warnings": warnings,
        "passed": problems.is_empty(),
    });
    Report { json, table: table(arguments, steps, best), problems, warnings }
}

fn table(arguments: &SweepArguments, steps: &[Step], best: Option<&Step>) -> Table {
    let mut table = Table::default();
    table.row("goal", format!("p99 within {} ms, nothing lost", arguments.p99_ms));
    for step in steps {
        table.row(
            &format!("{} messages/s", whole(step.rate)),
            line(step).split_once(": ").map_or("", |(_, rest)| rest),
        );
    }
    if let Some(best) = best {
        table.row("highest rate", format!("{} messages/s", whole(best.rate)));
        table.row("  deliveries", format!("{} per second", whole(best.figures.deliveries_per_second())));
        if let Some(server) = &best.figures.server {
            table.row("  server CPU", format!("{:.1} % of a core", server.cpu_percent));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Scenario};
    use clap::Parser;

    fn arguments(line: &str) -> SweepArguments {
        match Arguments::parse_from(format!("loadtest sweep {line}").trim().split(' ')).scenario {
            Scenario::Sweep(sweep) => sweep,
            _ => unreachable!("the line says sweep"),
        }
    }

    /// The rates that a server is asked for which can do `limit`, and the highest reached.
    fn rates(arguments: &SweepArguments, limit: f64) -> (Vec<f64>, Option<f64>) {
        let (mut search, mut rates) = (Search::default(), Vec::new());
        while let Some(rate) = search.next(arguments) {
            rates.push(rate);
            search.note(rate, rate <= limit);
        }
        (rates, search.reached)
    }

    #[test]
    fn rates_are_doubled_and_then_halved_in_between() {
        let arguments = arguments("--first-rate 100 --precision 1.2");
        let (tried, reached) = rates(&arguments, 500.0);
        assert_eq!(tried[..4], [100.0, 200.0, 400.0, 800.0]);
        let reached = reached.unwrap();
        assert!((500.0 / 1.2..=500.0).contains(&reached), "{reached} of {tried:?}");
    }

    #[test]
    fn the_search_goes_down_too_and_ends_at_its_limits() {
        let up_to = arguments("--first-rate 100 --last-rate 1000");
        assert_eq!(rates(&up_to, 1e9).1, Some(1_000.0));
        let (_, reached) = rates(&up_to, 30.0);
        assert!((30.0 / 1.1 - 1.0..=30.0).contains(&reached.unwrap()), "{reached:?}");
        let (tried, reached) = rates(&up_to, 0.0);
        assert_eq!((tried.len(), reached), (7, None));
    }
}
