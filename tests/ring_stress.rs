//! The ring under load that its sizes are much too small for: clients that come, talk, half-close, vanish
//! and are thrown out in any order. Every byte must come back once and in order, every slot must return.
//!
//! What happens is chosen by a seed, which is printed; `RING_STRESS_SEED=n` tries another one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, Socket, Type};
use tableforge::ring::{Completion, Filled, Key, Ring, RingSettings, Segment, SendBatch};

const SETTINGS: RingSettings = RingSettings { submissions: 4, completions: 16, buffers: 8, buffer_bytes: 64 };
const BUFFERS: usize = SETTINGS.buffers as usize;

/// Client threads, what each has open at once, and how many connections each makes in all.
const THREADS: usize = 3;
const OPEN_AT_ONCE: usize = 16;
const CONNECTIONS: usize = 800;

/// Far more than a run takes; whoever waits longer has been forgotten.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first byte of a connection says how it goes on.
const ECHO: u8 = b'E';
/// The client says no more and reads to the end.
const HALF_CLOSE: u8 = b'H';
/// The client goes away in the middle.
const VANISH: u8 = b'V';
/// The server closes in the middle.
const THROW_OUT: u8 = b'T';

/// Xorshift64*: the same choices for the same seed.
struct Choices(u64);

impl Choices {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// What the server knows of a connection.
struct Peer {
    key: Key,
    life: Option<u8>,
    outgoing: Vec<u8>,
    sending: bool,
    ended: bool,
    closing: bool,
}

/// Sends back what it gets, and checks that the ring keeps its promises.
struct Server {
    ring: Ring,
    peers: Vec<Option<Peer>>,
    held: Vec<Filled>,
    /// To be closed when all completions of the turn have been handled: they happened before.
    to_close: Vec<Key>,
    choices: Choices,
    accepted: usize,
    closed: usize,
}

impl Server {
    fn peer(&mut self, key: Key) -> &mut Peer {
        let peer = self.peers[key.slot as usize].as_mut().expect("a completion for a free slot");
        assert_eq!(peer.key, key, "a completion met a stranger");
        peer
    }

    fn handle(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted(key) => {
                self.accepted += 1;
                let slot = key.slot as usize;
                if slot >= self.peers.len() {
                    self.peers.resize_with(slot + 1, || None);
                }
                assert!(self.peers[slot].is_none(), "slot {slot} was given away twice");
                let peer =
                    Peer { key, life: None, outgoing: vec![], sending: false, ended: false, closing: false };
                self.peers[slot] = Some(peer);
                self.ring.receive(key);
            }
            Completion::AcceptStopped(error) => panic!("accepting stopped: {error}"),
            Completion::Received(key, filled) => self.received(key, filled),
            Completion::Ended(key, _) => {
                let peer = self.peer(key);
                assert!(!peer.closing && !peer.ended, "told of the end twice, or after close");
                peer.ended = true;
                self.go_on(key);
            }
            Completion::Sent(key, batch, outcome) => {
                let peer = self.peer(key);
                assert!(peer.sending && !peer.closing, "a send that nobody began");
                assert!(batch.bytes() > 0);
                peer.sending = false;
                match outcome {
                    Ok(()) => self.go_on(key),
                    Err(_) => {
                        assert_eq!(peer.life, Some(VANISH), "a send failed to a client that was there");
                        self.to_close.push(key);
                    }
                }
            }
            Completion::Closed(key) => {
                assert!(self.peer(key).closing, "closed without being asked to");
                self.peers[key.slot as usize] = None;
                self.closed += 1;
            }
            Completion::Woken => panic!("nothing is watched"),
        }
    }

    fn received(&mut self, key: Key, mut filled: Filled) {
        let bytes = self.ring.bytes_mut(&mut filled).to_vec();
        assert!((1..=SETTINGS.buffer_bytes as usize).contains(&bytes.len()));
        self.held.push(filled);
        assert!(self.held.len() <= BUFFERS, "a buffer was given out twice");
        let throw_out = self.choices.one_in(4);
        let peer = self.peer(key);
        assert!(!peer.closing && !peer.ended, "bytes after the end");
        let life = *peer.life.get_or_insert(bytes[0]);
        peer.outgoing.extend_from_slice(&bytes);
        self.go_on(key);
        if life == THROW_OUT && throw_out {
            self.to_close.push(key);
        }
    }

    /// Sends what waits, or closes when everything is done.
    fn go_on(&mut self, key: Key) {
        let peer = self.peer(key);
        if peer.sending {
            return;
        }
        if !peer.outgoing.is_empty() {
            peer.sending = true;
            let outgoing = std::mem::take(&mut peer.outgoing);
            let batch = self.cut(outgoing);
            self.ring.send(key, batch).expect("nothing was being sent");
        } else if peer.ended {
            self.to_close.push(key);
        }
    }

    /// Cuts bytes into segments of any size and kind.
    fn cut(&mut self, outgoing: Vec<u8>) -> Box<SendBatch> {
        let mut batch = Box::<SendBatch>::default();
        let mut rest = Bytes::from(outgoing);
        while !rest.is_empty() {
            let last = batch.len() + 1 == SendBatch::SEGMENTS;
            let length = if last { rest.len() } else { 1 + self.choices.below(rest.len()) };
            let piece = rest.split_to(length);
            match self.choices.below(3) {
                0 => batch.push(Segment::Copied(piece.to_vec())),
                1 => batch.push_copied(&piece, Vec::new),
                _ => batch.push(Segment::Shared(piece)),
            }
        }
        batch
    }

