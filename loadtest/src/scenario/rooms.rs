//! `rooms`: members of rooms send messages to each other, and every delivery is verified.

use std::time::Duration;

use serde_json::json;

use super::figures::report;
use super::traffic::{Sending, measure};
use super::{Features, plan};
use crate::args::RoomsArguments;
use crate::payloads::Mix;
use crate::report::Report;

/// Runs the scenario.
///
/// # Errors
/// The run could not be made; the text says why.
pub fn run(arguments: &RoomsArguments) -> Result<Report, String> {
    let payloads = Mix::of_one_size(arguments.payload as usize);
    let features =
        Features { acknowledged: arguments.ack, ..Features::of(payloads, arguments.read_every_ms) };
    let sending = Sending {
        rate: arguments.rate,
        warmup: arguments.warmup,
        duration: arguments.duration,
        settle: Duration::from_millis(arguments.settle_ms),
    };
    let figures = measure(&arguments.common, plan(&arguments.common, features)?, sending)?;
    let settings =
        vec![("payload_bytes", json!(arguments.payload)), ("read_every_ms", json!(arguments.read_every_ms))];
    Ok(report("rooms", &arguments.common, settings, arguments.max_loss, &figures))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Scenario};
    use clap::Parser;

    #[test]
    fn acks_are_not_asked_of_a_dialect_without_them() {
        let line = "loadtest rooms --dialect plain --ack";
        let Scenario::Rooms(arguments) = Arguments::parse_from(line.split(' ')).scenario else { panic!() };
        assert!(run(&arguments).err().is_some_and(|text| text.contains("--dialect tableforge")));
    }
}
