//! The process: starts the shards and the uplink, waits for the signal to stop, and ends them in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::accept::certificate::{CertificateError, TlsAcceptor};
use crate::admin;
use crate::admin::driver::ControlHandle;
use crate::admin::port::driver::AdminPort;
use crate::authorization::{self, Question};
use crate::config::Settings;
use crate::identity::ShardId;
use crate::instance::{Instance, Phase};
use crate::limits;
use crate::reload::{Keys, Origin, Reloader};
use crate::shard::driver::{Driver, Surroundings};
use crate::shard::envelope::{ControlMessage, Envelope, LinkState, Publication, UplinkCommand};
use crate::shard::history::recovery_bytes;
use crate::shard::mesh::Mesh;
use crate::shard::outlet::{Outlet, Waker};
use crate::shard::{Shard, UplinkPort};
use crate::systemd::{self, Watchdog};
use crate::trace::driver::Exporter;
use crate::uplink::driver::{Ports, UplinkHandle};
use crate::uplink::history::HistoryRules;
use crate::uplink::registry::Load;
use crate::{trace, uplink};

/// Messages that fit between two shards: some milliseconds of a busy shard's traffic.
const MESH_QUEUE: usize = 8192;

/// Commands that fit between a shard and the uplink before they wait at the shard.
const COMMAND_QUEUE: usize = 8192;

/// Messages that fit between the uplink and a shard: 100 ms at 300,000 a second.
const UPLINK_QUEUE: usize = 32_768;

/// Publications of all shards that fit before publishing is refused: 100 ms at 300,000 a second.
const PUBLICATION_QUEUE: usize = 32_768;

/// Administrative messages that fit between the control thread and a shard.
const CONTROL_QUEUE: usize = 4096;

