//! A listening socket per shard on one port (SO_REUSEPORT, socket(7)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait for accept(2); the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Binds and listens. Accepted sockets inherit TCP_NODELAY, since what is sent has been gathered already, and, in Linux, that
/// nothing is acknowledged by a segment of its own while an answer may carry it (TCP_QUICKACK off, tcp(7)).
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
    // Behind listen(2), which resets it. Without it a connection costs a segment more, and that is all.
    let _ = socket.set_tcp_quickack(false);
    // Whoever accepts takes all that wait.
    socket.set_nonblocking(true)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket.into(), bound))
}

/// Acknowledges what has come and, until the kernel decides otherwise, what comes: a client without TCP_NODELAY sends the
/// rest of a request only then.
pub(super) fn acknowledge_at_once(socket: &OwnedFd) {
    // Failure means that the connection has ended already, which its receive reports.
    let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn what_comes_is_acknowledged_with_the_answer_until_told_otherwise() {
        let (listener, address) = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = Socket::from(listener);
        // To wait for the client.
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let (socket, _) = listener.accept().unwrap();
        assert!(!socket.tcp_quickack().unwrap());
        let socket = OwnedFd::from(socket);
        acknowledge_at_once(&socket);
        assert!(Socket::from(socket).tcp_quickack().unwrap());
    }
}
