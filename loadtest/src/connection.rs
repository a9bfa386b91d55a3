//! One client connection: its socket, the bytes that wait on either side, how far it has come.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use tungstenite::protocol::frame::coding::OpCode;

use crate::frame;
use crate::handshake::Handshake;

/// Bytes that a read takes at most, into a buffer that all connections share.
pub const READ_BYTES: usize = 256 * 1024;

/// Bytes waiting to be written above which a connection counts as stuck and gets no more messages.
pub const MAX_QUEUED_BYTES: usize = 1024 * 1024;

/// How far a connection has come.
#[derive(Debug)]
pub enum State {
    /// Not begun.
    Unstarted,
    /// The TCP handshake is under way, the request is queued.
    Connecting(Handshake),
    /// The upgrade was asked for.
    Upgrading(Handshake),
    /// Open; the server's first message is awaited.
    Greeting,
    /// Asked to join its room.
    Joining,
    /// Takes part in the run.
    Ready,
    /// Over.
    Closed,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes are in the buffer, those carried over from the last read included.
    Bytes(usize),
    /// Nothing is there.
    Nothing,
    /// The server closed its side.
    End,
}

/// A client connection.
#[derive(Debug)]
pub struct Connection {
    /// How far it has come.
    pub state: State,
    /// Its room.
    pub room: u32,
    /// How often it has been begun, so that a deadline of an earlier time can be told apart.
    pub attempt: u32,
    /// When it was meant to come back, in microseconds since the run's epoch, while it is on its way.
    pub intended_us: Option<u64>,
    /// Messages it has sent, over all times it was there.
    pub sent: u32,
    /// Whether it waits in a list of connections to flush.
    pub dirty: bool,
    /// Whether the socket is watched for room to write.
    pub watches_write: bool,
    /// Whether messages may be compressed.
    pub deflate: bool,
    /// The message that fragments are gathered for.
    pub fragments: Vec<u8>,
    socket: Option<OwnedFd>,
    carried: Vec<u8>,
    queued: Vec<u8>,
}

impl Connection {
    /// A connection that has not begun.
    pub fn new(room: usize) -> Self {
        Self {
            state: State::Unstarted,
            room: room as u32,
            attempt: 0,
            intended_us: None,
            sent: 0,
            dirty: false,
            watches_write: false,
            deflate: false,
            fragments: Vec::new(),
            socket: None,
            carried: Vec::new(),
            queued: Vec::new(),
        }
    }

    /// Begins to connect; the socket becomes writable when that is done.
    ///
    /// # Errors
    /// The kernel refused: no descriptor, no free port, no route.
    pub fn connect(&mut self, address: SocketAddr, source: Option<Ipv4Addr>) -> Result<(), Errno> {
        let family = match address {
            SocketAddr::V4(_) => rustix::net::AddressFamily::INET,
            SocketAddr::V6(_) => rustix::net::AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        if let Some(source) = source {
            rustix::net::bind(&socket, &SocketAddr::from((source, 0)))?;
        }
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        self.socket = Some(socket);
        Ok(())
    }

    /// Whether connecting succeeded, once the socket has become writable.
    ///
    /// # Errors
    /// It failed, and why.
    pub fn connected(&self) -> Result<(), Errno> {
        self.socket().map_or(Err(Errno::NOTCONN), |socket| sockopt::socket_error(socket)?)
    }

    /// The TCP handshake is over, the answer to the request comes next.
    pub fn await_upgrade(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Connecting(handshake) => State::Upgrading(handshake),
            state => state,
        };
    }

    /// The socket, while there is one.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Whether the connection takes part in the run.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// Ends the connection at once; returns how far it had come.
    pub fn end(&mut self) -> State {
        self.socket = None;
        self.carried = Vec::new();
        self.queued = Vec::new();
        self.fragments = Vec::new();
        std::mem::replace(&mut self.state, State::Closed)
    }

    /// Queues plain bytes.
    pub fn queue_bytes(&mut self, bytes: &[u8]) {
        self.queued.extend_from_slice(bytes);
    }

    /// Queues a frame.
    pub fn queue_frame(&mut self, opcode: OpCode, payload: &[u8], mask: [u8; 4]) {
        frame::write(opcode, payload, mask, &mut self.queued);
    }

    /// Queues a text message's frame whose payload is compressed.
    pub fn queue_compressed(&mut self, payload: &[u8], mask: [u8; 4]) {
        frame::write_marked(frame::TEXT, true, payload, mask, &mut self.queued);
    }

    /// Bytes that wait to be written.
    pub fn queued_bytes(&self) -> usize {
        self.queued.len()
    }

    /// Writes what is queued, as far as the kernel takes it; whether that was all.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self) -> Result<bool, Errno> {
        let Some(socket) = &self.socket else { return Ok(true) };
        while !self.queued.is_empty() {
            match rustix::net::send(socket, &self.queued, SendFlags::NOSIGNAL) {
                Ok(written) => drop(self.queued.drain(..written)),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads once into `buffer`, behind what an earlier read left incomplete.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<Received, Errno> {
        let Some(socket) = &self.socket else { return Ok(Received::Nothing) };
        let carried = self.carried.len();
        // An incomplete frame may be longer than a read.
        if buffer.len() < carried + READ_BYTES / 2 {
            buffer.resize(carried + READ_BYTES, 0);
        }
        buffer[..carried].copy_from_slice(&self.carried);
        match rustix::net::recv(socket, &mut buffer[carried..], RecvFlags::empty()) {
            Ok((0, _)) => Ok(Received::End),
            Ok((length, _)) => Ok(Received::Bytes(carried + length)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Keeps what the last read left incomplete.
    pub fn carry(&mut self, rest: &[u8]) {
        self.carried.clear();
        self.carried.extend_from_slice(rest);
    }
}
