//! One run from its beginning to its judgement.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use checker::CURRENT_WITHIN_MS;
use checker::record::Final;
use fastrand::Rng;

use crate::arguments::SoakArguments;
use crate::cluster::{Cluster, HOSTS, Shape, server_program, token};
use crate::control::{Ending, Order, Reins};
use crate::crowd::{Crowd, Plan};
use crate::fault::{Fault, KINDS};
use crate::report::{FaultFigures, Point, Report};
use crate::tally::Tally;
use crate::{Ms, finals, script};

/// Undisturbed time in which everything comes up.
const BEGINNING: Duration = Duration::from_secs(3);

/// Undisturbed time at the end in which everyone gathers and messages are still sent.
const GATHERING: Duration = Duration::from_secs(5);

/// Time after it without new messages: what is missing after that is lost.
const QUIET: Duration = Duration::from_secs(11);

/// A calm that shows losses in rooms without history, which are judged only after [`CURRENT_WITHIN_MS`].
const LONG_CALM: Duration = Duration::from_secs(12);

/// Of so many rounds one ends with a long calm.
const LONG_CALM_EVERY: u64 = 5;

/// Between two looks at the clients.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Between two lines that say how it goes.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Runs a soak.
///
/// # Errors
/// It could not be made, for a reason that is not the server's; the text says why.
pub fn run(arguments: &SoakArguments) -> Result<Report, String> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000_000));
    let mut random = Rng::with_seed(seed);
    let kinds = kinds(&arguments.faults)?;
    let (directory, is_own) = directory(arguments.logs.as_deref(), seed)?;
    let shape = Shape {
        server: server_program(arguments.server.as_deref())?,
        directory: directory.clone(),
        shards: arguments.shards,
        history_size: random.u32(30..1_000),
        history_ttl_ms: random.u32(5_000..300_000),
    };
    let (history_size, history_ttl_ms) = (shape.history_size, shape.history_ttl_ms);
    let cluster = Cluster::start(shape)?;
    let start = Instant::now();
    let plan = Plan {
        start,
        clients: arguments.clients,
        rooms: arguments.rooms,
        rate: arguments.rate,
        ports: cluster.ports.clone(),
        seed: random.u64(..),
        token,
    };
    let (reins, bit) = Reins::new();
    let crowd = thread::spawn(move || Crowd::new(plan).live(&bit));
    let mut run = Run {
        cluster,
        reins,
        random,
        kinds,
        start,
        until: start + Duration::from_secs_f64(arguments.minutes * 60.0),
        quiet: arguments.quiet,
        said: start,
        rooms: arguments.rooms,
        found: Found::default(),
    };
    run.say(&format!("seed {seed}, rooms keep {history_size} messages for {history_ttl_ms} ms"));
    let finals = run.live();
    let tally = run.reins.state().tally;
    run.reins.order(Order::Finish(finals));
    let ending =
        crowd.join().map_err(|_| "the clients' thread has panicked; its message is above".to_owned())?;
    let Found { faults, skipped, script, series, recoveries, mut problems, .. } = run.found;
    keep_log(&ending, &directory, &mut problems);
    problems.extend(ending.wrong_counts);
    let report = Report {
        seed,
        seconds: start.elapsed().as_secs_f64(),
        history_size,
        history_ttl_ms,
        counts: tally,
        faults,
        skipped_faults: skipped,
        violations: ending.violations.iter().map(ToString::to_string).collect(),
        problems,
        script,
        series,
        recoveries,
    };
    if is_own && report.is_good() {
        let _ = fs::remove_dir_all(&directory);
    }
    Ok(report)
}

fn kinds(asked: &[String]) -> Result<Vec<&'static str>, String> {
    let known = |asked: &String| {
        let found = KINDS.into_iter().find(|kind| kind == asked);
        found.ok_or_else(|| format!("no kind of fault is called {asked}; there are {}", KINDS.join(", ")))
    };
    if asked.is_empty() { Ok(KINDS.to_vec()) } else { asked.iter().map(known).collect() }
}

/// Where the logs go, and whether that is to be removed.
fn directory(asked: Option<&Path>, seed: u64) -> Result<(PathBuf, bool), String> {
    let own = || std::env::temp_dir().join(format!("tableforge-soak-{}-{seed}", std::process::id()));
    let directory = asked.map_or_else(own, Path::to_owned);
    fs::create_dir_all(&directory).map_err(|why| format!("{}: {why}", directory.display()))?;
    Ok((directory, asked.is_none()))
}

fn keep_log(ending: &Ending, directory: &Path, problems: &mut Vec<String>) {
    if !ending.violations.is_empty() {
        let path = directory.join("records.log");
        match fs::write(&path, ending.log.join("\n")) {
            Ok(()) => problems.push(format!("what happened is in {}", path.display())),
            Err(why) => problems.push(format!("{}: {why}", path.display())),
        }
    }
}

struct Run {
    cluster: Cluster,
    reins: Reins,
    random: Rng,
    kinds: Vec<&'static str>,
    start: Instant,
    until: Instant,
    quiet: bool,
    said: Instant,
    rooms: u32,
    found: Found,
}

/// What goes into the report, as far as the run has come.
#[derive(Default)]
struct Found {
    faults: BTreeMap<String, FaultFigures>,
    skipped: u64,
    script: Vec<(Ms, String)>,
    series: Vec<Point>,
    /// What the points of the series have counted.
    counted: Tally,
    recoveries: Vec<(f64, Ms)>,
    problems: Vec<String>,
}

