//! The socket to Redis, encrypted or not: connecting, and moving a link's bytes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::UplinkError;
use super::link::{Event, Link, LinkError};
use crate::accept::certificate::{certificates, private_key, trusted};
use crate::config::RedisSettings;

/// Bytes read from the socket at once: some hundred messages.
pub const READ_BYTES: usize = 64 * 1024;

/// How the sockets to Redis are made.
#[derive(Clone)]
pub struct Connector {
    host: String,
    port: u16,
    timeout: Duration,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Connector {
    /// A connector to the Redis of `settings`. Files are read here and not again.
    ///
    /// # Errors
    /// When a file that TLS needs cannot be used.
    pub fn new(settings: &RedisSettings) -> Result<Self, UplinkError> {
        let tls = if settings.tls { Some(tls(settings)?) } else { None };
        Ok(Self { host: settings.host.clone(), port: settings.port, timeout: settings.timeout, tls })
    }

    /// Connects within the settings' timeout for each address that the host has, and again within it for TLS. The
    /// socket blocks for at most that time; it sends small writes at once (TCP_NODELAY): batching has been done
    /// before.
    ///
    /// # Errors
    /// When the name has no address, none of them answers, or TLS fails (see [`tls_failure`]).
    pub fn connect(&self) -> io::Result<Socket> {
        let mut stream = connect(&self.host, self.port, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        let Some((config, name)) = &self.tls else { return Ok(Socket { stream, tls: None }) };
        let mut connection = ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).map_err(|error| match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    let what = "no answer to the TLS handshake: does Redis speak TLS on REDIS_PORT?";
                    io::Error::new(ErrorKind::TimedOut, what)
                }
                _ => error,
            })?;
        }
        let tls = Tls { connection, received: vec![0; READ_BYTES], next: 0, end: 0 };
        Ok(Socket { stream, tls: Some(Box::new(tls)) })
    }
}

/// What TLS with the Redis of `settings` begins with.
fn tls(settings: &RedisSettings) -> Result<(Arc<ClientConfig>, ServerName<'static>), UplinkError> {
    let failed = |error: rustls::Error| UplinkError::Tls(error.to_string());
    let roots = trusted("REDIS_CA_FILE", settings.ca_file.as_deref())?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots);
    let config = match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => {
            let chain = certificates("REDIS_CERT_FILE", cert)?;
            builder.with_client_auth_cert(chain, private_key("REDIS_KEY_FILE", key)?).map_err(failed)?
        }
        _ => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from(settings.host.clone())
        .map_err(|_| UplinkError::Tls(format!("no certificate can name the REDIS_HOST {}", settings.host)))?;
    Ok((Arc::new(config), name))
}

fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, format!("the host name {host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What was wrong with TLS, if that is what `error` is about: something that another try does not cure.
pub fn tls_failure(error: &io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref::<rustls::Error>().map(ToString::to_string)
}

/// A connection to Redis.
pub struct Socket {
    stream: TcpStream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    connection: ClientConnection,
    /// Ciphertext from the socket; what lies between `next` and `end` has not been decrypted.
    received: Vec<u8>,
    next: usize,
    end: usize,
}

impl Socket {
    /// Has reads and writes fail with "would block" rather than wait.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn set_nonblocking(&self) -> io::Result<()> {
        self.stream.set_nonblocking(true)
    }

    /// Whether bytes that were written wait for the socket.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.connection.wants_write())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.read(buffer) };
        loop {
            let filled = tls.decrypt(buffer)?;
            if filled > 0 {
                return Ok(filled);
            }
            match self.stream.read(&mut tls.received)? {
                0 => return Ok(0),
                bytes => (tls.next, tls.end) = (0, bytes),
            }
        }
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_pending()?;
        let Some(tls) = &mut self.tls else { return self.stream.write(bytes) };
        if tls.connection.wants_write() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let taken = tls.connection.writer().write(bytes)?;
        self.write_pending()?;
        Ok(taken)
    }

    /// Writes what waits as far as the socket takes it now.
    fn write_pending(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.connection.wants_write() {
            match tls.connection.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Tls {
    /// Decrypts what has been received, as far as `buffer` takes it; 0 when more must be received first.
    fn decrypt(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            match self.connection.reader().read(&mut buffer[filled..]) {
                // The end (close_notify): what follows it, if anything, is not to be read.
                Ok(0) if filled < buffer.len() => {
                    self.next = self.end;
                    return if filled > 0 { Ok(filled) } else { Err(ErrorKind::UnexpectedEof.into()) };
                }
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if filled == buffer.len() || self.next == self.end {
                return Ok(filled);
            }
            let mut rest = &self.received[self.next..self.end];
            self.next += self.connection.read_tls(&mut rest)?;
            self.connection
                .process_new_packets()
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Writes as much of the link's output as the socket takes now.
///
/// # Errors
/// When the connection has failed.
pub fn write<T>(socket: &mut Socket, link: &mut Link<T>) -> Result<(), LinkError> {
    socket.write_pending()?;
    while !link.output().is_empty() {
        match socket.write_some(link.output()) {
            Ok(0) => return Err(LinkError::Socket(ErrorKind::WriteZero.into())),
            Ok(bytes) => link.wrote(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads once and appends what came to `events`. Returns whether there may be more already.
///
/// # Errors
/// When the connection has failed or was closed, or what came is not the protocol.
pub fn read<T>(
    socket: &mut Socket,
    link: &mut Link<T>,
    buffer: &mut [u8],
    events: &mut Vec<Event<T>>,
    now: Instant,
) -> Result<bool, LinkError> {
    match socket.read_some(buffer) {
        Ok(0) => Err(LinkError::Socket(io::Error::new(ErrorKind::UnexpectedEof, "Redis closed it"))),
        Ok(bytes) => {
            link.receive(&buffer[..bytes], now, events)?;
            Ok(bytes == buffer.len())
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error.into()),
    }
}
