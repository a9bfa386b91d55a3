//! `churn`: clients come and go while messages flow; those who stay must miss nothing, and those who come must miss
//! nothing from their first message on.

use serde_json::json;

use super::figures::report;
use super::traffic::{Sending, measure};
use super::{Features, plan};
use crate::args::ChurnArguments;
use crate::payloads::Mix;
use crate::report::Report;

/// Runs the scenario.
///
/// # Errors
/// The run could not be made; the text says why.
pub fn run(arguments: &ChurnArguments) -> Result<Report, String> {
    let ChurnArguments { common, traffic, .. } = arguments;
    let transients = arguments.transients.unwrap_or(common.room_size / 2);
    if transients == 0 || transients >= common.room_size {
        return Err(format!(
            "of rooms of {} members, {transients} would come and go: at least one has to, and one has to stay",
            common.room_size
        ));
    }
    let payloads = Mix::of_one_size(arguments.payload as usize);
    let features = Features {
        transients,
        churn_rate: arguments.churn_rate,
        ..Features::of(payloads, traffic.read_every_ms)
    };
    let figures = measure(common, plan(common, features)?, Sending::of(arguments.rate, traffic))?;
    let settings = vec![
        ("payload_bytes", json!(arguments.payload)),
        ("read_every_ms", json!(traffic.read_every_ms)),
        ("transients", json!(transients)),
        ("churn_rate", json!(arguments.churn_rate)),
    ];
    Ok(report("churn", common, settings, traffic.max_loss, &figures))
}
