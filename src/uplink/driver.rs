//! The uplink's two threads: clocks, sockets and queues around the logic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::batch::Origin;
use super::batch_pacer::BatchPacer;
use super::channel::Channels;
use super::delivery::Delivery;
use super::following::Following;
use super::history::{Epochs, HistoryCaller, HistoryRules};
use super::ingress::{Expect, Ingress};
use super::lane;
use super::link::{Event, Handshake, Link, LinkError, words};
use super::pair::Pair;
use super::presence::Caller;
use super::publisher::{Batching, Publisher, Sent};
use super::registry::{self, Load};
use super::sessions::SessionCaller;
use super::socket::{Connector, Socket};
use super::store_queue::StoreQueue;
use super::thread::spawn;
use super::{UplinkError, preflight, socket};
use crate::config::RedisSettings;
use crate::identity::InstanceId;
use crate::metrics::UplinkCells;
use crate::shard::envelope::{Envelope, Publication, UplinkCommand};
use crate::shard::outlet::{Outlet, Waker};
use crate::trace::Tracer;

/// Longest sleep of the publisher: how late it notices a closed connection or the order to stop.
const PUBLISHER_TICK: Duration = Duration::from_millis(100);

/// Longest sleep while publications gather: at 300,000 a second 1,500 have come.
const GATHER_TICK: Duration = Duration::from_millis(5);

/// Shortest wait for the answers of messages being stored.
const ANSWER_WAIT: Duration = Duration::from_micros(100);

/// Wait before a full queue or socket is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// Unanswered batches above which the publisher waits for Redis: about a millisecond of its work.
const BATCHES_UNANSWERED: usize = 1_024;

/// Calls that wait until Redis can carry them out above which the publisher waits with them.
const CALLS_WAITING: usize = 64;

/// Bytes that wait for Redis above which the publisher waits too.
const OUTPUT_BYTES: usize = 4 << 20;

/// Commands that the ingress takes before it looks at its socket again.
const COMMANDS_PER_TURN: usize = 256;

/// Reads from the socket after which the ingress wakes the shards for what it has delivered.
const READS_PER_TURN: usize = 4;

/// Longest time that stopping takes; a Redis that does not answer must not hold up the exit.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What stopping needs while Redis answers.
const LEAST_STOP: Duration = Duration::from_millis(500);

/// What the uplink is connected to on the shards' side.
pub struct Ports {
    /// The way to each shard.
    pub shards: Vec<Outlet<Envelope>>,
    /// A second way to each shard, for the answers to what is to be stored.
    pub answers: Vec<Outlet<Envelope>>,
    /// What shards ask of the ingress.
    pub commands: Receiver<UplinkCommand>,
    /// Wakes the ingress when there are commands.
    pub waker: Arc<Waker>,
    /// What shards publish.
    pub publications: Receiver<Publication>,
    /// Where to count. Each cell is written by one of the two threads only.
    pub cells: Arc<UplinkCells>,
    /// Takes the spans of traced messages.
    pub tracer: Option<Arc<Tracer>>,
}

/// The running uplink.
#[derive(Debug)]
pub struct UplinkHandle {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    threads: Vec<JoinHandle<()>>,
    /// Disconnected when both threads have ended.
    ended: Receiver<()>,
}

