//! Joins a shard to its ring, its clock and its queues. Decides nothing.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;

use super::envelope::Envelope;
use super::outlet::Waker;
use super::overload::{Overload, Tolerable};
use super::sweep::TICK_MS;
use super::{Action, Now, Shard};
use crate::instance::{Instance, Phase};
use crate::logging;
use crate::metrics::ShardCells;
use crate::ring::{Completion, Ring, RingSettings};
use crate::room::fanout::CROWD;
use crate::send::flush::{Flush, FlushPacer};

/// Completions handled in one turn: bounds the turn, and with it the time until others get theirs.
const COMPLETIONS_PER_TURN: usize = 1024;

/// Messages taken from one queue in one turn, for the same reason.
const ENVELOPES_PER_TURN: usize = 1024;

/// Sends of one flush: 2 to 4 ms of a core, which is how long others wait at most behind a room of thousands.
const SENDS_PER_FLUSH: usize = CROWD;

/// Completions that are worth waking up for while the next flush is not due yet.
const COMPLETIONS_PER_WAKE: usize = 64;

/// Receives in one turn that brought less than a buffer takes, from which on it is many who send more than the shard can do,
/// and everyone is refused. Otherwise it is a few who flood, and only they are.
const MANY: usize = 32;

/// Turns between two flushes that are told apart when latencies are counted; what comes later counts with the last.
const UNFLUSHED_TURNS: usize = 32;
/// Part of DRAIN_TIMEOUT after which a shard ends, whoever is still there: the rest is for Redis to be told.
const SHARDS_PART: f64 = 0.95;

/// How long a shard that may send at once looks for work before it sleeps, with the feature `spin`: about what being woken
/// takes.
const SPIN: Duration = Duration::from_micros(50);

/// Milliseconds between two log lines about the same lasting trouble.
const WARNING_INTERVAL_MS: u64 = 10_000;

/// What a shard's thread runs on.
pub struct Driver {
    shard: Shard,
    ring: Ring,
    inboxes: Vec<Receiver<Envelope>>,
    waker: Arc<Waker>,
    instance: Arc<Instance>,
    cells: Arc<ShardCells>,
    started: Instant,
    pacer: FlushPacer,
    overload: Overload,
    completions: Vec<Completion>,
    /// When each turn since the last flush began, and how many client messages it read.
    unflushed: Vec<(Duration, u64)>,
    /// Messages taken from the queues since the last flush.
    envelopes: u64,
    next_tick_ms: u64,
    draining: bool,
    listening: bool,
    accepting: bool,
    /// When accepting may start again after it stopped.
    accept_at_ms: u64,
    /// When a failing accept may be logged again.
    next_warning_ms: u64,
    /// When closing those who send most may be logged again.
    next_closing_warning_ms: u64,
}

/// What a driver needs from its surroundings.
pub struct Surroundings {
    /// The process.
    pub instance: Arc<Instance>,
    /// When it started: zero of the monotonic clock.
    pub started: Instant,
    /// What the shard counts.
    pub cells: Arc<ShardCells>,
    /// The queues that this shard reads: one per other shard, one from the uplink.
    pub inboxes: Vec<Receiver<Envelope>>,
    /// Who wakes this shard.
    pub waker: Arc<Waker>,
}

/// The time `elapsed` after the start, which is now.
fn at(elapsed: Duration) -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { since_start_ms: elapsed.as_millis() as u64, unix_ms: unix.as_millis() as u64 }
}

impl Driver {
    /// Sets up the ring and listens; to be called on the shard's own thread. Returns the address bound.
    ///
    /// # Errors
    /// As io_uring_setup(2), bind(2) and listen(2).
    pub fn new(
        shard: Shard,
        address: SocketAddr,
        around: Surroundings,
    ) -> std::io::Result<(Self, SocketAddr)> {
        let mut ring = Ring::new(RingSettings::default())?;
        let bound = ring.listen(address)?;
        ring.watch(around.waker.eventfd())?;
        let driver = Self {
            shard,
            ring,
            inboxes: around.inboxes,
            waker: around.waker,
            pacer: FlushPacer::new(around.instance.settings.flush_budget, around.instance.shards.len()),
            overload: Overload::default(),
            instance: around.instance,
            cells: around.cells,
            started: around.started,
            completions: Vec::new(),
            unflushed: Vec::with_capacity(UNFLUSHED_TURNS),
            envelopes: 0,
            next_tick_ms: 0,
            draining: false,
            listening: true,
            accepting: false,
            accept_at_ms: 0,
            next_warning_ms: 0,
            next_closing_warning_ms: 0,
        };
        Ok((driver, bound))
    }

