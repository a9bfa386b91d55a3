//! What all scenarios do that send by a schedule: connect, send, settle, and measure meanwhile.

use std::time::Duration;

use super::nothing_connected;
use crate::args::{CommonArguments, TrafficArguments};
use crate::fleet::{ConnectFigures, Fleet};
use crate::plan::Plan;
use crate::process;
use crate::report::{GeneratorFigures, grouped};
use crate::servers::{CpuReading, ServerFigures};
use crate::tally::Tally;
use crate::watch::{Point, Watch};

/// How fast and how long messages are sent.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Messages per second in total.
    pub rate: f64,
    /// Before anything is measured.
    pub warmup: Duration,
    /// The measured time.
    pub duration: Duration,
    /// Longest wait for what is outstanding at the end.
    pub settle: Duration,
}

impl Sending {
    /// As the command line says.
    pub fn of(rate: f64, traffic: &TrafficArguments) -> Self {
        Self {
            rate,
            warmup: traffic.warmup,
            duration: traffic.duration,
            settle: Duration::from_millis(traffic.settle_ms),
        }
    }
}

/// What was measured.
pub struct Figures {
    /// How fast messages were sent, and for how long.
    pub sending: Sending,
    /// How the connections came up.
    pub connect: ConnectFigures,
    /// What was counted.
    pub tally: Tally,
    /// What the generator used.
    pub generator: GeneratorFigures,
    /// What the servers used; `None` without their process numbers.
    pub server: Option<ServerFigures>,
    /// Second by second.
    pub series: Vec<Point>,
}

impl Figures {
    /// Deliveries per second of the measured time.
    pub fn deliveries_per_second(&self) -> f64 {
        self.tally.measured_deliveries as f64 / self.sending.duration.as_secs_f64()
    }
}

/// Makes the run.
///
/// # Errors
/// It could not be made; the text says why.
pub fn measure(common: &CommonArguments, plan: Plan, sending: Sending) -> Result<Figures, String> {
    let (threads, interval_us) = (plan.workers, plan.interval_us);
    CpuReading::take(&common.pid)?;
    let fleet = Fleet::start(plan)?;
    let connect = fleet.wait_connected();
    if connect.ready == 0 {
        return Err(nothing_connected(&fleet.finish()?));
    }
    let seconds = sending.duration.as_secs_f64();
    eprintln!(
        "{} connections ready in {:.2} s; sending {} messages/s for {seconds} s",
        grouped(connect.ready),
        connect.ready_seconds,
        sending.rate,
    );
    let load = fleet.start_load(sending.rate, sending.warmup, sending.duration);
    let control = fleet.control().clone();
    let mut watch = Watch::new(control.clone(), &common.pid, &common.output, load.start_us, interval_us);
    watch.until(load.measured_from_us);
    let (server_before, own_before) = (CpuReading::take(&common.pid)?, process::own_cpu());
    watch.until(load.end_us);
    let own_used = (process::own_cpu() - own_before).as_secs_f64();
    // Read before the run settles: what the server does afterwards is not part of the measured time.
    let server = server_before.since(seconds)?;
    watch.until_or(load.end_us + sending.settle.as_micros() as u64, || control.settled());
    watch.end();
    let tally = fleet.finish()?;
    let series = watch.finish();
    let server = server.map(|figures| figures.per_delivery(tally.measured_deliveries));
    let generator = GeneratorFigures::new(own_used, seconds, threads);
    Ok(Figures { sending, connect, tally, generator, server, series })
}
