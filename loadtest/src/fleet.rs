//! The workers of a run, as the coordinator sees them.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags};

use crate::control::{Control, Load};
use crate::plan::Plan;
use crate::tally::Tally;
use crate::worker::Worker;

/// How often the coordinator looks at the workers' progress.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// From the decision to send to the first message: every worker has noticed by then.
const LEAD_US: u64 = 100_000;

/// How the connections came up.
#[derive(Clone, Copy, Debug)]
pub struct ConnectFigures {
    /// Connections whose upgrade succeeded.
    pub established: u64,
    /// Connections that became ready.
    pub ready: u64,
    /// Seconds until the last upgrade.
    pub established_seconds: f64,
    /// Seconds until the last connection was ready.
    pub ready_seconds: f64,
}

/// The running workers.
pub struct Fleet {
    control: Arc<Control>,
    connections: u64,
    started_us: u64,
    workers: Vec<JoinHandle<Tally>>,
}

impl Fleet {
    /// Starts the workers; they begin to connect.
    ///
    /// # Errors
    /// The kernel refuses a thread or an epoll instance.
    pub fn start(plan: Plan) -> Result<Self, String> {
        let control = Arc::new(Control::new(plan.layout.rooms(), plan.workers));
        let plan = Arc::new(plan);
        let started_us = control.now_us();
        let workers = (0..plan.workers).map(|number| {
            let epoll = epoll::create(CreateFlags::CLOEXEC)
                .map_err(|error| format!("cannot create an epoll instance: {error}"))?;
            let (plan, control) = (plan.clone(), control.clone());
            let dialect = plan.language.dialect();
            std::thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn(move || Worker::new(number, plan, control, dialect, epoll).run())
                .map_err(|error| format!("cannot start a thread: {error}"))
        });
        let workers = workers.collect::<Result<Vec<_>, String>>()?;
        Ok(Self { control, connections: plan.layout.connections as u64, started_us, workers })
    }

    /// Waits until every connection is ready or has failed.
    pub fn wait_connected(&self) -> ConnectFigures {
        let control = &self.control;
        self.wait_until(u64::MAX, || {
            control.sum(|p| &p.ready) + control.sum(|p| &p.failed) == self.connections
        });
        self.connect_figures()
    }

    /// How the connections have come up so far.
    pub fn connect_figures(&self) -> ConnectFigures {
        let control = &self.control;
        let seconds = |time_us: u64| time_us.saturating_sub(self.started_us) as f64 / 1e6;
        ConnectFigures {
            established: control.sum(|p| &p.established),
            ready: control.sum(|p| &p.ready),
            established_seconds: seconds(control.max(|p| &p.last_established_us)),
            ready_seconds: seconds(control.max(|p| &p.last_ready_us)),
        }
    }

    /// Has the workers send at `rate` for `warmup` and then `measured`; returns when they will.
    pub fn start_load(&self, rate: f64, warmup: Duration, measured: Duration) -> Load {
        let start_us = self.control.now_us() + LEAD_US;
        let measured_from_us = start_us + warmup.as_micros() as u64;
        let end_us = measured_from_us + measured.as_micros() as u64;
        let load = Load { rate, start_us, measured_from_us, end_us };
        self.control.start_load(load);
        load
    }

    /// What the workers are told and tell.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Pings all open connections; returns how many are open and how many have answered within `limit`.
    pub fn ping_all(&self, limit: Duration) -> (u64, u64) {
        self.control.ping();
        let deadline = self.control.now_us() + limit.as_micros() as u64;
        let answered = || self.control.sum(|p| &p.pongs);
        let open = || self.control.sum(|p| &p.open);
        self.wait_until(deadline, || answered() >= open());
        (open(), answered())
    }

    /// Closes all connections; returns what all workers counted.
    ///
    /// # Errors
    /// A worker panicked.
    pub fn finish(self) -> Result<Tally, String> {
        self.control.stop();
        let mut total = Tally::new();
        for worker in self.workers {
            let tally = worker.join().map_err(|_| "a worker panicked, see above".to_owned())?;
            total.merge(&tally);
        }
        Ok(total)
    }

    /// Waits for a condition, until a time of the run, or until a worker has ended, which is a fault.
    fn wait_until(&self, deadline_us: u64, condition: impl Fn() -> bool) {
        let fault = || self.workers.iter().any(JoinHandle::is_finished);
        while !condition() && self.control.now_us() < deadline_us && !fault() {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
