//! Where to connect to, and from which source addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// Connections from one source address to one server port that always find a free local port: Linux
/// offers 28,232 by default (`net.ipv4.ip_local_port_range`), and some are in use or in TIME_WAIT.
const MOST_PER_SOURCE: usize = 25_000;

/// Connections from one source address that find a port quickly. connect(2) tries every second port first, from a random
/// one on: with more than half of them taken it tries thousands before it finds a free one.
const CONNECTIONS_PER_SOURCE: usize = 10_000;

/// Hosts of each /24 used as source addresses; .0 and .255 are left out.
const SOURCES_PER_NET: usize = 254;

/// A server to put load on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: SocketAddr,
    /// The value of the `Host` header.
    pub host: String,
    /// The request target, with the query if there is one.
    pub path: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("ws://").ok_or_else(|| {
            format!("'{url}' does not begin with ws:// (wss:// is not supported): use ws://HOST:PORT/PATH")
        })?;
        let (host, path) = match rest.find(['/', '?']) {
            Some(end) if rest.as_bytes()[end] == b'/' => (&rest[..end], rest[end..].to_owned()),
            Some(end) => (&rest[..end], format!("/{}", &rest[end..])),
            None => (rest, "/".to_owned()),
        };
        // The port stands after the last colon that is not inside an IPv6 address's brackets.
        let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
        let with_port = if has_port { host.to_owned() } else { format!("{host}:80") };
        let address = with_port
            .to_socket_addrs()
            .map_err(|error| format!("cannot find the address of '{host}': {error}"))?
            .next()
            .ok_or_else(|| format!("'{host}' has no address"))?;
        Ok(Self { address, host: host.to_owned(), path })
    }
}

/// The source addresses to connect from; empty to leave the choice to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(Vec<Ipv4Addr>);

impl Sources {
    /// Sources for `connections` connections per server. `asked` sets their number; otherwise there is one
    /// for every [`CONNECTIONS_PER_SOURCE`] where all targets are on loopback.
    ///
    /// # Errors
    /// More than one source is needed, but a target is not on loopback, where any 127.x.y.z serves.
    pub fn new(targets: &[Target], connections: usize, asked: Option<usize>) -> Result<Self, String> {
        let remote =
            targets.iter().find(|target| !matches!(target.address.ip(), IpAddr::V4(ip) if ip.is_loopback()));
        let per_source = if remote.is_some() { MOST_PER_SOURCE } else { CONNECTIONS_PER_SOURCE };
        let number = asked.unwrap_or_else(|| connections.div_ceil(per_source));
        if asked.is_none() && number <= 1 {
            return Ok(Self(Vec::new()));
        }
        if let Some(target) = remote {
            return Err(format!(
                "{connections} connections to one server need {number} source addresses, and only servers \
                 on 127.0.0.1 can be reached from more than one; {} is not. Ask for at most \
                 {MOST_PER_SOURCE} connections per server, or run several generators",
                target.address
            ));
        }
        let source =
            |i: usize| Ipv4Addr::new(127, 0, (i / SOURCES_PER_NET) as u8, (i % SOURCES_PER_NET + 1) as u8);
        Ok(Self((0..number).map(source).collect()))
    }

    /// The source of the `nth` connection to one server, if it has to be set.
    pub fn of(&self, nth: usize) -> Option<Ipv4Addr> {
        (!self.0.is_empty()).then(|| self.0[nth % self.0.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let target: Target = "ws://127.0.0.1:3001/ws?token=a".parse().unwrap();
        assert_eq!(target.address, "127.0.0.1:3001".parse().unwrap());
        assert_eq!((target.host.as_str(), target.path.as_str()), ("127.0.0.1:3001", "/ws?token=a"));
        let target: Target = "ws://[::1]:3001".parse().unwrap();
        assert_eq!((target.address, target.path.as_str()), ("[::1]:3001".parse().unwrap(), "/"));
        let target: Target = "ws://127.0.0.1?x=1".parse().unwrap();
        assert_eq!((target.address.port(), target.path.as_str()), (80, "/?x=1"));
        let target: Target = "ws://[::1]/ws".parse().unwrap();
        assert_eq!(target.address, "[::1]:80".parse().unwrap());
        assert!("wss://127.0.0.1/ws".parse::<Target>().unwrap_err().contains("ws://HOST:PORT"));
        assert!("127.0.0.1:3001".parse::<Target>().is_err());
    }

    #[test]
    fn many_connections_are_spread_over_sources() {
        let local: Vec<Target> = vec!["ws://127.0.0.1:3001/ws".parse().unwrap()];
        assert_eq!(Sources::new(&local, 10_000, None).unwrap().of(7), None);
        let sources = Sources::new(&local, 30_000, None).unwrap();
        let used: Vec<_> = (0..4).map(|nth| sources.of(nth).unwrap().to_string()).collect();
        assert_eq!(used, ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1"]);
        let many = Sources::new(&local, 1_000, Some(300)).unwrap();
        assert_eq!(many.of(299), Some(Ipv4Addr::new(127, 0, 1, 46)));
        let remote: Vec<Target> = vec!["ws://192.0.2.1:3001/ws".parse().unwrap()];
        assert!(Sources::new(&remote, 60_000, None).unwrap_err().contains("192.0.2.1"));
        assert_eq!(Sources::new(&remote, 25_000, None).unwrap().of(7), None);
    }
}
