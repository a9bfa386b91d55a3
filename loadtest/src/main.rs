//! Load generator for room servers: an open model, latency from the intended send time, every
//! delivery verified. Speaks to servers as any client does and shares no code with them.

mod args;
mod connection;
mod control;
mod credentials;
mod deflate;
mod dialect;
mod fleet;
mod frame;
mod handshake;
mod layout;
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
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Scenario};

/// Exit code of a run that found a fault.
const FAULTS_FOUND: u8 = 1;
/// Exit code when the run could not be made, the same as for a wrong command line.
const NO_RUN: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (outcome, json) = match &arguments.scenario {
        Scenario::Rooms(rooms) => (scenario::rooms::run(rooms), rooms.common.json),
        Scenario::Idle(idle) => (scenario::idle::run(idle), idle.common.json),
    };
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            eprintln!("loadtest: {error}");
            return ExitCode::from(NO_RUN);
        }
    };
    if json {
        println!("{}", report.json);
    } else {
        print!("{}", report.table);
    }
    report.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    report.problems.iter().for_each(|problem| eprintln!("FAILED: {problem}"));
    if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAULTS_FOUND) }
}