/// Starts the uplink of the instance called `instance`. `rules` say which rooms have history. `boot` is the number that its socket ids carry,
/// `load` gives the figures for heartbeats and is called on the publisher's thread, `cpu` is the CPU
/// that both threads are pinned to.
///
/// A Redis that cannot be reached is no error: the shards are told that the link is down, and the
/// uplink keeps trying.
///
/// # Errors
/// When Redis refuses what is needed, another live process has the name, or no thread can be started.
pub fn start(
    settings: &RedisSettings,
    rules: HistoryRules,
    instance: &InstanceId,
    boot: u32,
    ports: Ports,
    load: impl Fn() -> Load + Send + 'static,
    cpu: Option<usize>,
) -> Result<UplinkHandle, UplinkError> {
    let origin = Origin(u64::from(boot) << 32 | u64::from(random()? as u32));
    let now = Instant::now();
    let caller =
        Caller::new(&settings.prefix, instance, origin, settings.heartbeat_interval, settings.silence());
    let history = HistoryCaller::new(&settings.prefix, origin, rules.clone());
    let sessions = SessionCaller::new(&settings.prefix, (instance, origin), settings.counts_connections);
    let reached = preflight::check(
        settings,
        (&caller, &history, &sessions),
        link(settings, instance, "preflight", now)?,
    )?;

    let connector = Connector::new(settings)?;
    let Ports { shards, answers, commands, waker, publications, cells, tracer } = ports;
    let following = Following::new(rules, random()?);
    let delivery = Delivery::new(origin, shards, following, Arc::clone(&cells))?.traced(tracer);
    let stores = StoreQueue::new(history, Epochs::new(random()?), answers);
    let ingress_link = link(settings, instance, "ingress", now)?;
    let gate = lane::closed();
    let shared = (Arc::clone(&gate), Arc::clone(&cells));
    let ingress = Ingress::new(settings, (instance, origin), ingress_link, delivery, reached, shared, now);
    let (channels, batching) = (Channels::new(&settings.prefix), Batching::of(settings));
    let publisher = Publisher::new(channels, (instance, origin), batching, stores, gate, Arc::clone(&cells))?;

    let stop = Arc::new(AtomicBool::new(false));
    let pair = Arc::new(Pair::default());
    let (ending, ended) = crossbeam_channel::bounded(0);
    let ingress = IngressThread {
        connector: connector.clone(),
        ingress,
        commands,
        waker: Arc::clone(&waker),
        pair: Arc::clone(&pair),
        stop: Arc::clone(&stop),
        _ending: ending.clone(),
    };
    let publisher = PublisherThread {
        settings: settings.clone(),
        connector,
        instance: instance.clone(),
        origin,
        publisher,
        link: link(settings, instance, "publisher", now)?,
        publications,
        cells: Arc::clone(&cells),
        pair,
        wanted: 0,
        pacer: BatchPacer::new(settings.batch_age, now),
        holds: false,
        waker: Arc::clone(&waker),
        stop: Arc::clone(&stop),
        load,
        heartbeat_at: now,
        _ending: ending,
    };
    let threads = vec![
        spawn("tf-ingress", cpu, move || ingress.run())?,
        spawn("tf-publisher", cpu, move || publisher.run())?,
    ];
    Ok(UplinkHandle { stop, waker, threads, ended })
}

fn random() -> std::io::Result<u64> {
    getrandom::u64().map_err(std::io::Error::other)
}

fn link<T>(
    settings: &RedisSettings,
    instance: &InstanceId,
    role: &str,
    now: Instant,
) -> std::io::Result<Link<T>> {
    let handshake = Handshake {
        username: settings.username.clone(),
        password: settings.password.clone(),
        db: settings.db,
        name: format!("tableforge-{instance}-{role}"),
    };
    Ok(Link::new(handshake, settings.timeout, random()?, now))
}

/// Connects to Redis and logs in, as the uplink does.
///
/// # Errors
/// When Redis cannot be reached, or refuses.
pub fn reach(settings: &RedisSettings, instance: &InstanceId) -> Result<(), UplinkError> {
    preflight::reach(settings, link(settings, instance, "preflight", Instant::now())?)
}

impl UplinkHandle {
    /// Sends what still waits to be published, says goodbye, takes the instance out of Redis and ends
    /// the threads. Takes at most a few seconds, whatever Redis does.
    pub fn stop(self) {
        self.stop_within(STOP_LIMIT);
    }

    /// As [`UplinkHandle::stop`], in about `limit` at most; a moment is taken in any case.
    pub fn stop_within(self, limit: Duration) {
        self.stop.store(true, SeqCst);
        self.waker.wake();
        if self.ended.recv_timeout(limit.clamp(LEAST_STOP, STOP_LIMIT)) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the uplink did not stop in time: leaving it behind");
            return;
        }
        for thread in self.threads {
            // A panic in it would have ended the process.
            let _ = thread.join();
        }
    }
}