    fn close(&mut self, key: Key) {
        self.peer(key).closing = true;
        self.ring.close(key);
        self.ring.close(key);
        self.ring.receive(key);
        let mut late = Box::<SendBatch>::default();
        late.push(Segment::Shared(Bytes::from_static(b"late")));
        assert!(self.ring.send(key, late).is_err(), "sent after close");
    }

    fn recycle_some(&mut self) {
        let keep = if self.choices.one_in(3) { 0 } else { self.choices.below(BUFFERS) };
        while self.held.len() > keep {
            let place = self.choices.below(self.held.len());
            self.ring.recycle(self.held.swap_remove(place));
        }
    }

    /// Turns until all clients are done and their connections closed.
    fn run(&mut self, clients_at_work: &AtomicUsize) {
        let deadline = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        while clients_at_work.load(Ordering::SeqCst) > 0 || self.accepted > self.closed {
            assert!(Instant::now() < deadline, "{} of {} connections closed", self.closed, self.accepted);
            let want = 1 + self.choices.below(3);
            self.ring.submit_and_wait(want, Duration::from_millis(5));
            self.ring.reap(1 + self.choices.below(20), &mut completions);
            for completion in completions.drain(..) {
                self.handle(completion);
            }
            for key in std::mem::take(&mut self.to_close) {
                self.close(key);
            }
            self.recycle_some();
        }
        self.held.drain(..).for_each(|filled| self.ring.recycle(filled));
    }
}

/// One connection, seen from its client.
struct Client {
    stream: TcpStream,
    life: u8,
    /// What is sent in all.
    script: Vec<u8>,
    sent: usize,
    heard: usize,
}

impl Client {
    fn new(address: SocketAddr, choices: &mut Choices) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if choices.one_in(2) {
            socket.set_recv_buffer_size(2048).unwrap();
        }
        socket.connect(&address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let life = [ECHO, HALF_CLOSE, VANISH, THROW_OUT][choices.below(4)];
        let length = 1 + if choices.one_in(50) { choices.below(100_000) } else { choices.below(3000) };
        let mut script: Vec<u8> = (0..length).map(|_| choices.below(256) as u8).collect();
        script[0] = life;
        Self { stream, life, script, sent: 0, heard: 0 }
    }

    /// Does something that the connection's life has in it; returns whether it is over.
    fn step(&mut self, choices: &mut Choices) -> bool {
        if self.life == VANISH && self.sent > 0 && choices.one_in(8) {
            return true;
        }
        let outcome = if self.sent < self.script.len() && choices.one_in(2) {
            let length = 1 + choices.below(self.script.len() - self.sent);
            let piece = &self.script[self.sent..self.sent + length];
            self.sent += length;
            self.stream.write_all(piece).map(|()| false)
        } else if self.heard < self.sent {
            self.hear()
        } else if self.sent < self.script.len() {
            Ok(false)
        } else if self.life == HALF_CLOSE {
            self.stream.shutdown(Shutdown::Write).and_then(|()| self.hear())
        } else {
            Ok(true)
        };
        outcome.unwrap_or_else(|error| {
            let broken = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
            assert!(self.life == THROW_OUT && broken, "{} after {} bytes: {error}", self.life, self.heard);
            true
        })
    }

    /// Reads some of the answer; returns whether there is no more.
    fn hear(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 4096];
        let length = self.stream.read(&mut buffer)?;
        let heard = self.heard..self.heard + length;
        assert_eq!(Some(&buffer[..length]), self.script[..self.sent].get(heard), "not what was sent");
        self.heard += length;
        if length == 0 && self.life != THROW_OUT {
            assert_eq!((self.life, self.heard), (HALF_CLOSE, self.script.len()), "closed too early");
        }
        Ok(length == 0)
    }
}

fn talk(address: SocketAddr, mut choices: Choices) {
    let mut open = Vec::new();
    let mut to_come = CONNECTIONS;
    while to_come > 0 || !open.is_empty() {
        if to_come > 0 && open.len() < OPEN_AT_ONCE && choices.one_in(2) {
            to_come -= 1;
            open.push(Client::new(address, &mut choices));
        }
        if !open.is_empty() {
            let place = choices.below(open.len());
            if open[place].step(&mut choices) {
                open.swap_remove(place);
            }
        }
    }
}

/// Counts a client thread as done, even if it panics.
struct AtWork<'a>(&'a AtomicUsize);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn run(seed: u64) {
    println!("RING_STRESS_SEED={seed}");
    let mut ring = Ring::new(SETTINGS).unwrap();
    let address = ring.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    ring.accept();
    let clients_at_work = &AtomicUsize::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            scope.spawn(move || {
                let _at_work = AtWork(clients_at_work);
                talk(address, Choices::new(seed * 100 + thread));
            });
        }
        // Inside the scope, so that a panic drops the ring and with it what clients wait for.
        let choices = Choices::new(seed * 100 + 99);
        let mut server =
            Server { ring, peers: vec![], held: vec![], to_close: vec![], choices, accepted: 0, closed: 0 };
        server.run(clients_at_work);
        assert_eq!(server.accepted, THREADS * CONNECTIONS);
        assert!(server.peers.len() <= 4 * THREADS * OPEN_AT_ONCE, "{} slots", server.peers.len());
    });
}

#[test]
fn every_byte_arrives_once_and_every_slot_returns() {
    match std::env::var("RING_STRESS_SEED") {
        Ok(seed) => run(seed.parse().expect("RING_STRESS_SEED is a number")),
        Err(_) => (1..=3).for_each(run),
    }
}
