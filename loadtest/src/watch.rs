//! Looks at a run once a second: what happened, what the servers used; says so while it goes on.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::args::OutputArguments;
use crate::control::Control;
use crate::interval::{Gathered, Interval};
use crate::process;
use crate::report::{grouped, rounded};

/// Time for workers to hand over an interval that is over: they look up at least that often.
const HANDOVER_US: u64 = 30_000;

/// Most points of a series; of a longer run only the progress is told from then on.
const MAX_POINTS: usize = 100_000;

/// What happened in one interval, and how things stood at its end.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Its begin, in seconds since messages began to be sent (or since connections were begun).
    pub second: f64,
    /// Messages sent.
    pub sent: u64,
    /// Deliveries that arrived.
    pub delivered: u64,
    /// Connections that became ready.
    pub ready: u64,
    /// Connections that were refused, failed or lost.
    pub refused: u64,
    /// Half of the deliveries took at most so long.
    pub p50_ms: Option<f64>,
    /// 99 % of the deliveries took at most so long.
    pub p99_ms: Option<f64>,
    /// The slowest delivery.
    pub max_ms: Option<f64>,
    /// Connections open at the end.
    pub open: u64,
    /// Deliveries and acks expected and not here yet at the end.
    pub outstanding: i64,
    /// Deliveries lost or overtaken up to the end.
    pub missing: u64,
    /// CPU of the servers, in percent of one core.
    pub server_cpu_percent: Option<f64>,
    /// Resident memory of the servers at the end.
    pub server_resident_bytes: Option<u64>,
}

/// Watches a run.
pub struct Watch {
    control: Arc<Control>,
    pids: Vec<u32>,
    tells: bool,
    interval_us: u64,
    origin_us: u64,
    next_us: u64,
    /// The servers' CPU time so far, and when that was.
    cpu: Option<(f64, u64)>,
    sent: u64,
    gathered: Gathered,
    /// Connections open when the run ended; they are closed then.
    open_at_end: Option<u64>,
    points: Vec<Point>,
}

impl Watch {
    /// Watches from `origin_us` on, which is a time of the run, in intervals of `interval_us`.
    pub fn new(
        control: Arc<Control>,
        pids: &[u32],
        output: &OutputArguments,
        origin_us: u64,
        interval_us: u64,
    ) -> Self {
        let tells = !output.quiet && (!output.json || std::io::stderr().is_terminal());
        let mut watch = Self {
            control,
            pids: pids.to_vec(),
            tells,
            interval_us,
            origin_us,
            next_us: origin_us,
            cpu: None,
            sent: 0,
            gathered: Gathered::default(),
            open_at_end: None,
            points: Vec::new(),
        };
        watch.sample_cpu();
        watch
    }

    /// Watches until a time of the run.
    pub fn until(&mut self, time_us: u64) {
        self.until_or(time_us, || false);
    }

    /// Watches until a time of the run or until something holds.
    pub fn until_or(&mut self, time_us: u64, holds: impl Fn() -> bool) {
        const LOOK_EVERY: Duration = Duration::from_millis(5);
        while self.control.now_us() < time_us && !holds() {
            let due = self.next_us + self.interval_us + HANDOVER_US;
            if self.control.now_us() >= due {
                self.tick();
            }
            let left = time_us.min(due).saturating_sub(self.control.now_us());
            std::thread::sleep(LOOK_EVERY.min(Duration::from_micros(left)));
        }
    }

    /// Notes that the run is over: connections that are closed from now on are no part of it.
    pub fn end(&mut self) {
        self.open_at_end = Some(self.control.sum(|progress| &progress.open));
    }

    /// Gathers the rest, once the workers have ended; returns everything.
    pub fn finish(mut self) -> Vec<Point> {
        self.control.gather(&mut self.gathered);
        while self.gathered.last_start_us().is_some_and(|last| last >= self.next_us) {
            self.tick();
        }
        self.add_stragglers();
        self.points
    }

    fn tick(&mut self) {
        self.control.gather(&mut self.gathered);
        let interval = self.gathered.take(self.next_us);
        let point = self.point(&interval);
        self.next_us += self.interval_us;
        self.sent += point.sent;
        if self.tells && self.is_worth_telling(&point) {
            eprintln!("{}", self.line(&point));
        }
        if self.points.len() < MAX_POINTS {
            self.points.push(point);
        }
    }

