//! The thread that sends spans to OTLP_ENDPOINT, many at a time, and the clock that they are stamped by.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded};
use ureq::Agent;
use ureq::tls::TlsConfig;

use super::{Span, TraceCounts, Tracer, otlp};
use crate::accept::certificate::tls_of_calls;
use crate::config::TraceSettings;

/// Spans that wait for the thread: a second's worth at 4,096 sampled requests a second, some 2 MB.
const QUEUE: usize = 4096;

/// Spans of one request: a few hundred kB of JSON, well below what collectors take.
const BATCH: usize = 512;

/// Time for which the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// Time for one request. Whoever answers later is taken for gone.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after the first failure; it doubles with each one that follows.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Time for which the end of the process waits for the last spans.
const FAREWELL: Duration = Duration::from_secs(2);

/// The running exporter.
#[derive(Debug)]
pub struct Exporter {
    stop: Sender<()>,
    ended: Receiver<()>,
    _thread: JoinHandle<()>,
}

impl Exporter {
    /// Sends what has gathered, and ends the thread; it does not wait for a collector that does not answer.
    pub fn stop(self) {
        let _ = self.stop.try_send(());
        // Disconnected is what is waited for.
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

/// Starts the exporter for the instance of that name, if there is a collector.
///
/// # Errors
/// When the system gives no thread or no random numbers, or the authorities cannot be read that the collector's
/// certificate is checked against.
pub fn start(settings: &TraceSettings, instance: &str) -> io::Result<Option<(Arc<Tracer>, Exporter)>> {
    let Some(url) = settings.endpoint.clone() else { return Ok(None) };
    let tls = tls_of_calls(&url, "OTLP_CA_FILE", settings.ca_file.as_deref()).map_err(io::Error::other)?;
    let (spans, taken) = bounded(QUEUE);
    let counts = Arc::<TraceCounts>::default();
    let seed = getrandom::u64().map_err(io::Error::other)?;
    let tracer = Arc::new(Tracer::new(spans, counts.clone(), settings.sample, seed, unix_ns));
    let (stop, stopping) = bounded(1);
    let (ending, ended) = bounded::<()>(0);
    let exporter = ExporterThread {
        agent: agent(tls),
        url,
        instance: instance.to_owned(),
        counts,
        failures: 0,
        not_before: None,
    };
    let thread = std::thread::Builder::new().name("tf-traces".to_owned()).spawn(move || {
        let _ending = ending;
        exporter.run(&taken, &stopping);
    })?;
    Ok(Some((tracer, Exporter { stop, ended, _thread: thread })))
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

fn agent(tls: TlsConfig) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(None)
        .tls_config(tls)
        .user_agent(concat!("tableforge/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

struct ExporterThread {
    agent: Agent,
    url: String,
    instance: String,
    counts: Arc<TraceCounts>,
    /// In a row.
    failures: u32,
    /// The collector is left alone until then.
    not_before: Option<Instant>,
}

impl ExporterThread {
    fn run(mut self, spans: &Receiver<Span>, stopping: &Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let stops = gather(spans, stopping, &mut batch);
            if !batch.is_empty() {
                self.export(&batch);
                batch.clear();
            }
            if stops && spans.is_empty() {
                return;
            }
        }
    }

    /// Sends the spans, or drops them: while the collector is away the newest are no better than the oldest.
    fn export(&mut self, spans: &[Span]) {
        let resting = self.not_before.is_some_and(|until| Instant::now() < until);
        let outcome = if resting { Err(None) } else { self.post(spans).map_err(Some) };
        match outcome {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!("OTLP_ENDPOINT takes spans again");
                }
                (self.failures, self.not_before) = (0, None);
            }
            Err(reason) => {
                self.counts.dropped.fetch_add(spans.len() as u64, Relaxed);
                let Some(reason) = reason else { return };
                self.counts.failures.fetch_add(1, Relaxed);
                if self.failures == 0 {
                    tracing::warn!(
                        reason,
                        "OTLP_ENDPOINT does not take spans: they are dropped until it does"
                    );
                }
                let pause = PAUSE.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE);
                self.failures = self.failures.saturating_add(1);
                self.not_before = Some(Instant::now() + pause);
            }
        }
    }

    /// One request.
    ///
    /// # Errors
    /// What went wrong, for the log.
    fn post(&self, spans: &[Span]) -> Result<(), String> {
        let body = otlp::request(spans, &self.instance).to_string();
        let request = self.agent.post(&self.url).content_type("application/json");
        let response = request.send(body).map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        if (200..300).contains(&status) { Ok(()) } else { Err(format!("status {status}")) }
    }
}

/// Waits for spans until there are enough or the first has waited for long enough. True when it is time to end.
fn gather(spans: &Receiver<Span>, stopping: &Receiver<()>, batch: &mut Vec<Span>) -> bool {
    let mut until: Option<Instant> = None;
    while batch.len() < BATCH {
        let wait = until.map_or(GATHER, |until| until.saturating_duration_since(Instant::now()));
        crossbeam_channel::select! {
            recv(spans) -> span => match span {
                Ok(span) => {
                    until.get_or_insert_with(|| Instant::now() + GATHER);
                    batch.push(span);
                }
                Err(_) => return true,
            },
            recv(stopping) -> _ => {
                batch.extend(spans.try_iter().take(BATCH));
                return true;
            }
            default(wait) => {
                if until.is_some() {
                    return false;
                }
            }
        }
    }
    false
}
