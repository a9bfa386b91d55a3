//! The TCP socket to Redis: connecting, and moving a link's bytes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::link::{Event, Link, LinkError};

/// Bytes read from the socket at once: some hundred messages.
pub const READ_BYTES: usize = 64 * 1024;

/// Connects within `timeout` for each address that `host` has. The socket sends small writes at once
/// (TCP_NODELAY): batching has been done before.
///
/// # Errors
/// When the name has no address or none of them answers.
pub fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
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

/// Writes as much of the link's output as the socket takes now.
///
/// # Errors
/// When the connection has failed.
pub fn write<T>(stream: &mut TcpStream, link: &mut Link<T>) -> Result<(), LinkError> {
    while !link.output().is_empty() {
        match stream.write(link.output()) {
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
    stream: &mut TcpStream,
    link: &mut Link<T>,
    buffer: &mut [u8],
    events: &mut Vec<Event<T>>,
    now: Instant,
) -> Result<bool, LinkError> {
    match stream.read(buffer) {
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
