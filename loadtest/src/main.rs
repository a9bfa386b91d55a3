//! Load generator for room servers: an open model, latency from the intended send time, every
//! delivery verified. Speaks to servers as any client does and shares no code with them.

mod args;
mod chart;
mod compare;
mod connection;
mod control;
mod credentials;
mod deflate;
mod dialect;
mod fleet;
mod frame;
mod handshake;
mod html;
mod interval;
mod layout;
mod origin;
mod payloads;
mod plan;
mod process;
mod report;
mod scenario;
mod schedule;
mod servers;
mod stamp;
mod tally;
mod target;
mod verify;
mod watch;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, OutputArguments, Scenario};
use crate::report::Report;

/// Exit code of a run that found a fault.
const FAULTS_FOUND: u8 = 1;
/// Exit code when the run could not be made, the same as for a wrong command line.
const NO_RUN: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let soaked;
    let (outcome, output) = match &arguments.scenario {
        Scenario::Rooms(rooms) => (scenario::rooms::run(rooms), &rooms.common.output),
        Scenario::Idle(idle) => (scenario::idle::run(idle), &idle.common.output),
        Scenario::Storm(storm) => (scenario::storm::run(storm), &storm.common.output),
        Scenario::Sweep(sweep) => (scenario::sweep::run(sweep), &sweep.common.output),
        Scenario::Churn(churn) => (scenario::churn::run(churn), &churn.common.output),
        Scenario::GameNight(night) => (scenario::game_night::run(night), &night.common.output),
        Scenario::Soak(soak) => {
            soaked = scenario::soak::output(soak);
            (scenario::soak::run(soak), &soaked)
        }
        Scenario::Compare(compare) => (compare::run(compare), &compare.output),
    };
    let report = match outcome.and_then(|report| write_files(&report, output).map(|()| report)) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("loadtest: {error}");
            return ExitCode::from(NO_RUN);
        }
    };
    if output.json {
        println!("{}", report.json);
    } else {
        print!("{}", report.table);
    }
    report.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    report.problems.iter().for_each(|problem| eprintln!("FAILED: {problem}"));
    if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAULTS_FOUND) }
}

/// Writes the files that were asked for.
///
/// # Errors
/// One cannot be written; the text names it.
fn write_files(report: &Report, output: &OutputArguments) -> Result<(), String> {
    let files = [(&output.html, html::page(report)), (&output.svg, html::main_plot(report))];
    for (path, text) in files {
        if let Some(path) = path {
            std::fs::write(path, text)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
    }
    Ok(())
}
