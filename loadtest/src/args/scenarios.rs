//! The options of the scenarios that build on `rooms`, and of `compare`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{CommonArguments, OutputArguments, at_least_one, positive, seconds, some_seconds};
use crate::payloads::{MAX_BYTES, Mix};

/// Options of how long messages are sent, and of what is put up with.
#[derive(Debug, Args)]
pub struct TrafficArguments {
    /// Seconds to measure
    #[arg(long, default_value = "10", value_parser = some_seconds)]
    pub duration: Duration,
    /// Seconds to send before measuring
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub warmup: Duration,
    /// Longest wait at the end for deliveries that are still outstanding; the rest counts as lost
    #[arg(long, default_value_t = 5_000)]
    pub settle_ms: u64,
    /// Lost deliveries to put up with
    #[arg(long, default_value_t = 0)]
    pub max_loss: u64,
    /// Read only so often while sending, which saves the generator's CPU and adds to all latencies; 0
    /// reads whatever is ready at once
    #[arg(long, default_value_t = 0)]
    pub read_every_ms: u64,
}

/// Options of `storm`.
#[derive(Debug, Args)]
pub struct StormArguments {
    /// Options of all scenarios.
    #[command(flatten)]
    pub common: CommonArguments,
    /// Messages that the first member of each room, who stays, sends while the others are away; with 0 nobody stays
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=100))]
    pub missed: u32,
    /// Seconds that clients are away
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub away: Duration,
    /// Seconds for all clients to be ready at first, and to be back
    #[arg(long, default_value = "60", value_parser = some_seconds)]
    pub within: Duration,
}

/// Options of `sweep`.
#[derive(Debug, Args)]
pub struct SweepArguments {
    /// Options of all scenarios.
    #[command(flatten)]
    pub common: CommonArguments,
    /// The most that the p99 of a rate may be for it to count as reached, in milliseconds
    #[arg(long, default_value_t = 50.0, value_parser = positive)]
    pub p99_ms: f64,
    /// Messages per second to begin with
    #[arg(long, default_value_t = 500.0, value_parser = positive)]
    pub first_rate: f64,
    /// Messages per second to stop at
    #[arg(long, default_value_t = 1_000_000.0, value_parser = positive)]
    pub last_rate: f64,
    /// The search ends when the lowest rate not reached is at most so many times the highest reached
    #[arg(long, default_value_t = 1.1, value_parser = above_one)]
    pub precision: f64,
    /// Attempts at a rate before it counts as not reached
    #[arg(long, default_value_t = 2, value_parser = at_least_one)]
    pub attempts: usize,
    /// Bytes of the data in each message
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(..=MAX_BYTES))]
    pub payload: u64,
    /// How long each step sends.
    #[command(flatten)]
    pub traffic: TrafficArguments,
}

/// Options of `churn`.
#[derive(Debug, Args)]
pub struct ChurnArguments {
    /// Options of all scenarios.
    #[command(flatten)]
    pub common: CommonArguments,
    /// Messages per second in total, sent by the members who stay
    #[arg(long, default_value_t = 200.0, value_parser = positive)]
    pub rate: f64,
    /// Bytes of the data in each message
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(..=MAX_BYTES))]
    pub payload: u64,
    /// Clients per second that leave and come back at once; every other one vanishes without a close frame
    #[arg(long, default_value_t = 50.0, value_parser = positive)]
    pub churn_rate: f64,
    /// Members of each room who come and go [default: half of the room]
    #[arg(long, value_parser = at_least_one)]
    pub transients: Option<usize>,
    /// How long messages are sent.
    #[command(flatten)]
    pub traffic: TrafficArguments,
}

/// Options of `game-night`.
#[derive(Debug, Args)]
#[command(
    mut_arg("connections", |argument| argument.default_value("2000")),
    mut_arg("room_size", |argument| argument.default_value("5"))
)]
pub struct GameNightArguments {
    /// Options of all scenarios.
    #[command(flatten)]
    pub common: CommonArguments,
    /// Messages per second of the quietest room; each room has a rate of its own
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub lowest_rate: u32,
    /// Messages per second of the liveliest room
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub highest_rate: u32,
    /// Bytes of the data in messages, each size with its share: BYTES:SHARE,BYTES:SHARE
    #[arg(long, default_value = "64:50,128:30,512:15,2048:4,8192:1")]
    pub payloads: Mix,
    /// Clients per second that leave and come back at once; 0 for none
    #[arg(long, default_value_t = 10.0, value_parser = not_negative)]
    pub churn_rate: f64,
    /// Members of each room who come and go, and do not send
    #[arg(long, default_value_t = 1)]
    pub transients: usize,
    /// How long messages are sent.
    #[command(flatten)]
    pub traffic: TrafficArguments,
}

/// Options of `compare`.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// The result to compare with: a file that --json wrote
    pub before: PathBuf,
    /// The result to judge
    pub after: PathBuf,
    /// How much worse a figure may be, in percent
    #[arg(long, default_value_t = 10.0, value_parser = not_negative)]
    pub tolerance: f64,
    /// Where the comparison goes.
    #[command(flatten)]
    pub output: OutputArguments,
}

fn above_one(text: &str) -> Result<f64, String> {
    let number = positive(text)?;
    if number > 1.0 { Ok(number) } else { Err("must be a number above 1".to_owned()) }
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number
        .filter(|number| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| "must be a number from 0".to_owned())
}
