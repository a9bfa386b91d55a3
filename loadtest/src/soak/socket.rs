//! A WebSocket that never blocks: bytes in, messages out.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::sockopt;
use serde_json::Value;

/// How long the kernel may take for a connection over loopback.
const CONNECT: Duration = Duration::from_millis(500);

/// Bytes that one read takes.
const READ_BYTES: usize = 64 * 1024;

/// What came in.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A text message.
    Message(Value),
    /// A close frame, with its code.
    Close(u16),
}

/// A connection to an instance.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    upgraded: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    broken: bool,
    /// The status of an answer that was no upgrade.
    pub(crate) refused: Option<u16>,
}

impl Socket {
    /// Connects and asks for the upgrade; nothing when nobody listens there.
    pub(crate) fn open(port: u16, token: &str) -> Option<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect_timeout(&address, CONNECT).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_nonblocking(true).ok()?;
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: soak\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Authorization: Bearer {token}\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let outbox = request.into_bytes();
        Some(Self { stream, upgraded: false, inbox: Vec::new(), outbox, broken: false, refused: None })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Queues a text message.
    pub(crate) fn say(&mut self, text: &str) {
        self.frame(0x81, text.as_bytes());
    }

    /// Queues a frame, masked with zeroes, which is a mask like any other.
    fn frame(&mut self, first: u8, payload: &[u8]) {
        self.outbox.push(first);
        match payload.len() {
            length @ 0..126 => self.outbox.push(0x80 | length as u8),
            length @ 126..65_536 => {
                self.outbox.push(0xFE);
                self.outbox.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                self.outbox.push(0xFF);
                self.outbox.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        self.outbox.extend_from_slice(&[0; 4]);
        self.outbox.extend_from_slice(payload);
    }

    /// Writes what is queued, as far as the kernel takes it.
    pub(crate) fn flush(&mut self) {
        while !self.outbox.is_empty() && !self.broken {
            match self.stream.write(&self.outbox) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(why) if why.kind() == ErrorKind::WouldBlock => return,
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
    }

    /// Takes what has come; whether the connection is over after that.
    pub(crate) fn receive(&mut self, incoming: &mut Vec<Incoming>) -> bool {
        let mut ended = false;
        let mut buffer = [0; READ_BYTES];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => ended = true,
                Ok(read) => {
                    self.inbox.extend_from_slice(&buffer[..read]);
                    continue;
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Err(why) if why.kind() == ErrorKind::Interrupted => continue,
                Err(_) => ended = true,
            }
            break;
        }
        self.parse(incoming);
        // What can no longer be written may still have left something to read.
        ended || self.refused.is_some() || (self.broken && incoming.is_empty())
    }

    fn parse(&mut self, incoming: &mut Vec<Incoming>) {
        let mut at = 0;
        if !self.upgraded {
            let Some(end) = self.inbox.windows(4).position(|end| end == b"\r\n\r\n") else { return };
            let status = String::from_utf8_lossy(&self.inbox[..end]);
            let status = status.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            if status != 101 {
                self.refused = Some(status);
                return;
            }
            (self.upgraded, at) = (true, end + 4);
        }
        while let Some((opcode, from, to)) = next_frame(&self.inbox, at) {
            let payload = self.inbox[from..to].to_vec();
            match opcode {
                1 => {
                    let value = serde_json::from_slice(&payload).unwrap_or_else(|why| {
                        panic!("the server sent no JSON ({why}): {}", String::from_utf8_lossy(&payload))
                    });
                    incoming.push(Incoming::Message(value));
                }
                8 => {
                    let code = payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                    self.frame(0x88, &payload[..payload.len().min(2)]);
                    incoming.push(Incoming::Close(code));
                }
                9 => self.frame(0x8A, &payload),
                _ => {}
            }
            at = to;
        }
        self.inbox.drain(..at);
    }

    /// Ends the connection by a reset, as a program does that crashes.
    pub(crate) fn reset(self) {
        let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}

/// The opcode of the frame at `at`, and where its payload is.
fn next_frame(bytes: &[u8], at: usize) -> Option<(u8, usize, usize)> {
    let [first, second] = *bytes.get(at..at + 2)? else { return None };
    let (length, header) = match second {
        126 => (u16::from_be_bytes(bytes.get(at + 2..at + 4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(bytes.get(at + 2..at + 10)?.try_into().ok()?) as usize, 10),
        length => (length as usize, 2),
    };
    let to = at + header + length;
    (to <= bytes.len()).then_some((first & 0x0F, at + header, to))
}
