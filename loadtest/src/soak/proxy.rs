//! A TCP proxy on loopback that plays the network: it delays, stalls, holds and cuts what goes through it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are passed on at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Chunks on their way in one direction: what a slow network holds.
const CHUNKS: usize = 4_096;

/// Between two looks at whether the network is silent.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What a lost segment waits for its repetition: TCP's least timeout on Linux, and some doublings of it.
const REPETITION_MS: [u64; 4] = [200, 200, 400, 800];

/// Of so many lost segments one takes the connection with it.
const CUT_ONE_IN: u64 = 40;

/// A proxy in front of one server. Dropping it ends all of its connections.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    network: Arc<Network>,
}

#[derive(Debug)]
struct Network {
    /// Port of the server on 127.0.0.1.
    target: AtomicU16,
    silent: AtomicBool,
    refusing: AtomicBool,
    delay_ms: AtomicU32,
    loss_percent: AtomicU32,
    ended: AtomicBool,
    drawn: AtomicU64,
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
}

impl Proxy {
    /// A proxy in front of the port `target` of 127.0.0.1.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let network = Arc::new(Network {
            target: AtomicU16::new(target),
            silent: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            delay_ms: AtomicU32::new(0),
            loss_percent: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            drawn: AtomicU64::new(u64::from(port)),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&network);
        thread::spawn(move || accept(&listener, &accepting));
        Ok(Self { port, network })
    }

    /// From now on new connections go to this port of 127.0.0.1.
    pub fn lead_to(&self, target: u16) {
        self.network.target.store(target, SeqCst);
    }

    /// Silence: nothing passes and nobody is told, as when a cable is pulled. What was on its way passes after.
    pub fn set_silent(&self, silent: bool) {
        self.network.silent.store(silent, SeqCst);
    }

    /// Cuts all connections and, until set back, every new one.
    pub fn set_refusing(&self, refusing: bool) {
        self.network.refusing.store(refusing, SeqCst);
        if refusing {
            self.cut();
        }
    }

    /// Everything takes so much longer in each direction.
    pub fn set_delay(&self, delay: Duration) {
        self.network.delay_ms.store(delay.as_millis() as u32, SeqCst);
    }

    /// So many of 100 chunks wait for their repetition, and some take the connection with them.
    pub fn set_loss(&self, percent: u32) {
        self.network.loss_percent.store(percent, SeqCst);
    }

    /// Ends all connections, on both sides.
    pub fn cut(&self) {
        for (client, server) in self.network.open().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.network.ended.store(true, SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Network {
    fn open(&self) -> std::sync::MutexGuard<'_, Vec<(TcpStream, TcpStream)>> {
        self.open.lock().expect("nobody panics while holding it")
    }

    fn wait_while_silent(&self) {
        while self.silent.load(SeqCst) && !self.ended.load(SeqCst) {
            thread::sleep(LOOK_EVERY);
        }
    }

    /// A number below `bound` that nobody can foresee and everybody can repeat.
    fn draw(&self, bound: u64) -> u64 {
        fastrand::Rng::with_seed(self.drawn.fetch_add(1, SeqCst)).u64(..bound)
    }
}

fn accept(listener: &TcpListener, network: &Arc<Network>) {
    for client in listener.incoming() {
        if network.ended.load(SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if network.refusing.load(SeqCst) {
            continue;
        }
        // A server that is not there: the client sees its connection end.
        let Ok(server) = TcpStream::connect(("127.0.0.1", network.target.load(SeqCst))) else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        if let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) {
            let mut open = network.open();
            // Those that have ended need no more cutting.
            open.retain(|(client, _)| client.take_error().is_ok() && client.peer_addr().is_ok());
            open.push((client_too, server_too));
        }
        relay(&client, &server, network);
        relay(&server, &client, network);
    }
}

/// Passes on what comes from `from` to `to`, in two threads.
fn relay(from: &TcpStream, to: &TcpStream, network: &Arc<Network>) {
    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
    let (chunks, due) = mpsc::sync_channel(CHUNKS);
    let (reading, writing) = (Arc::clone(network), Arc::clone(network));
    thread::spawn(move || take_in(from, &chunks, &reading));
    thread::spawn(move || give_out(to, &due, &writing));
}

fn take_in(mut from: TcpStream, chunks: &SyncSender<(Instant, Vec<u8>)>, network: &Network) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        network.wait_while_silent();
        let Ok(read @ 1..) = from.read(&mut buffer) else { return };
        let delay = Duration::from_millis(network.delay_ms.load(SeqCst).into());
        if chunks.send((Instant::now() + delay, buffer[..read].to_vec())).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn give_out(mut to: TcpStream, chunks: &Receiver<(Instant, Vec<u8>)>, network: &Network) {
    while let Ok((due, chunk)) = chunks.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if network.draw(100) < u64::from(network.loss_percent.load(SeqCst)) {
            let wait = REPETITION_MS[network.draw(REPETITION_MS.len() as u64) as usize];
            thread::sleep(Duration::from_millis(wait));
            if network.draw(CUT_ONE_IN) == 0 {
                break;
            }
        }
        network.wait_while_silent();
        if to.write_all(&chunk).is_err() {
            break;
        }
    }
    network.wait_while_silent();
    let _ = to.shutdown(Shutdown::Both);
}