    /// Runs until the instance drains and the last client of all shards has gone, or the time for that is up. Until
    /// then requests are answered: probes, and clients that are to look for another instance.
    ///
    /// It never gives the thread back to the executor: whoever yields to glommio 0.9 may find itself
    /// parked with work at hand, when the preemption timer fires before the executor looks at its tasks.
    pub fn run(mut self) {
        logging::line::on_shard(self.shard.id().0);
        let mut drain_until = None;
        loop {
            self.turn();
            if self.draining {
                let timeout = self.instance.live().drain_timeout;
                let now = Instant::now();
                let until = *drain_until.get_or_insert(now + timeout.mul_f64(SHARDS_PART));
                if self.instance.connections() == 0 && self.listening {
                    self.listening = false;
                    self.ring.stop_listening();
                    self.shard.finish_drain(at(self.started.elapsed()));
                }
                if now >= until || (!self.listening && self.shard.is_empty()) {
                    return;
                }
            }
        }
    }

    fn turn(&mut self) {
        let began = self.started.elapsed();
        let now = at(began);
        self.cells.last_turn.set(now.since_start_ms);
        let messages_before = self.cells.messages_in.get();
        self.shard.close_expired(now);
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.reap(COMPLETIONS_PER_TURN, &mut completions);
        let full = completions.len() >= COMPLETIONS_PER_TURN;
        let lags = self.overload.begin_turn(self.started.elapsed(), full || self.ring.has_unread());
        let by_many = lags && self.sent_little(&completions) >= MANY;
        for completion in completions.drain(..) {
            if lags && let Completion::Received(_, filled) = &completion {
                let of_flood = by_many || self.ring.is_full(filled);
                self.shard.shed(of_flood && self.overload.refuses(self.started.elapsed()));
                self.overload.read(filled.bytes());
            }
            self.handle(completion, now);
        }
        self.shard.shed(false);
        self.overload.end_input(self.started.elapsed());
        if let Some(tolerable) = self.overload.tolerable(self.started.elapsed()) {
            self.close_unread(tolerable, now);
        }
        self.completions = completions;
        let more = self.read_inboxes(now);
        self.keep_time(now);
        self.shard.finish_turn(now);
        self.act();
        self.note_received(began, self.cells.messages_in.get() - messages_before);
        self.flush();
        self.wait(full || more, began);
    }

    /// How many receives brought less than a buffer takes.
    fn sent_little(&self, completions: &[Completion]) -> usize {
        let little = completions.iter().filter(
            |completion| matches!(completion, Completion::Received(_, filled) if !self.ring.is_full(filled)),
        );
        little.count()
    }

    /// Closes those whose unread bytes cannot be waited for.
    fn close_unread(&mut self, tolerable: Tolerable, now: Now) {
        let mut unread = self.ring.unread();
        unread.retain(|&(key, _)| self.shard.is_open(key));
        let closing = tolerable.beyond(unread);
        let closed = closing.len();
        for key in closing {
            self.shard.close_unread(key, now);
        }
        if closed > 0 && now.since_start_ms >= self.next_closing_warning_ms {
            self.next_closing_warning_ms = now.since_start_ms + WARNING_INTERVAL_MS;
            tracing::warn!(
                closed,
                "more comes in than can be read in time: those who have most unread are closed; bound them with MESSAGE_RATE, \
                 BYTE_RATE or USER_MESSAGE_RATE, or add a core"
            );
        }
    }

    fn handle(&mut self, completion: Completion, now: Now) {
        match completion {
            Completion::Accepted(key) => {
                self.shard.handle_accepted(key, now);
                if self.shard.wants_peers()
                    && let Some(peer) = self.ring.peer_address(key)
                {
                    self.shard.handle_peer(key, peer.ip());
                }
            }
            Completion::AcceptStopped(error) => {
                if now.since_start_ms >= self.next_warning_ms {
                    self.next_warning_ms = now.since_start_ms + WARNING_INTERVAL_MS;
                    tracing::warn!(%error, "accepting pauses and is tried again: raise the limit of open files if this persists");
                }
                self.cells.accept_pauses.add(1);
                self.accepting = false;
                self.accept_at_ms = now.since_start_ms + TICK_MS;
            }
            Completion::Received(key, mut filled) => {
                let (shard, ring) = (&mut self.shard, &mut self.ring);
                let handled = catch_unwind(AssertUnwindSafe(|| {
                    shard.handle_received(key, ring.bytes_mut(&mut filled), now);
                }));
                if handled.is_err() {
                    self.shard.handle_panic(key, now);
                }
                self.ring.recycle(filled);
            }
            Completion::Ended(key, _) => self.shard.handle_ended(key, now),
            Completion::Sent(key, batch, outcome) => {
                self.shard.outboxes().sent(key.slot, batch);
                self.shard.handle_sent(key, outcome.is_ok(), now);
            }
            Completion::Woken => self.waker.drain(),
            Completion::Closed(key) => self.shard.handle_closed(key),
        }
    }

    /// Returns whether there may be more.
    fn read_inboxes(&mut self, now: Now) -> bool {
        let mut more = false;
        for inbox in &self.inboxes {
            let mut taken = 0;
            while taken < ENVELOPES_PER_TURN
                && let Ok(envelope) = inbox.try_recv()
            {
                self.shard.handle_envelope(envelope, now);
                taken += 1;
            }
            self.envelopes += taken as u64;
            more |= taken == ENVELOPES_PER_TURN;
        }
        more
    }

