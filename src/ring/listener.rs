//! A listening socket per shard on one port (SO_REUSEPORT, socket(7)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait for accept(2); the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Binds and listens. Accepted sockets inherit TCP_NODELAY: what is sent has been gathered already.
///
/// # Errors
/// As bind(2) and listen(2).
pub(super) fn listen(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    // Whoever accepts takes all that wait.
    socket.set_nonblocking(true)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket.into(), bound))
}
