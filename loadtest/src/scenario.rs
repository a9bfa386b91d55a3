//! The scenarios, and what they share: the plan made of the command line, and the problems to look for.

pub mod churn;
mod figures;
pub mod game_night;
pub mod idle;
pub mod rooms;
pub mod soak;
pub mod storm;
pub mod sweep;
mod traffic;

use std::time::Duration;

use crate::args::CommonArguments;
use crate::credentials::Credentials;
use crate::fleet::ConnectFigures;
use crate::layout::Layout;
use crate::payloads::{Mix, Payloads};
use crate::plan::{Plan, Turns};
use crate::process;
use crate::report::{Table, grouped};
use crate::tally::Tally;
use crate::target::Sources;

/// What a scenario adds to the options of all.
struct Features {
    join: bool,
    payloads: Mix,
    acknowledged: bool,
    read_interval: Duration,
    /// Members of each room who come and go.
    transients: usize,
    churn_rate: f64,
    turns: Turns,
    /// Connections under way at once, where the options do not say.
    in_flight: usize,
}

impl Features {
    /// All connections join and stay; those who send share it evenly.
    fn of(payloads: Mix, read_every_ms: u64) -> Self {
        Self {
            join: true,
            payloads,
            acknowledged: false,
            read_interval: Duration::from_millis(read_every_ms),
            transients: 0,
            churn_rate: 0.0,
            turns: Turns::Equal,
            in_flight: IN_FLIGHT,
        }
    }
}

/// Connections under way at once: enough that neither the server nor the generator waits for the other, few enough not to
/// overflow an accept queue.
const IN_FLIGHT: usize = 256;

/// Length of the intervals of a series, in microseconds.
const INTERVAL_US: u64 = 1_000_000;

/// The plan for the options given.
///
/// # Errors
/// This machine cannot make so many connections, or the dialect has no acks; the text says why.
fn plan(common: &CommonArguments, features: Features) -> Result<Plan, String> {
    if features.acknowledged && !common.dialect.has_acks() {
        return Err("--ack needs --dialect tableforge: the others have no acks".to_owned());
    }
    process::allow_connections(common.connections)?;
    let servers = common.url.len();
    let Features { transients, .. } = features;
    let layout = Layout { connections: common.connections, room_size: common.room_size, servers, transients };
    let per_server = common.connections.div_ceil(servers);
    Ok(Plan {
        targets: common.url.clone(),
        language: common.dialect,
        sources: Sources::new(&common.url, per_server, common.source_addresses)?,
        layout,
        rooms: (0..layout.rooms()).map(|room| format!("{}-{room}", common.room_prefix)).collect(),
        credentials: Credentials::new(common.token.clone(), common.secret.as_deref()),
        join: features.join,
        deflate: common.deflate,
        join_by_url: common.join_by_url,
        connect_rate: common.connect_rate,
        connect_timeout: common.connect_timeout,
        handshakes: common.in_flight.unwrap_or(features.in_flight),
        payloads: Payloads::new(&features.payloads, common.seed),
        turns: features.turns,
        churn_rate: features.churn_rate,
        resume: false,
        round_messages: 0,
        interval_us: INTERVAL_US,
        acknowledged: features.acknowledged,
        read_interval: features.read_interval,
        seed: common.seed,
        workers: common.threads.min(common.connections),
    })
}

/// Says why no connection came up at all.
fn nothing_connected(tally: &Tally) -> String {
    let reasons: Vec<String> =
        tally.connect_failures.iter().map(|(reason, number)| format!("{reason} ({number} times)")).collect();
    format!("no connection became ready: {}", reasons.join("; "))
}

fn per_second(number: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { (number as f64 / seconds).round() } else { 0.0 }
}

/// What is wrong with the connections of a run.
fn connection_problems(tally: &Tally) -> Vec<String> {
    let counts = [(&tally.connect_failures, "failed to connect"), (&tally.closed, "were lost")];
    let bad = counts.iter().filter(|(counts, _)| counts.total() > 0);
    bad.map(|(counts, what)| format!("{} connections {what}", grouped(counts.total()))).collect()
}

/// The rows of the table that are about connections.
fn connection_rows(table: &mut Table, asked: usize, connect: &ConnectFigures, tally: &Tally) {
    table.row(
        "connections",
        format!(
            "{} of {} ready in {:.2} s ({}/s)",
            grouped(connect.ready),
            grouped(asked as u64),
            connect.ready_seconds,
            grouped(per_second(connect.ready, connect.ready_seconds) as u64)
        ),
    );
    table.counts("  failed", &tally.connect_failures);
    table.counts("  lost", &tally.closed);
}
