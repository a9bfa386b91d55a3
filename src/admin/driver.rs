//! The control thread: its clock, its queue and its connection to Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process};

use super::control::{Control, Time};
use super::remote::Remote;
use crate::config::RedisSettings;
use crate::instance::Instance;
use crate::logging;
use crate::metrics::process;
use crate::shard::envelope::{ControlMessage, Envelope};
use crate::shard::outlet::{Outlet, Waker};
use crate::uplink::link::{Handshake, Link, LinkError};
use crate::uplink::socket::{self, Connector, Socket};

/// Between two looks at the shards, and at what is late.
const TICK: Duration = Duration::from_millis(100);

/// Milliseconds between two looks at what the process uses, and at the log lines that were left out.
const LOOK_MS: u64 = 5000;

/// Wait before a full queue is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// The running control thread.
#[derive(Debug)]
pub struct ControlHandle {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: JoinHandle<()>,
}

impl ControlHandle {
    /// Ends the thread.
    pub fn stop(self) {
        self.stop.store(true, SeqCst);
        self.waker.wake();
        if self.thread.join().is_err() {
            tracing::error!("the control thread has panicked");
        }
    }
}

/// What the thread is connected to.
pub struct Ports {
    /// The ways to all shards.
    pub shards: Vec<Outlet<Envelope>>,
    /// What shards and the separate port want.
    pub messages: Receiver<ControlMessage>,
    /// Wakes the thread when there is something.
    pub waker: Arc<Waker>,
}

/// Starts the thread. `started` is zero of the shards' clock.
///
/// # Errors
/// When the system gives no thread or no random numbers.
pub fn start(instance: &Arc<Instance>, ports: Ports, started: Instant) -> std::io::Result<ControlHandle> {
    let redis = instance.settings.redis.clone();
    let remote = redis.as_ref().map(|settings| remote(instance, settings)).transpose()?;
    let connector = redis.as_ref().map(Connector::new).transpose().map_err(std::io::Error::other)?;
    let stop = Arc::new(AtomicBool::new(false));
    let waker = ports.waker.clone();
    let thread = ControlThread {
        control: Control::new(instance.clone(), ports.shards, remote),
        connector,
        messages: ports.messages,
        waker: ports.waker,
        stop: stop.clone(),
        started,
        instance: instance.clone(),
        next_look_ms: 0,
        told: false,
    };
    let thread = std::thread::Builder::new().name("tf-control".to_owned()).spawn(move || thread.run())?;
    Ok(ControlHandle { stop, waker, thread })
}

fn remote(instance: &Instance, settings: &RedisSettings) -> std::io::Result<Remote> {
    let random = || getrandom::u64().map_err(std::io::Error::other);
    let handshake = Handshake {
        username: settings.username.clone(),
        password: settings.password.clone(),
        db: settings.db,
        name: format!("tableforge-{}-control", instance.id),
    };
    let link = Link::new(handshake, settings.timeout, random()?, Instant::now());
    let proposed = format!("{:016x}{:016x}{:016x}{:016x}", random()?, random()?, random()?, random()?);
    let secret = instance.settings.administration.secret.as_ref().map(|secret| secret.0.as_str());
    Ok(Remote::new(link, &settings.prefix, random()?, proposed, secret))
}

struct ControlThread {
    control: Control,
    connector: Option<Connector>,
    messages: Receiver<ControlMessage>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    started: Instant,
    instance: Arc<Instance>,
    /// When the process is looked at next.
    next_look_ms: u64,
    /// Whether a lost connection has been logged since it was last good.
    told: bool,
}

impl ControlThread {
    fn run(mut self) {
        let mut stream = None;
        let mut buffer = vec![0; socket::READ_BYTES];
        while !self.stop.load(SeqCst) {
            let time = self.time();
            while let Ok(message) = self.messages.try_recv() {
                self.control.message(message, time);
            }
            if let Err(error) = self.exchange(&mut stream, &mut buffer) {
                stream = None;
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(%error, "administration of other instances is not possible now");
                }
                if let Some(remote) = self.control.remote() {
                    remote.lost(Instant::now());
                }
            }
            let time = self.time();
            self.control.tick(time);
            if time.since_start_ms >= self.next_look_ms {
                self.next_look_ms = time.since_start_ms + LOOK_MS;
                self.instance.control.open_descriptors.set(process::open_descriptors());
                logging::tell_left_out();
            }
            let waits = self.control.flush();
            if self.control.drains() && !self.stop.load(SeqCst) {
                self.drain(&mut stream);
            }
            self.sleep(stream.as_ref(), waits);
        }
    }

    fn time(&self) -> Time {
        Time {
            instant: Instant::now(),
            since_start_ms: self.started.elapsed().as_millis() as u64,
            unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
        }
    }

    /// Stops the process as its supervisor would.
    fn drain(&mut self, stream: &mut Option<Socket>) {
        if let (Some(stream), Some(remote)) = (stream, self.control.remote()) {
            // The answer to whoever gave the order; the process goes all the same.
            let _ = socket::write(stream, remote.link());
        }
        if self.control.take_drain() {
            tracing::info!("an administrator has this instance drained");
            if let Err(error) = kill_process(getpid(), Signal::TERM) {
                tracing::error!(%error, "the process cannot signal itself");
            }
        }
    }

    fn exchange(&mut self, stream: &mut Option<Socket>, buffer: &mut [u8]) -> Result<(), LinkError> {
        let time = self.time();
        let (Some(remote), Some(connector)) = (self.control.remote(), &self.connector) else { return Ok(()) };
        if remote.link().connect_due(time.instant) {
            let connected = connector.connect()?;
            connected.set_nonblocking()?;
            *stream = Some(connected);
            remote.link().connected(Instant::now());
        }
        let Some(stream) = stream else { return Ok(()) };
        let mut events = Vec::new();
        while socket::read(stream, remote.link(), buffer, &mut events, time.instant)? {}
        for event in events {
            let Some(remote) = self.control.remote() else { return Ok(()) };
            if let Some(heard) = remote.event(event, time)? {
                self.control.heard(heard, time);
            }
        }
        let Some(remote) = self.control.remote() else { return Ok(()) };
        remote.tick(time.instant)?;
        if remote.is_ready() {
            self.told = false;
        }
        socket::write(stream, remote.link())
    }

    fn sleep(&mut self, stream: Option<&Socket>, waits: bool) {
        self.waker.prepare_to_sleep();
        if self.messages.is_empty() && !self.stop.load(SeqCst) {
            let wait = if waits { RETRY } else { TICK };
            let timeout = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
            let mut fds = vec![PollFd::from_borrowed_fd(self.waker.eventfd(), PollFlags::IN)];
            if let (Some(stream), Some(remote)) = (stream, self.control.remote()) {
                let unwritten = !remote.link().output().is_empty() || stream.wants_write();
                let wanted = if unwritten { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                fds.push(PollFd::new(stream, wanted));
            }
            // An interrupted or failed poll is a short sleep: the next turn looks at everything anyway.
            let _ = poll(&mut fds, Some(&timeout));
            if fds[0].revents().contains(PollFlags::IN) {
                self.waker.drain();
            }
        }
        self.waker.awake();
    }
}