    fn point(&mut self, interval: &Interval) -> Point {
        let latency = |quantile| interval.latency_ms(quantile).map(rounded);
        let server_cpu_percent = self.sample_cpu();
        let resident =
            || self.pids.iter().map(|pid| process::resident_bytes(*pid)).sum::<Result<u64, String>>();
        Point {
            second: rounded((interval.start_us as f64 - self.origin_us as f64) / 1e6),
            sent: interval.sent,
            delivered: interval.delivered,
            ready: interval.ready,
            refused: interval.refused,
            p50_ms: latency(0.5),
            p99_ms: latency(0.99),
            max_ms: latency(1.0),
            open: self.open_at_end.unwrap_or_else(|| self.control.sum(|progress| &progress.open)),
            outstanding: self.control.outstanding(),
            missing: self.control.sum(|progress| &progress.missing),
            server_cpu_percent,
            server_resident_bytes: if self.pids.is_empty() { None } else { resident().ok() },
        }
    }

    /// CPU of the servers since the last look; `None` without servers, or when one has ended.
    fn sample_cpu(&mut self) -> Option<f64> {
        if self.pids.is_empty() {
            return None;
        }
        let seconds =
            self.pids.iter().map(|pid| process::cpu_seconds(*pid)).sum::<Result<f64, String>>().ok()?;
        let now_us = self.control.now_us();
        let before = self.cpu.replace((seconds, now_us));
        let (earlier, since_us) = before.filter(|(_, since_us)| *since_us < now_us)?;
        Some(rounded((seconds - earlier) * 1e8 / (now_us - since_us) as f64))
    }

    /// Short intervals are told of where connections come, and once a second.
    fn is_worth_telling(&self, point: &Point) -> bool {
        let second = 1_000_000 / self.interval_us.clamp(1, 1_000_000);
        point.ready + point.refused > 0 || (self.points.len() as u64 + 1).is_multiple_of(second)
    }

    fn line(&self, point: &Point) -> String {
        let per_second =
            |number: u64| grouped((number as f64 * 1e6 / self.interval_us as f64).round() as u64);
        let end = point.second + self.interval_us as f64 / 1e6;
        let mut line = format!(
            "{end:>5.1} s  sent {}  {} deliveries/s",
            grouped(self.sent),
            per_second(point.delivered)
        );
        if let (Some(p50), Some(p99)) = (point.p50_ms, point.p99_ms) {
            line.push_str(&format!("  p50 {p50:.2}  p99 {p99:.2} ms"));
        }
        line.push_str(&format!("  lost {}", grouped(point.missing)));
        if point.ready + point.refused > 0 {
            line.push_str(&format!("  came {}  refused {}", grouped(point.ready), grouped(point.refused)));
        }
        if let (Some(cpu), Some(bytes)) = (point.server_cpu_percent, point.server_resident_bytes) {
            line.push_str(&format!("  server {cpu:.0} % CPU, {:.0} MB", bytes as f64 / 1e6));
        }
        line
    }

    /// Adds what workers handed over after the point of its time was made.
    fn add_stragglers(&mut self) {
        for (place, point) in self.points.iter_mut().enumerate() {
            let late = self.gathered.take(self.origin_us + place as u64 * self.interval_us);
            if late.is_empty() {
                continue;
            }
            point.sent += late.sent;
            point.delivered += late.delivered;
            point.ready += late.ready;
            point.refused += late.refused;
            // Of two sets of latencies that were not put together, the slower says more.
            let slower = |one: Option<f64>, quantile| one.max_of(late.latency_ms(quantile).map(rounded));
            point.p50_ms = slower(point.p50_ms, 0.5);
            point.p99_ms = slower(point.p99_ms, 0.99);
            point.max_ms = slower(point.max_ms, 1.0);
        }
    }
}

/// The larger of two figures that may be missing.
trait MaxOf {
    fn max_of(self, other: Self) -> Self;
}

impl MaxOf for Option<f64> {
    fn max_of(self, other: Self) -> Self {
        match (self, other) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        }
    }
}
