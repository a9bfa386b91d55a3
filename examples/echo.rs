//! A WebSocket echo server made of the stages `ring`, `accept`, `codec` and `send` alone.
//!
//! It sends every text and binary message back, which is what conformance suites such as the Autobahn
//! TestSuite want of a server, and it shows that the stages need nothing of the rooms above them.
//! One thread, one ring, loopback only:
//!
//! ```text
//! cargo run --release --example echo -- --port 9001
//! ```

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use tableforge::accept::extension::Deflate;
use tableforge::accept::request::{self, Head};
use tableforge::accept::{http, upgrade};
use tableforge::codec::close::CloseCode;
use tableforge::codec::deflate::{Deflater, Inflater};
use tableforge::codec::forms::Forms;
use tableforge::codec::frame;
use tableforge::codec::message::{Decoder, Event, MessageLimits};
use tableforge::ring::{Completion, Key, Ring, RingSettings};
use tableforge::send::outbox::Outboxes;

/// The suites' largest messages have 16 MiB. Their most fragmented ones (Autobahn 9.3.1 and 9.4.1) have
/// 65,536 frames of 64 bytes and an empty last one.
const LIMITS: MessageLimits = MessageLimits { message_bytes: 16 << 20, fragments: 65_537 };

/// Bytes that may wait for one client: some of the largest messages.
const OUTBOX_BYTES: usize = 4 * LIMITS.message_bytes;

/// Bytes from which an answer is compressed, as the server does by default.
const COMPRESS_FROM: usize = 512;

/// Few but large receive buffers, 4 MiB together: the connections are few, their messages large.
const RING: RingSettings =
    RingSettings { submissions: 256, completions: 1024, buffers: 128, buffer_bytes: 32 * 1024 };

/// Completions handled before what they caused is sent.
const COMPLETIONS_PER_TURN: usize = 256;

/// How long a client may take to read what waits for it and to close, once nothing more is read from it.
const LINGER: Duration = Duration::from_secs(5);

/// Echoes WebSocket messages.
#[derive(Parser)]
struct Arguments {
    /// The TCP port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 9001)]
    port: u16,
    /// Compress for clients that offer it (permessage-deflate).
    #[arg(long)]
    compression: bool,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let mut ring = Ring::new(RING)?;
    let address = ring.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port)))?;
    ring.accept();
    println!("echoing on ws://{address}/");
    let mut server =
        Server { ring, clients: Clients::new(arguments.compression), lingering: VecDeque::new() };
    let mut completions = Vec::new();
    loop {
        server.ring.submit_and_wait(1, server.until_next_deadline());
        server.ring.reap(COMPLETIONS_PER_TURN, &mut completions);
        for completion in completions.drain(..) {
            server.handle(completion)?;
        }
        server.close_overdue();
        server.flush();
    }
}

/// Joins the clients to the ring and the clock.
struct Server {
    ring: Ring,
    clients: Clients,
    /// Clients that are not listened to any more, in the order in which their time is up.
    lingering: VecDeque<(Instant, Key)>,
}

impl Server {
    fn handle(&mut self, completion: Completion) -> io::Result<()> {
        match completion {
            Completion::Accepted(key) => {
                self.clients.open(key.slot);
                self.ring.receive(key);
            }
            Completion::AcceptStopped(error) => return Err(error),
            Completion::Received(key, mut filled) => {
                let was_finishing = self.clients.is_finishing(key.slot);
                self.clients.receive(key.slot, self.ring.bytes_mut(&mut filled));
                self.ring.recycle(filled);
                if !was_finishing && self.clients.is_finishing(key.slot) {
                    self.lingering.push_back((Instant::now() + LINGER, key));
                }
            }
            Completion::Ended(key, _) if self.clients.outboxes.is_empty(key.slot) => self.close(key),
            Completion::Ended(key, _) => {
                self.clients.end(key.slot);
                self.lingering.push_back((Instant::now() + LINGER, key));
            }
            Completion::Sent(key, _, Err(_)) => self.close(key),
            Completion::Sent(key, batch, Ok(())) => {
                self.clients.outboxes.sent(key.slot, batch);
                if self.clients.outboxes.is_empty(key.slot) {
                    self.all_is_sent(key);
                }
            }
            Completion::Closed(key) => self.clients.end(key.slot),
            Completion::Woken => {}
        }
        Ok(())
    }

    fn all_is_sent(&mut self, key: Key) {
        match self.clients.phases[key.slot as usize] {
            Phase::Handshake(_) | Phase::Open(..) => {}
            Phase::Finishing => self.ring.finish_sending(key),
            Phase::Ended => self.close(key),
        }
    }

    /// Sends everything that waits for clients to which nothing is being sent yet.
    fn flush(&mut self) {
        let Self { ring, clients, .. } = self;
        // Nothing asks how long a batch has been under way, so its start has no time.
        clients.outboxes.flush(0, usize::MAX, |slot, batch| match ring.key(slot) {
            Some(key) => ring.send(key, batch),
            None => Err(batch),
        });
    }

