//! The command line.

mod scenarios;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

pub use self::scenarios::{
    ChurnArguments, CompareArguments, GameNightArguments, StormArguments, SweepArguments, TrafficArguments,
};
use crate::dialect::Language;
use crate::payloads;
use crate::target::Target;

/// Load generator for room servers: sends by a fixed schedule, whatever the server does, and verifies
/// every delivery. Exit code 0: all is well; 1: something was lost, refused a connection or went
/// wrong (the report says what); 2: the run could not be made.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Scenario {
    /// Members of rooms send messages to each other; every delivery is verified.
    Rooms(RoomsArguments),
    /// Silent connections: what they cost in memory, and that they stay open.
    Idle(IdleArguments),
    /// All clients connect, drop at once and come back: how long it takes, and that nothing is missed.
    Storm(StormArguments),
    /// Looks for the highest rate within a goal for the p99, with nothing lost.
    Sweep(SweepArguments),
    /// Clients come and go while messages flow; those who stay miss nothing.
    Churn(ChurnArguments),
    /// Many small rooms with rates of their own, messages of several sizes, and some who come and go.
    GameNight(GameNightArguments),
    /// Starts three instances and Redis, does faults to them, and checks that every promise is kept.
    Soak(soak::SoakArguments),
    /// Puts two results side by side; exit code 1 if a figure became worse.
    Compare(CompareArguments),
}

/// Where the report goes.
#[derive(Debug, Args)]
pub struct OutputArguments {
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// Write a report with plots into this file; it needs no network and no script to be read
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the report's main plot into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// No progress on standard error (with --json there is some only if that is a terminal)
    #[arg(long)]
    pub quiet: bool,
}

/// Options of all scenarios.
#[derive(Debug, Args)]
pub struct CommonArguments {
    /// Address of a server; several times for several, which share the connections of every room
    #[arg(long, default_value = "ws://127.0.0.1:3001/ws")]
    pub url: Vec<Target>,
    /// What the servers speak
    #[arg(long, value_enum, default_value_t = Language::Tableforge)]
    pub dialect: Language,
    /// Offer permessage-deflate, and compress messages on the connections that agree to it
    #[arg(long)]
    pub deflate: bool,
    /// Name the room in the address, so that a connection is in it without asking (dialect tableforge)
    #[arg(long)]
    pub join_by_url: bool,
    /// Connections in all
    #[arg(long, default_value_t = 1_000, value_parser = at_least_one)]
    pub connections: usize,
    /// Members of each room; the last room may have fewer
    #[arg(long, default_value_t = 50, value_parser = at_least_one)]
    pub room_size: usize,
    /// Beginning of the rooms' names; generators that run at the same time need different ones
    #[arg(long, default_value = "load", value_parser = room_prefix)]
    pub room_prefix: String,
    /// Token that all connections authenticate with (servers limit the connections of one user)
    #[arg(long, conflicts_with = "secret")]
    pub token: Option<String>,
    /// HS256 secret to make a token for each connection with; `sub` is `load-N`
    #[arg(long)]
    pub secret: Option<String>,
    /// Connections that may be under way at once [default: 256; storm: 1,000]
    #[arg(long, value_parser = at_least_one)]
    pub in_flight: Option<usize>,
    /// Connections to begin per second [default: as fast as --in-flight allows]
    #[arg(long, value_parser = positive)]
    pub connect_rate: Option<f64>,
    /// Seconds for a connection to become ready, the join included
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub connect_timeout: Duration,
    /// Source addresses 127.0.0.1, .2, … to connect from [default: one for every 10,000 connections
    /// to a server, and the kernel's choice if that is one]
    #[arg(long, value_parser = at_least_one)]
    pub source_addresses: Option<usize>,
    /// Threads of the generator
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub threads: usize,
    /// Process of a server, to report its CPU and memory; may be given several times
    #[arg(long)]
    pub pid: Vec<u32>,
    /// Seed of payloads, masks and the order of senders
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the report goes.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Options of `rooms`.
#[derive(Debug, Args)]
pub struct RoomsArguments {
    /// Options of all scenarios.
    #[command(flatten)]
    pub common: CommonArguments,
    /// Messages per second in total, over all rooms
    #[arg(long, default_value_t = 200.0, value_parser = positive)]
    pub rate: f64,
    /// Bytes of the data in each message (at least about 45, for what is verified)
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(..=payloads::MAX_BYTES))]
    pub payload: u64,
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
    /// Senders ask for an ack with a messageId, and its latency is reported too
    #[arg(long)]
    pub ack: bool,
    /// Read only so often while sending, which saves the generator's CPU and adds to all latencies; 0
    /// reads whatever is ready at once
    #[arg(long, default_value_t = 0)]
    pub read_every_ms: u64,
}

/// Options of `idle`.
#[derive(Debug, Args)]
pub struct IdleArguments {
    /// Options of all scenarios.
    #[command(flatten)]
    pub common: CommonArguments,
    /// Whether each connection joins a room
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    pub join: bool,
    /// Seconds to hold the connections before memory is measured
    #[arg(long, default_value = "10", value_parser = some_seconds)]
    pub hold: Duration,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "must be a whole number from 1".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number
        .filter(|number| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "must be a number above 0".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: Option<f64> = text.parse().ok();
    number
        .filter(|number| (0.0..=86_400.0).contains(number))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "must be a number of seconds from 0 to 86400".to_owned())
}

fn some_seconds(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| match time.is_zero() {
        true => Err("must be more than 0 seconds: nothing can be measured in no time".to_owned()),
        false => Ok(time),
    })
}

fn room_prefix(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    if (1..=100).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 100 characters of A-Z a-z 0-9 _ . : -".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn several_servers_and_processes_may_be_named() {
        let line = "loadtest rooms --url ws://127.0.0.1:1/ws --url ws://127.0.0.1:2/ws --pid 1 --pid 2";
        let Scenario::Rooms(rooms) = Arguments::parse_from(line.split(' ')).scenario else { panic!() };
        assert_eq!((rooms.common.url.len(), rooms.common.pid), (2, vec![1, 2]));
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
            "--rate 0",
            "--rate nan",
            "--duration -1",
            "--duration 0",
            "--connections 0",
            "--room-prefix a/b",
            "--url x",
            "--dialect smoke-signals",
        ] {
            let line = format!("loadtest rooms {wrong}");
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{wrong}");
        }
    }
}