    fn keep_time(&mut self, now: Now) {
        if !self.draining && self.instance.phase() == Phase::Draining {
            self.draining = true;
            self.shard.handle_drain(now);
        }
        if now.since_start_ms >= self.next_tick_ms {
            self.next_tick_ms = now.since_start_ms + TICK_MS;
            self.note_waiting();
            self.pacer.adopt(self.instance.live().flush_budget);
            self.shard.handle_tick(now);
        }
        if !self.accepting
            && self.listening
            && self.shard.is_settled()
            && now.since_start_ms >= self.accept_at_ms
        {
            self.accepting = true;
            self.ring.accept();
        }
    }

    fn act(&mut self) {
        for action in self.shard.take_actions() {
            match action {
                Action::Receive(key) => self.ring.receive(key),
                Action::StopReceiving(key) => self.ring.stop_receiving(key),
                Action::Acknowledge(key) => self.ring.acknowledge(key),
                Action::FinishSending(key) => self.ring.finish_sending(key),
                Action::Close(key) => self.ring.close(key),
            }
        }
    }

    fn flush(&mut self) {
        let started = self.started.elapsed();
        let now = started.as_millis() as u32;
        if !self.shard.outboxes().is_dirty(now) {
            // What was read has nothing to be sent here.
            self.unflushed.clear();
            self.envelopes = 0;
            return;
        }
        if !self.pacer.due(started) {
            return;
        }
        let (ring, cells) = (&mut self.ring, &self.cells);
        let (mut sends, mut bytes) = (0, 0);
        self.shard.flush(now, SENDS_PER_FLUSH, |slot, batch| {
            sends += 1;
            bytes += batch.bytes() as u64;
            match ring.key(slot) {
                Some(key) => ring.send(key, batch),
                None => Err(batch),
            }
        });
        ring.submit();
        cells.flushes.add(1);
        cells.sends.add(sends);
        cells.bytes_out.add(bytes);
        cells.flush_bytes.observe(bytes);
        cells.flush_connections.observe(sends);
        let ended = self.started.elapsed();
        let mut messages = std::mem::take(&mut self.envelopes);
        for (read, some) in self.unflushed.drain(..) {
            cells.receive_to_flush_us.observe_many(ended.saturating_sub(read).as_micros() as u64, some);
            messages += some;
        }
        let more = self.shard.outboxes().is_dirty(ended.as_millis() as u32);
        self.pacer.flushed(Flush { started, ended, sends, messages, more });
    }

    /// Notes that a turn which began at `began` has read so many messages of clients.
    fn note_received(&mut self, began: Duration, messages: u64) {
        if messages == 0 {
            return;
        }
        let full = self.unflushed.len() == UNFLUSHED_TURNS;
        match self.unflushed.last_mut() {
            Some((_, last)) if full => *last += messages,
            _ => self.unflushed.push((began, messages)),
        }
    }

    /// Notes what waits in the queues: those of the other shards come first.
    fn note_waiting(&self) {
        let mesh = (self.instance.shards.len() - 1).min(self.inboxes.len());
        let waiting = |inboxes: &[Receiver<Envelope>]| inboxes.iter().map(|inbox| inbox.len() as u64).sum();
        self.cells.mesh_waiting.set(waiting(&self.inboxes[..mesh]));
        self.cells.uplink_waiting.set(waiting(&self.inboxes[mesh..]));
    }

    /// Looks for work until then.
    fn spin(&mut self, until: Duration) {
        while self.started.elapsed() < until
            && !self.ring.has_work()
            && self.inboxes.iter().all(|inbox| inbox.is_empty())
        {
            std::hint::spin_loop();
        }
    }

    fn wait(&mut self, busy: bool, began: Duration) {
        let now = self.started.elapsed();
        self.cells.busy_us.add(now.saturating_sub(began).as_micros() as u64);
        let now_ms = now.as_millis() as u64;
        let mut timeout = Duration::from_millis(self.next_tick_ms.saturating_sub(now_ms));
        // What comes now could not go out before the next flush may start.
        let pause = self.pacer.wait(now);
        if cfg!(feature = "spin") && !busy && pause.is_zero() {
            self.spin(now + SPIN);
        }
        if busy {
            timeout = Duration::ZERO;
        } else if self.shard.outboxes().is_dirty(now_ms as u32) {
            // Nobody wakes the shard, for the same reason.
            timeout = timeout.min(pause);
        } else {
            if let Some(patience) = self.shard.outboxes().patience(now_ms as u32) {
                timeout = timeout.min(Duration::from_millis(patience.into()));
            }
            self.waker.prepare_to_sleep();
            if self.inboxes.iter().any(|inbox| !inbox.is_empty()) {
                timeout = Duration::ZERO;
            }
        }
        self.ring.submit_and_gather(COMPLETIONS_PER_WAKE, pause, timeout);
        self.waker.awake();
    }
}
