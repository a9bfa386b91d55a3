//! `game-night`: many small rooms, each with a rate of its own, messages of several sizes, some members who come and
//! go, and everybody told of them.

use serde_json::json;

use super::figures::report;
use super::traffic::{Sending, measure};
use super::{Features, plan};
use crate::args::GameNightArguments;
use crate::plan::Turns;
use crate::report::{Report, rounded};

/// Runs the scenario.
///
/// # Errors
/// The run could not be made; the text says why.
pub fn run(arguments: &GameNightArguments) -> Result<Report, String> {
    let GameNightArguments { common, traffic, lowest_rate, highest_rate, .. } = arguments;
    if lowest_rate > highest_rate {
        return Err(format!("--lowest-rate {lowest_rate} is above --highest-rate {highest_rate}"));
    }
    if arguments.transients >= common.room_size {
        return Err(format!(
            "with --transients {} nobody of a room of {} would stay",
            arguments.transients, common.room_size
        ));
    }
    let features = Features {
        transients: arguments.transients,
        churn_rate: if arguments.transients > 0 { arguments.churn_rate } else { 0.0 },
        turns: Turns::PerRoom(*lowest_rate, *highest_rate),
        ..Features::of(arguments.payloads.clone(), traffic.read_every_ms)
    };
    let plan = plan(common, features)?;
    let rooms = 0..plan.layout.rooms();
    let rate: u32 = rooms.map(|room| plan.turns.of_room(room, common.room_size, plan.seed)).sum();
    let figures = measure(common, plan, Sending::of(rate.into(), traffic))?;
    let settings = vec![
        ("payloads", json!(arguments.payloads.to_string())),
        ("payload_bytes", json!(rounded(arguments.payloads.mean_bytes()))),
        ("read_every_ms", json!(traffic.read_every_ms)),
        ("rooms", json!(common.connections.div_ceil(common.room_size))),
        ("room_rate_lowest", json!(lowest_rate)),
        ("room_rate_highest", json!(highest_rate)),
        ("transients", json!(arguments.transients)),
        ("churn_rate", json!(arguments.churn_rate)),
    ];
    Ok(report("game-night", common, settings, traffic.max_loss, &figures))
}