/// Reloads that a shard need not have heard of before the next one.
const RELOAD_QUEUE: usize = 16;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A shard's ring or listener could not be set up.
    #[error("shard {shard} cannot listen on {address}: {error}")]
    Listen {
        /// The shard.
        shard: usize,
        /// Where it was to listen.
        address: SocketAddr,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// ADMIN_PORT cannot be listened on.
    #[error("ADMIN_PORT: cannot listen on {address}: {error}; is another process there (ss -ltnp)?")]
    AdminPort {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// A shard's thread could not be started or died while starting.
    #[error("shard {shard} did not start: {reason}")]
    Shard {
        /// The shard.
        shard: usize,
        /// What is known.
        reason: String,
    },
    /// The process has no descriptors or signals left.
    #[error("the process cannot be set up: {0}")]
    Process(#[from] std::io::Error),
    /// Randomness is not available.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// One row and column of queues per shard.
struct Queues {
    wakers: Vec<Arc<Waker>>,
    outlets: Vec<Vec<Option<Outlet<Envelope>>>>,
    inboxes: Vec<Vec<Receiver<Envelope>>>,
}

fn mesh_queues(shards: usize) -> std::io::Result<Queues> {
    let wakers = (0..shards).map(|_| Waker::new()).collect::<Result<Vec<_>, _>>()?;
    let mut inboxes: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
    let outlets = (0..shards)
        .map(|from| {
            (0..shards)
                .map(|to| {
                    (from != to).then(|| {
                        let (outlet, inbox) = Outlet::new(MESH_QUEUE, wakers[to].clone());
                        inboxes[to].push(inbox);
                        outlet
                    })
                })
                .collect()
        })
        .collect();
    Ok(Queues { wakers, outlets, inboxes })
}

/// Runs the server until SIGTERM or SIGINT, then drains it; at SIGHUP it reads what can change from `origin` again.
///
/// # Errors
/// When it cannot start.
pub fn run(settings: Settings, origin: Origin) -> Result<(), Box<dyn std::error::Error>> {
    let started = Instant::now();
    let mut boot = [0; 4];
    getrandom::fill(&mut boot).map_err(StartError::Random)?;
    let keys = Keys::read(&settings)?;
    let tls = settings.tls.clone().map(TlsAcceptor::new).transpose()?.map(Arc::new);
    let (instance, exporter) = set_up(settings, u32::from_ne_bytes(boot)).map_err(StartError::Process)?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(StartError::Process)?;
    let shards = instance.settings.shards;
    let mut queues = mesh_queues(shards).map_err(StartError::Process)?;
    let wakers = queues.wakers.clone();
    let cpus = usable_cpus();

    let authorizer = start_authorization(&instance, &mut queues, started)?;
    let uplink = Uplink::start(&instance, &mut queues, started, &cpus)?;
    let control = ControlThread::start(&instance, &mut queues, started)?;
    control.open_port(&instance, &keys, started)?;
    let shard_outlets = reload_queues(&mut queues);
    let mut address = SocketAddr::new(instance.settings.ws_host, instance.settings.ws_port);
    let mut threads = Vec::new();
    let columns = std::mem::take(&mut queues.outlets).into_iter().zip(std::mem::take(&mut queues.inboxes));
    for (index, (outlets, inboxes)) in columns.enumerate() {
        let id = ShardId(index as u8);
        let port = uplink.as_ref().map(Uplink::port);
        let shard = Shard::new(id, instance.clone(), keys.verifier(), Mesh::new(id, outlets), port)
            .asking(authorizer.clone())
            .administrated(control.outlet())
            .with_tls(tls.clone());
        let around = Surroundings {
            instance: instance.clone(),
            started,
            cells: instance.shards[index].clone(),
            inboxes,
            waker: wakers[index].clone(),
        };
        let (thread, bound) = start_shard(index, cpus[index % cpus.len()], shard, address, around)?;
        address = bound;
        threads.push(thread);
    }
    instance.enter(Phase::Serving);
    announce(&instance, address);

    let _watchdog = Watchdog::start(&instance, started).map_err(StartError::Process)?;
    systemd::ready();
    let mut reloader = Reloader { origin, instance: instance.clone(), keys, tls, shards: shard_outlets };
    let signal = await_stop(&mut signals, &mut reloader);
    systemd::stopping();
    let until = Instant::now() + instance.live().drain_timeout;
    instance.begin_drain();
    let over_ms = instance.drain().map_or(0, |plan| plan.closes.as_millis() as u64);
    tracing::info!(signal, over_ms, "draining: no new connections, clients are asked to come back elsewhere");
    for waker in &wakers {
        waker.wake();
    }
    for (index, thread) in threads.into_iter().enumerate() {
        if let Err(error) = thread.join() {
            tracing::error!(shard = index, %error, "a shard ended badly");
        }
    }
    control.handle.stop();
    if let Some(uplink) = uplink {
        uplink.handle.stop_within(until.saturating_duration_since(Instant::now()));
    }
    reloader.keys.stop();
    exporter.into_iter().for_each(Exporter::stop);
    tracing::info!("stopped");
    Ok(())
}

/// The process as its threads know it, and what sends its spans.
fn set_up(settings: Settings, boot: u32) -> std::io::Result<(Arc<Instance>, Option<Exporter>)> {
    let mut instance = Instance::new(settings, boot);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    instance.control.started_unix_ms.set(unix.as_millis() as u64);
    let traces = trace::driver::start(&instance.settings.traces, instance.id.as_str())?;
    let (tracer, exporter) = traces.unzip();
    instance.tracer = tracer;
    Ok((Arc::new(instance), exporter))
}

/// Starts the threads that ask the application who may join what, if there is one to ask; the way to them.
fn start_authorization(
    instance: &Instance,
    queues: &mut Queues,
    started: Instant,
) -> Result<Option<Sender<Question>>, CertificateError> {
    let (Some(settings), Some(cells)) = (&instance.settings.authorization, &instance.authorization) else {
        return Ok(None);
    };
    let mut shards = Vec::new();
    for (waker, inboxes) in queues.wakers.iter().zip(&mut queues.inboxes) {
        let (answers, inbox) = bounded(limits::AUTHORIZE_QUEUE);
        shards.push((answers, waker.clone()));
        inboxes.push(inbox);
    }
    authorization::driver::start(settings, cells.clone(), shards, started).map(Some)
}

/// The ways on which shards hear that settings were read again.
fn reload_queues(queues: &mut Queues) -> Vec<Outlet<Envelope>> {
    let queue = |(waker, inboxes): (&Arc<Waker>, &mut Vec<_>)| {
        let (outlet, inbox) = Outlet::new(RELOAD_QUEUE, waker.clone());
        inboxes.push(inbox);
        outlet
    };
    queues.wakers.iter().zip(&mut queues.inboxes).map(queue).collect()
}

/// Waits for the signal to stop; SIGHUP has settings, keys and certificates read again.
fn await_stop(signals: &mut Signals, reloader: &mut Reloader) -> Option<i32> {
    for signal in signals.forever() {
        if signal != SIGHUP {
            return Some(signal);
        }
        systemd::reloading(|| reloader.reload());
    }
    None
}

/// The running control thread, and what others need to reach it.
struct ControlThread {
    handle: ControlHandle,
    messages: Sender<ControlMessage>,
    waker: Arc<Waker>,
}

impl ControlThread {
    /// Starts it; its queues to the shards join the others.
    fn start(instance: &Arc<Instance>, queues: &mut Queues, started: Instant) -> Result<Self, StartError> {
        let waker = Waker::new()?;
        let (messages, inbox) = bounded(CONTROL_QUEUE);
        let mut shards = Vec::new();
        for (waker, inboxes) in queues.wakers.iter().zip(&mut queues.inboxes) {
            let (outlet, inbox) = Outlet::new(CONTROL_QUEUE, waker.clone());
            shards.push(outlet);
            inboxes.push(inbox);
        }
        let ports = admin::driver::Ports { shards, messages: inbox, waker: waker.clone() };
        let handle = admin::driver::start(instance, ports, started)?;
        Ok(Self { handle, messages, waker })
    }

    /// One shard's way to it.
    fn outlet(&self) -> Outlet<ControlMessage> {
        Outlet::to(self.messages.clone(), self.waker.clone())
    }

    /// Listens on ADMIN_PORT, if it is set.
    fn open_port(&self, instance: &Arc<Instance>, keys: &Keys, started: Instant) -> Result<(), StartError> {
        let Some(address) = instance.settings.administration.address() else { return Ok(()) };
        let listen = |error| StartError::AdminPort { address, error };
        let port = AdminPort {
            instance: instance.clone(),
            started,
            verifier: keys.current(),
            control: self.messages.clone(),
            waker: self.waker.clone(),
            calls: Arc::default(),
        };
        port.serve(std::net::TcpListener::bind(address).map_err(listen)?).map_err(listen)
    }
}

/// The running uplink, and what shards need to reach it.
struct Uplink {
    handle: UplinkHandle,
    commands: Sender<UplinkCommand>,
    publications: Sender<Publication>,
    waker: Arc<Waker>,
}

impl Uplink {
    /// Starts the uplink if there is a Redis; its queues to the shards join the others.
    fn start(
        instance: &Arc<Instance>,
        queues: &mut Queues,
        started: Instant,
        cpus: &[usize],
    ) -> Result<Option<Self>, Box<dyn std::error::Error>> {
        let (Some(settings), Some(cells)) = (&instance.settings.redis, &instance.uplink) else {
            return Ok(None);
        };
        let waker = Waker::new().map_err(StartError::Process)?;
        let (commands, ingress) = bounded(COMMAND_QUEUE);
        let (publications, publisher) = bounded(PUBLICATION_QUEUE);
        let (mut shards, mut answers) = (Vec::new(), Vec::new());
        for (waker, inboxes) in queues.wakers.iter().zip(&mut queues.inboxes) {
            let (outlet, inbox) = Outlet::new(UPLINK_QUEUE, waker.clone());
            shards.push(outlet);
            inboxes.push(inbox);
            let (outlet, inbox) = Outlet::new(UPLINK_QUEUE, waker.clone());
            answers.push(outlet);
            inboxes.push(inbox);
        }
        let ports = Ports {
            shards,
            answers,
            commands: ingress,
            waker: waker.clone(),
            publications: publisher,
            cells: cells.clone(),
            tracer: instance.tracer.clone(),
        };
        // On machines with cores to spare the uplink has the last one to itself.
        let cpu = (cpus.len() > instance.settings.shards).then(|| cpus[cpus.len() - 1]);
        let facts = instance.clone();
        let load = move || Load {
            instance: facts.load(),
            rooms: facts.rooms(),
            uptime: started.elapsed(),
            cpu: None,
        };
        let rules = HistoryRules {
            settings: instance.settings.history.clone(),
            // The other half is for what comes while the reply is being sent.
            reply_bytes: recovery_bytes(instance.settings.outbox_bytes),
        };
        let handle = uplink::driver::start(settings, rules, &instance.id, instance.boot, ports, load, cpu)?;
        Ok(Some(Self { handle, commands, publications, waker }))
    }

    /// One shard's way to it.
    fn port(&self) -> UplinkPort {
        UplinkPort {
            commands: Outlet::to(self.commands.clone(), self.waker.clone()),
            publications: self.publications.clone(),
            state: LinkState::Restoring,
            published_alone: Default::default(),
            settled: false,
        }
    }
}

/// Starts a shard's thread and waits until it listens.
fn start_shard(
    index: usize,
    cpu: usize,
    shard: Shard,
    address: SocketAddr,
    around: Surroundings,
) -> Result<(ExecutorJoinHandle<()>, SocketAddr), StartError> {
    let (tell, told) = bounded(1);
    let thread = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("tf-shard-{index}"))
        .io_memory(0)
        .ring_depth(16)
        // The executor parks for good when this timer has fired before it looks at its tasks, as on a
        // thread that did not get its core in time: never, then. Nothing else runs on a shard's executor.
        .preempt_timer(Duration::from_secs(3600))
        .spawn(move || async move {
            match Driver::new(shard, address, around) {
                Ok((driver, bound)) => {
                    let _ = tell.send(Ok(bound));
                    driver.run();
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        })
        .map_err(|error| StartError::Shard { shard: index, reason: error.to_string() })?;
    match told.recv() {
        Ok(Ok(bound)) => Ok((thread, bound)),
        Ok(Err(error)) => Err(StartError::Listen { shard: index, address, error }),
        Err(_) => {
            Err(StartError::Shard { shard: index, reason: "its thread ended while starting".to_owned() })
        }
    }
}

/// The CPUs this process may run on.
fn usable_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let cpus: Vec<_> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

fn announce(instance: &Instance, address: SocketAddr) {
    let (ws, http) = if instance.settings.tls.is_some() { ("wss", "https") } else { ("ws", "http") };
    tracing::info!(%address, shards = instance.settings.shards, "serving");
    if instance.settings.console {
        println!(
            "TableForge is running. Open {http}://{address}/ in two tabs, or connect to {ws}://{address}/ws"
        );
        println!(
            "Try it: cargo run --release -p loadtest -- rooms --connections 1000 --room-size 50 --rate 200 --url {ws}://{address}/ws"
        );
    } else {
        println!("TableForge serves {ws}://{address}/ws");
    }
}