fn connect(connector: &Connector) -> Result<Socket, LinkError> {
    let stream = connector.connect()?;
    stream.set_nonblocking()?;
    Ok(stream)
}

fn until(deadline: Instant) -> Timespec {
    until_from(deadline.saturating_duration_since(Instant::now()))
}

fn until_from(wait: Duration) -> Timespec {
    Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn milliseconds() -> u64 {
    since_1970().as_millis() as u64
}

struct IngressThread {
    connector: Connector,
    ingress: Ingress,
    commands: Receiver<UplinkCommand>,
    waker: Arc<Waker>,
    pair: Arc<Pair>,
    stop: Arc<AtomicBool>,
    _ending: Sender<()>,
}

impl IngressThread {
    fn run(mut self) {
        let mut stream = None;
        let mut buffer = vec![0; socket::READ_BYTES];
        let mut events = Vec::new();
        while !self.ingress.has_left() {
            if let Err(error) = self.turn(&mut stream, &mut buffer, &mut events) {
                stream = None;
                events.clear();
                if !matches!(error, LinkError::OtherConnection) {
                    self.pair.ingress_lost();
                }
                self.ingress.lost(&error, Instant::now());
            }
            let waits = self.ingress.flush();
            self.sleep(stream.as_ref(), waits);
        }
        self.ingress.flush();
    }

    fn turn(
        &mut self,
        stream: &mut Option<Socket>,
        buffer: &mut [u8],
        events: &mut Vec<Event<Expect>>,
    ) -> Result<(), LinkError> {
        let ingress = &mut self.ingress;
        let now = Instant::now();
        if ingress.link().connect_due(now) {
            *stream = Some(connect(&self.connector)?);
            ingress.link().connected(Instant::now());
        }
        if let Some(stream) = stream {
            for _ in 0..READS_PER_TURN {
                let now = Instant::now();
                let more = socket::read(stream, ingress.link(), buffer, events, now)?;
                let timestamp = milliseconds();
                for event in events.drain(..) {
                    ingress.event(event, timestamp, now)?;
                }
                if !more {
                    break;
                }
            }
        }
        let now = Instant::now();
        ingress.note_waiting(self.commands.len());
        for _ in 0..COMMANDS_PER_TURN {
            if !ingress.takes_commands() {
                break;
            }
            let Ok(command) = self.commands.try_recv() else { break };
            ingress.command(command, now);
        }
        if self.stop.load(SeqCst) && self.pair.has_published_all() {
            ingress.leave(now);
        }
        ingress.tick(self.pair.publisher(), now)?;
        if let Some(stream) = stream {
            socket::write(stream, ingress.link())?;
        }
        Ok(())
    }

    fn sleep(&mut self, stream: Option<&Socket>, waits: bool) {
        self.waker.prepare_to_sleep();
        let more = self.ingress.takes_commands() && !self.commands.is_empty();
        if !more && !self.ingress.has_left() {
            let now = Instant::now();
            let deadline = if waits { now + RETRY } else { self.ingress.deadline() };
            let mut fds = vec![PollFd::from_borrowed_fd(self.waker.eventfd(), PollFlags::IN)];
            if let Some(stream) = stream {
                let unwritten = !self.ingress.link().output().is_empty() || stream.wants_write();
                let wanted = if unwritten { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                fds.push(PollFd::new(stream, wanted));
            }
            // An interrupted or failed poll is a short sleep: the next turn looks at everything anyway.
            let _ = poll(&mut fds, Some(&until(deadline)));
            if fds[0].revents().contains(PollFlags::IN) {
                self.waker.drain();
            }
        }
        self.waker.awake();
    }
}

struct PublisherThread<L> {
    settings: RedisSettings,
    connector: Connector,
    instance: InstanceId,
    origin: Origin,
    publisher: Publisher,
    link: Link<Sent>,
    publications: Receiver<Publication>,
    cells: Arc<UplinkCells>,
    pair: Arc<Pair>,
    /// The value of [`Pair::wanted`] that was seen last.
    wanted: u64,
    pacer: BatchPacer,
    /// Whether Redis has answered something before it is time to send what has gathered.
    holds: bool,
    /// Wakes the ingress when the connection changes.
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    load: L,
    heartbeat_at: Instant,
    _ending: Sender<()>,
}

impl<L: Fn() -> Load> PublisherThread<L> {
    fn run(mut self) {
        let mut stream = None;
        let mut buffer = vec![0; socket::READ_BYTES];
        while !self.stop.load(SeqCst) {
            self.gather(stream.as_ref());
            let outcome = self.turn(&mut stream, &mut buffer);
            self.note(&mut stream, outcome);
        }
        while let Ok(publication) = self.publications.try_recv() {
            self.publisher.add(publication);
            if self.publisher.is_full() {
                let outcome = self.turn(&mut stream, &mut buffer);
                self.note(&mut stream, outcome);
            }
        }
        if let Err(error) = self.farewell(&mut stream, &mut buffer) {
            tracing::warn!(%error, "the last publications may not have reached Redis");
        }
        self.pair.publisher_ended();
        self.waker.wake();
    }

    fn note(&mut self, stream: &mut Option<Socket>, outcome: Result<(), LinkError>) {
        if let Err(error) = outcome {
            if self.link.is_up() {
                tracing::warn!(%error, "the publisher's connection to Redis is lost");
            } else {
                tracing::debug!(%error, "the publisher still has no connection to Redis");
            }
            *stream = None;
            let unanswered = self.link.lost(Instant::now());
            self.publisher.link_lost(unanswered);
            self.publisher.flush_answers();
            self.pair.publisher_lost();
            self.waker.wake();
        }
    }

    fn take(&mut self, publication: Publication) {
        self.publisher.add(publication);
        self.pacer.took();
    }

    /// Takes what the shards publish until it is due. Waking this thread costs a shard a system call, so it is woken by
    /// the first publication only, and looks by itself for more.
    fn gather(&mut self, stream: Option<&Socket>) {
        if self.pacer.is_idle() && !self.await_publication(stream) {
            return;
        }
        let storing = self.publisher.is_storing();
        loop {
            while !self.publisher.is_full()
                && let Ok(publication) = self.publications.try_recv()
            {
                self.take(publication);
            }
            let now = Instant::now();
            let left = self.pacer.left(now);
            if self.publisher.is_full() || left.is_zero() {
                self.pacer.sent(self.publisher.is_full(), now, since_1970());
                return;
            }
            let wait = left.min(GATHER_TICK);
            match stream.filter(|_| storing) {
                // Answers that clients wait for come first.
                Some(stream) => {
                    let answered = poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&until_from(wait)));
                    if answered.is_ok_and(|ready| ready > 0) {
                        self.holds = true;
                        return;
                    }
                }
                None => std::thread::sleep(wait),
            }
        }
    }

    /// Waits for a publication, or until something else is to be done; false then.
    fn await_publication(&mut self, stream: Option<&Socket>) -> bool {
        let now = Instant::now();
        if self.publisher.is_storing()
            && let Some(stream) = stream
        {
            // Answers that clients wait for come first; what is published meanwhile waits as long as for a batch.
            if self.publications.is_empty() {
                let wait = self.settings.batch_age.max(ANSWER_WAIT);
                let _ = poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&until(now + wait)));
            }
            return self.publications.try_recv().map(|publication| self.take(publication)).is_ok();
        }
        let mut until = now + PUBLISHER_TICK;
        if self.link.is_up() {
            until = until.min(self.heartbeat_at);
        }
        if !self.link.output().is_empty() {
            until = until.min(now + RETRY);
        }
        until = until.min(self.link.deadline().max(now));
        if let Some(at) = self.publisher.deadline() {
            until = until.min(at.max(now));
        }
        match self.publications.recv_deadline(until) {
            Ok(publication) => {
                self.take(publication);
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            // All shards have ended: only the order to stop is to come.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                false
            }
        }
    }

    fn turn(&mut self, stream: &mut Option<Socket>, buffer: &mut [u8]) -> Result<(), LinkError> {
        let wanted = self.pair.wanted();
        if wanted != self.wanted {
            self.wanted = wanted;
            if self.link.is_up() {
                return Err(LinkError::OtherConnection);
            }
        }
        if self.link.connect_due(Instant::now()) {
            *stream = Some(connect(&self.connector)?);
            self.link.connected(Instant::now());
        }
        let now = Instant::now();
        if !std::mem::take(&mut self.holds) {
            self.publisher.flush(&mut self.link, now);
        }
        self.publisher.flush_answers();
        if self.link.is_up() && (self.heartbeat_at <= now || self.cells.announce.swap(false, SeqCst)) {
            self.heartbeat_at = now + self.settings.heartbeat_interval;
            self.heartbeat(false);
        }
        let Some(stream) = stream else { return Ok(()) };
        self.exchange(stream, buffer)?;
        // Only now: an answer that came while this thread slept is not late.
        self.link.tick(Instant::now())?;
        socket::write(stream, &mut self.link)?;
        self.publisher.note_waiting(self.publications.len(), &self.link);
        while self.link.awaited() > BATCHES_UNANSWERED
            || self.link.output().len() > OUTPUT_BYTES
            || self.publisher.waiting() > CALLS_WAITING
        {
            self.wait(stream);
            self.exchange(stream, buffer)?;
            self.link.tick(Instant::now())?;
        }
        Ok(())
    }

    fn heartbeat(&mut self, leaving: bool) {
        let heartbeat =
            registry::heartbeat(&self.instance, self.origin, (self.load)(), milliseconds(), leaving);
        self.publisher.heartbeat(&mut self.link, heartbeat, Instant::now());
    }

    /// Writes what there is to write and reads what has come.
    fn exchange(&mut self, stream: &mut Socket, buffer: &mut [u8]) -> Result<(), LinkError> {
        socket::write(stream, &mut self.link)?;
        let mut events = Vec::new();
        while socket::read(stream, &mut self.link, buffer, &mut events, Instant::now())? {}
        for event in events {
            match event {
                Event::Reply(Sent::Stores(call), answer) => {
                    self.publisher.stored(call, answer, &mut self.link, Instant::now())?;
                }
                Event::Up => {
                    self.publisher.link_up(&mut self.link, Instant::now());
                    self.heartbeat_at = Instant::now();
                    self.pair.publisher_up(self.wanted);
                    self.waker.wake();
                }
                Event::Reply(_, Err(error)) => {
                    return Err(LinkError::Refused { step: "PUBLISH", error: words(&error) });
                }
                Event::Reply(Sent::Lane(sent), Ok(answer)) => {
                    self.publisher.lane_answered(sent, &answer, &mut self.link, Instant::now());
                }
                Event::Reply(Sent::Heartbeat, Ok(_)) => {
                    self.publisher.note_reply(Instant::now());
                    self.link.settled();
                }
                Event::Reply(Sent::Batch(_) | Sent::Companion, Ok(_)) | Event::Message { .. } => {}
            }
        }
        self.publisher.flush_answers();
        Ok(())
    }

    fn wait(&self, stream: &Socket) {
        let unwritten = !self.link.output().is_empty() || stream.wants_write();
        let wanted = if unwritten { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let _ = poll(&mut [PollFd::new(stream, wanted)], Some(&until(self.link.deadline())));
    }

    /// Sends what has gathered and the last heartbeat, and waits for Redis to have them.
    fn farewell(&mut self, stream: &mut Option<Socket>, buffer: &mut [u8]) -> Result<(), LinkError> {
        self.publisher.flush(&mut self.link, Instant::now());
        let Some(stream) = stream.as_mut().filter(|_| self.link.is_up()) else { return Ok(()) };
        self.heartbeat(true);
        self.exchange(stream, buffer)?;
        while self.link.awaited() > 0 {
            self.wait(stream);
            self.exchange(stream, buffer)?;
            self.link.tick(Instant::now())?;
        }
        Ok(())
    }
}
