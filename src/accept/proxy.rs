//! The PROXY protocol, version 2, by which a proxy tells in front of everything else for whom it speaks
//! (the protocol's specification, section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first twelve bytes.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes up to and with the length of the rest.
const HEAD: usize = 16;

/// Bytes of the rest: addresses need 36 (216 for Unix sockets), and what proxies append is some hundreds.
const REST: usize = 4096;

/// What the bytes so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// It is not complete yet.
    Incomplete,
    /// A complete one.
    Complete {
        /// The client's address; nothing when the proxy speaks for itself (a health check) or for a client
        /// without an IP address.
        client: Option<IpAddr>,
        /// How many bytes it has; the request follows.
        length: usize,
    },
    /// This is none.
    Invalid,
}

/// Looks at the bytes received so far.
pub fn parse(bytes: &[u8]) -> Preface {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Preface::Invalid;
    }
    let Some(head) = bytes.first_chunk::<HEAD>() else { return Preface::Incomplete };
    let [.., version_and_command, family_and_transport, high, low] = *head;
    let rest = usize::from(u16::from_be_bytes([high, low]));
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Preface::Invalid,
    };
    if rest > REST {
        return Preface::Invalid;
    }
    let Some(addresses) = bytes[HEAD..].get(..rest) else { return Preface::Incomplete };
    let client = match family_and_transport {
        _ if is_local => None,
        // TCP over IPv4: source, destination, and two ports.
        0x11 if rest >= 12 => addresses.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        // TCP over IPv6.
        0x21 if rest >= 36 => addresses.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        0x11 | 0x21 => return Preface::Invalid,
        // Unspecified, datagrams, Unix sockets: to be accepted, and the addresses ignored.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => None,
        _ => return Preface::Invalid,
    };
    Preface::Complete { client, length: HEAD + rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preface(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    fn client(text: &str, length: usize) -> Preface {
        Preface::Complete { client: Some(text.parse().unwrap()), length }
    }

    #[test]
    fn a_proxy_names_its_client_by_ipv4_or_ipv6() {
        let four = preface(0x21, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 1, 2, 3, 4]);
        assert_eq!(parse(&four), client("192.0.2.7", 28));
        assert_eq!(parse(&[&four[..], b"GET /"].concat()), client("192.0.2.7", 28), "a request may follow");
        let mut six = [0; 36];
        six[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(parse(&preface(0x21, 0x21, &six)), client("2001:db8::7", 52));
        let with_more = [&[192, 0, 2, 7, 10, 0, 0, 1, 1, 2, 3, 4][..], &[0x04, 0, 1, 0]].concat();
        assert_eq!(
            parse(&preface(0x21, 0x11, &with_more)),
            client("192.0.2.7", 32),
            "with an appended record"
        );
    }

    #[test]
    fn health_checks_and_other_families_name_nobody() {
        for (command, family) in [(0x20, 0x00), (0x20, 0x11), (0x21, 0x00), (0x21, 0x31), (0x21, 0x12)] {
            let bytes = preface(command, family, &[0; 36]);
            assert_eq!(parse(&bytes), Preface::Complete { client: None, length: 52 }, "{command} {family}");
        }
        assert_eq!(parse(&preface(0x20, 0, &[])), Preface::Complete { client: None, length: 16 });
    }

    #[test]
    fn every_beginning_is_incomplete() {
        let whole = preface(0x21, 0x11, &[1; 12]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Preface::Incomplete, "{length}");
        }
    }

    #[test]
    fn anything_else_is_none() {
        let mut broken = preface(0x21, 0x11, &[1; 12]);
        broken[11] = b' ';
        for (what, bytes) in [
            ("a request", b"GET / HTTP/1.1\r\n".to_vec()),
            ("version 1", b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n".to_vec()),
            ("a broken signature", broken),
            ("version 3", preface(0x31, 0x11, &[1; 12])),
            ("an unknown command", preface(0x22, 0x11, &[1; 12])),
            ("an unknown family", preface(0x21, 0x41, &[1; 12])),
            ("addresses cut short", preface(0x21, 0x11, &[1; 11])),
            ("IPv6 cut short", preface(0x21, 0x21, &[1; 35])),
            ("an endless rest", preface(0x21, 0x11, &[1; REST + 1])[..HEAD].to_vec()),
        ] {
            assert_eq!(parse(&bytes), Preface::Invalid, "{what}");
        }
    }

    #[test]
    fn no_bytes_do_harm() {
        let whole = preface(0x21, 0x21, &[7; 40]);
        for at in 0..whole.len() {
            for value in 0..=255 {
                let mut changed = whole.clone();
                changed[at] = value;
                if let Preface::Complete { length, .. } = parse(&changed) {
                    assert!((HEAD..=changed.len()).contains(&length));
                }
            }
        }
    }
}