    fn close(&mut self, key: Key) {
        self.clients.outboxes.shut(key.slot);
        self.clients.outboxes.discard(key.slot);
        self.ring.close(key);
    }

    fn until_next_deadline(&self) -> Duration {
        let first = self.lingering.front();
        first.map_or(LINGER, |(deadline, _)| deadline.saturating_duration_since(Instant::now()))
    }

    fn close_overdue(&mut self) {
        let now = Instant::now();
        while let Some(&(deadline, key)) = self.lingering.front() {
            if deadline > now {
                break;
            }
            self.lingering.pop_front();
            if self.ring.key(key.slot) == Some(key) {
                self.close(key);
            }
        }
    }
}

/// What a client is doing.
enum Phase {
    /// It sends its HTTP request, of which this much has come.
    Handshake(Vec<u8>),
    /// It sends messages, and expands compressed ones with a window of that many bits; 0 takes plain ones.
    Open(Box<Decoder>, u8),
    /// It has been told everything, the close frame last, and is not listened to any more.
    Finishing,
    /// It says nothing more, but may still read what waits for it.
    Ended,
}

/// All clients, by slot: bytes in, bytes out, no sockets.
struct Clients {
    phases: Vec<Phase>,
    outboxes: Outboxes,
    compression: bool,
    deflater: Deflater,
    inflater: Inflater,
}

impl Clients {
    fn new(compression: bool) -> Self {
        Self {
            phases: Vec::new(),
            outboxes: Outboxes::new(OUTBOX_BYTES),
            compression,
            deflater: Deflater::new(COMPRESS_FROM),
            inflater: Inflater::default(),
        }
    }

    fn open(&mut self, slot: u32) {
        let index = slot as usize;
        if index >= self.phases.len() {
            self.phases.resize_with(index + 1, || Phase::Ended);
        }
        self.phases[index] = Phase::Handshake(Vec::new());
        self.outboxes.open(slot);
    }

    /// Nothing more comes from the client; its decoder is freed.
    fn end(&mut self, slot: u32) {
        self.phases[slot as usize] = Phase::Ended;
        self.outboxes.shut(slot);
    }

    fn is_finishing(&self, slot: u32) -> bool {
        matches!(self.phases[slot as usize], Phase::Finishing)
    }

    fn receive(&mut self, slot: u32, bytes: &mut [u8]) {
        let phase = std::mem::replace(&mut self.phases[slot as usize], Phase::Finishing);
        self.phases[slot as usize] = match phase {
            Phase::Handshake(head) => self.read_head(slot, head, bytes),
            Phase::Open(decoder, window) => self.read_frames(slot, decoder, window, bytes),
            ended @ (Phase::Finishing | Phase::Ended) => ended,
        };
        for slot in self.outboxes.take_overflowed() {
            let code = CloseCode::SlowReader;
            self.outboxes.finish(slot, &frame::close(code.as_u16(), code.reason()), true);
            self.phases[slot as usize] = Phase::Finishing;
        }
    }

    /// Answers the request once it is complete; any path will do.
    fn read_head(&mut self, slot: u32, mut head: Vec<u8>, bytes: &[u8]) -> Phase {
        head.extend_from_slice(bytes);
        let answer = match request::parse(&head) {
            Head::Incomplete => return Phase::Handshake(head),
            Head::Refused(refusal) => Err(refusal),
            Head::Request(request, length) => {
                upgrade::check(&request, &[], self.compression).map(|upgrade| (upgrade, length))
            }
        };
        match answer {
            Ok((upgrade, length)) => {
                let window = upgrade.deflate.map_or(0, Deflate::window);
                self.outboxes.push(slot, &Bytes::from(upgrade.response));
                self.read_frames(slot, Box::default(), window, &mut head[length..])
            }
            Err(refusal) => {
                self.outboxes.finish(slot, &Bytes::from(http::refuse(&refusal)), false);
                Phase::Finishing
            }
        }
    }

    /// Answers every message that the bytes complete.
    fn read_frames(&mut self, slot: u32, mut decoder: Box<Decoder>, window: u8, bytes: &mut [u8]) -> Phase {
        let Self { outboxes, deflater, inflater, .. } = self;
        let mut echo = |outboxes: &mut Outboxes, frame: Bytes| {
            outboxes.push(slot, Forms::new(&frame, deflater).fitting(window));
        };
        let inflater = (window > 0).then_some(inflater);
        let outcome = decoder.feed(bytes, &LIMITS, inflater, &mut |event| {
            match event {
                Event::Text(text) => echo(outboxes, frame::text(text)),
                Event::Binary(bytes) => echo(outboxes, frame::binary(bytes)),
                Event::Ping(payload) => outboxes.push(slot, &frame::pong(payload)),
                Event::Pong(_) => {}
                Event::Close { code, .. } => outboxes.finish(slot, &frame::close_reply(code), false),
            }
            ControlFlow::Continue(())
        });
        if let Err(violation) = outcome {
            let code = violation.close_code().as_u16();
            outboxes.finish(slot, &frame::close(code, &violation.to_string()), false);
        }
        if decoder.is_finished() { Phase::Finishing } else { Phase::Open(decoder, window) }
    }
}