impl Run {
    /// Faults, and then the end; the histories, unless something went wrong before.
    fn live(&mut self) -> Option<Vec<Final>> {
        if !self.wait(BEGINNING) {
            return None;
        }
        let mut rounds = 0;
        while Instant::now() < self.until {
            rounds += 1;
            if let Err(why) = self.round(rounds) {
                self.found.problems.push(why);
                return None;
            }
            if self.is_broken() {
                return None;
            }
        }
        self.say("no more faults; everyone gathers");
        self.reins.order(Order::Gather);
        if !self.wait(GATHERING) {
            return None;
        }
        self.reins.order(Order::Hush);
        if !self.wait(QUIET) {
            return None;
        }
        self.reins.order(Order::CountMembers);
        self.wait(Duration::from_secs(1));
        self.histories().map_err(|why| self.found.problems.push(why)).ok()
    }

    /// The histories, which must be the same at all instances.
    fn histories(&mut self) -> Result<Vec<Final>, String> {
        let mut all = Vec::new();
        for host in 0..HOSTS {
            let read = finals::read(self.cluster.ports[host], self.rooms);
            all.push(read.map_err(|why| format!("the histories of instance i{host}: {why}"))?);
        }
        for (host, of_host) in all.iter().enumerate().skip(1) {
            for (one, first) in of_host.iter().zip(&all[0]) {
                // Messages grow too old while the instances are read.
                let from = one.messages.first().map_or(0, |(offset, _)| *offset);
                let same = first.messages.iter().skip_while(|(offset, _)| *offset < from);
                if one.position != first.position || !one.messages.iter().eq(same) {
                    let room = one.room;
                    self.found
                        .problems
                        .push(format!("{room}: instances i0 and i{host} give different histories"));
                }
            }
        }
        Ok(all.swap_remove(0))
    }

    /// A fault, or two at once, and the calm after it.
    fn round(&mut self, number: u64) -> Result<(), String> {
        let faults = self.draw();
        self.say(&format!("{faults:?}"));
        self.reins.order(Order::FaultsBegin);
        let mut begun = Vec::new();
        for fault in &faults {
            let at = self.start.elapsed().as_millis() as Ms;
            if script::begin(*fault, &mut self.cluster, &self.reins, &begun)? {
                begun.push(*fault);
                self.found.script.push((at, format!("{fault:?}")));
                self.found.faults.entry(fault.kind().to_owned()).or_default().number += 1;
            } else {
                self.found.skipped += 1;
            }
            thread::sleep(Duration::from_millis(self.random.u64(..300)));
        }
        let lasts = begun.iter().map(|fault| fault.lasts()).max().unwrap_or(0);
        self.wait(Duration::from_millis(lasts));
        for fault in &begun {
            script::end(*fault, &mut self.cluster)?;
        }
        self.reins.order(Order::FaultsEnd);
        self.await_current(&begun);
        self.cluster.await_ready()?;
        let calm = match number % LONG_CALM_EVERY {
            0 => LONG_CALM,
            _ => Duration::from_millis(self.random.u64(500..3_000)),
        };
        self.wait(calm.min(self.until.saturating_duration_since(Instant::now())));
        Ok(())
    }

    fn draw(&mut self) -> Vec<Fault> {
        let mut one = || {
            let kind = self.kinds[self.random.usize(..self.kinds.len())];
            Fault::of_kind(kind, &mut self.random).expect("kinds are checked")
        };
        let (first, second) = (one(), one());
        if first.hits() != second.hits() && self.random.u8(..10) < 3 {
            vec![first, second]
        } else {
            vec![first]
        }
    }

    /// Waits until all members are current, and notes how long that took.
    fn await_current(&mut self, faults: &[Fault]) {
        let healed = Instant::now();
        loop {
            let state = self.reins.state();
            if let Some(current_ms) = state.current_ms {
                for fault in faults {
                    self.found.faults.entry(fault.kind().to_owned()).or_default().current_ms.push(current_ms);
                }
                let over = healed.duration_since(self.start).as_secs_f64();
                self.found.recoveries.push((over, current_ms));
                return;
            }
            if healed.elapsed().as_millis() as u64 > CURRENT_WITHIN_MS {
                let waiting = state.waiting;
                self.found.problems.push(format!(
                    "members of rooms that are not current {CURRENT_WITHIN_MS} ms after {faults:?}: {waiting:?}"
                ));
                return;
            }
            if !self.wait(LOOK_EVERY) {
                return;
            }
        }
    }

    fn is_broken(&self) -> bool {
        !self.found.problems.is_empty() || self.reins.state().violations > 0
    }

    /// Waits so long, and says how it goes; whether nothing is broken.
    fn wait(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.count();
            if self.is_broken() {
                return false;
            }
            if self.said.elapsed() > SAY_EVERY {
                let state = self.reins.state();
                let (tally, open) = (state.tally, state.open);
                self.say(&format!(
                    "{open} clients open, {} sent, {} acknowledged, {} deliveries, {} recovered, {} violations",
                    tally.sent, tally.acked, tally.deliveries, tally.recovered, state.violations
                ));
            }
            thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
        !self.is_broken()
    }

    /// Adds a point to the series for each second that is over. One that nobody looked at in time has what came with
    /// the next.
    fn count(&mut self) {
        let over = self.start.elapsed().as_secs();
        while (self.found.series.len() as u64) < over {
            let state = self.reins.state();
            let (now, before) = (&state.tally, &self.found.counted);
            self.found.series.push(Point {
                second: self.found.series.len() as f64,
                sent: now.sent - before.sent,
                acked: now.acked - before.acked,
                delivered: now.deliveries - before.deliveries,
                open: state.open as u64,
            });
            self.found.counted = state.tally;
        }
    }

    fn say(&mut self, text: &str) {
        self.said = Instant::now();
        if !self.quiet {
            eprintln!("{:>7.1} s  {text}", self.start.elapsed().as_secs_f64());
        }
    }
}
