//! What a soak can be told.

use std::path::PathBuf;

use clap::Args;

/// Options of `soak`.
#[derive(Clone, Debug, Args)]
pub struct SoakArguments {
    /// Minutes in which things go wrong; coming up and the quiet end are half a minute more
    #[arg(long, default_value_t = 1.0, value_parser = minutes)]
    pub minutes: f64,
    /// The server's program [default: `tableforge` beside this program]
    #[arg(long)]
    pub server: Option<PathBuf>,
    /// The seed that faults, clients and the rooms' limits come from [default: made up, and printed]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Clients
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(6..=2_000))]
    pub clients: u32,
    /// Rooms, five of eight of them with history
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    pub rooms: u32,
    /// Messages per second of all clients together
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub rate: u32,
    /// Shards of each instance
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub shards: u8,
    /// Kinds of faults, comma-separated [default: all]
    #[arg(long, value_delimiter = ',')]
    pub faults: Vec<String>,
    /// Where the processes' logs and, after a violation, the record of the run go [default: a temporary directory,
    /// which is removed when all is well]
    #[arg(long)]
    pub logs: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write a report with plots into this file; it needs no network and no script to be read
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the report's main plot into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Say nothing while it runs
    #[arg(long)]
    pub quiet: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number
        .filter(|number| (0.0..=1_440.0).contains(number))
        .ok_or_else(|| "must be a number of minutes from 0 to 1440".to_owned())
}
