//! The threads that ask: each takes a question, looks into the cache, calls the application and answers the shard.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use ureq::Agent;

use super::breaker::Breaker;
use super::cache::Cache;
use super::{Question, Verdict, answer};
use crate::accept::certificate::{CertificateError, tls_of_calls};
use crate::config::AuthorizationSettings;
use crate::limits;
use crate::metrics::AuthorizationCells;
use crate::shard::envelope::Envelope;
use crate::shard::outlet::Waker;

/// A shard's queue for verdicts, and what wakes it.
pub type Answers = (Sender<Envelope>, Arc<Waker>);

/// Milliseconds after which a client may try again when there was no answer in time.
const RETRY_MS: u64 = 1000;

/// What the threads share. It is never locked during a call.
struct Memory {
    cache: Cache,
    breaker: Breaker,
}

/// One of the threads.
#[derive(Clone)]
struct Asker {
    agent: Agent,
    url: String,
    bearer: Option<String>,
    timeout_ms: u64,
    memory: Arc<Mutex<Memory>>,
    cells: Arc<AuthorizationCells>,
    shards: Vec<Answers>,
    started: Instant,
}

/// Starts the threads, which end when the last sender of questions has gone. `shards` has one entry per shard,
/// `started` is the zero of [`Question::asked_ms`].
///
/// # Errors
/// When the authorities cannot be read that the application's certificate is checked against.
///
/// # Panics
/// When no thread can be started.
pub fn start(
    settings: &AuthorizationSettings,
    cells: Arc<AuthorizationCells>,
    shards: Vec<Answers>,
    started: Instant,
) -> Result<Sender<Question>, CertificateError> {
    let (ask, questions) = bounded(limits::AUTHORIZE_QUEUE);
    let tls = tls_of_calls(&settings.url, "AUTHORIZE_CA_FILE", settings.ca_file.as_deref())?;
    // A redirect or a proxy from the environment would send users' names where nobody has configured it.
    let agent = Agent::config_builder()
        .timeout_global(Some(settings.timeout))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(None)
        .tls_config(tls)
        .max_idle_connections_per_host(settings.concurrency)
        .user_agent(concat!("tableforge/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let memory = Memory {
        cache: Cache::new(settings.cache_ttl.as_millis() as u64, limits::AUTHORIZE_CACHE),
        breaker: Breaker::new(limits::AUTHORIZE_FAILURES, settings.retry_pause.as_millis() as u64),
    };
    let asker = Asker {
        agent,
        url: settings.url.clone(),
        bearer: settings.secret.as_ref().map(|secret| format!("Bearer {secret}")),
        timeout_ms: settings.timeout.as_millis() as u64,
        memory: Arc::new(Mutex::new(memory)),
        cells,
        shards,
        started,
    };
    for number in 0..settings.concurrency {
        let (asker, questions) = (asker.clone(), questions.clone());
        std::thread::Builder::new()
            .name(format!("tf-ask-{number}"))
            .spawn(move || asker.run(&questions))
            .expect("the process may have a few more threads");
    }
    Ok(ask)
}

impl Asker {
    fn run(&self, questions: &Receiver<Question>) {
        for question in questions {
            let (room, connection) = (question.room.clone(), question.connection);
            let verdict = self.decide(question);
            let (answers, waker) = &self.shards[connection.shard.index()];
            // Fails only when the shard has ended, and its connections with it.
            if answers.send(Envelope::Authorized { room, connection, verdict }).is_ok() {
                waker.wake();
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// A panic elsewhere leaves nothing half done in it.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, question: Question) -> Verdict {
        let now_ms = self.now_ms();
        {
            let mut memory = self.memory();
            if let Some(verdict) = memory.cache.get(&question.user, &question.room, now_ms) {
                self.cells.cached.add(1);
                return verdict;
            }
            if now_ms.saturating_sub(question.asked_ms) > self.timeout_ms {
                self.cells.refused.add(1);
                return Verdict::Unavailable { retry_after_ms: RETRY_MS };
            }
            if let Err(retry_after_ms) = memory.breaker.admit(now_ms) {
                self.cells.refused.add(1);
                return Verdict::Unavailable { retry_after_ms };
            }
            self.cells.asked.add(1);
        }
        let outcome = self.call(question.user.as_str(), question.room.as_str());
        let now_ms = self.now_ms();
        let mut memory = self.memory();
        let was_open = memory.breaker.is_open();
        let verdict = match outcome {
            Ok(verdict) => {
                memory.breaker.succeeded();
                memory.cache.put(question.user, question.room, verdict, now_ms);
                verdict
            }
            Err(reason) => {
                self.cells.failures.add(1);
                memory.breaker.failed(now_ms);
                if !was_open && memory.breaker.is_open() {
                    tracing::warn!(reason, "AUTHORIZE_URL keeps failing and is left alone for a while");
                }
                Verdict::Unavailable { retry_after_ms: RETRY_MS }
            }
        };
        if was_open && !memory.breaker.is_open() {
            tracing::info!("AUTHORIZE_URL answers again");
        }
        self.cells.breaker_open.set(memory.breaker.is_open().into());
        verdict
    }

    /// One call.
    ///
    /// # Errors
    /// What went wrong, for the log.
    fn call(&self, user: &str, room: &str) -> Result<Verdict, String> {
        let mut request = self.agent.post(&self.url).content_type("application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header("Authorization", bearer);
        }
        let mut response = request.send(answer::question(user, room)).map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(limits::AUTHORIZE_ANSWER_BYTES).read_to_string();
        let body = body.map_err(|error| error.to_string())?;
        answer::verdict(status, &body)
            .ok_or_else(|| format!("status {status} without {{\"allow\":[…]}} is no answer"))
    }
}
