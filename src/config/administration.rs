//! Who may administrate, from where, and what counts as a stall.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How the form that holds a key's hash instead of the key begins.
const HASHED: &str = "sha256:";

/// The keys of the HTTP interface, of which only the SHA-256 hashes are kept.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

/// Shows not even the hashes.
impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

impl ApiKeys {
    /// Reads comma-separated keys, each as it is or as `sha256:` and 64 hexadecimal digits.
    pub fn parse(list: &str) -> Option<Self> {
        list.split(',').map(|key| hash_of(key.trim())).collect::<Option<_>>().map(Self)
    }

    /// Whether `key` is one of the keys. Takes the same time whichever it is, and if it is none.
    pub fn admit(&self, key: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let found = self.0.iter().fold(subtle::Choice::from(0), |found, own| found | own.ct_eq(&hash));
        found.into()
    }
}

fn hash_of(key: &str) -> Option<[u8; 32]> {
    let Some(digits) = key.strip_prefix(HASHED) else {
        return (!key.is_empty()).then(|| Sha256::digest(key).into());
    };
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

/// What administration needs to know.
#[derive(Clone, Debug)]
pub struct AdministrationSettings {
    /// Keys of the HTTP interface.
    pub keys: ApiKeys,
    /// The secret that signs commands in Redis; without it instances agree on one, and other programs have none.
    pub secret: Option<Secret>,
    /// Address of the separate listener.
    pub host: IpAddr,
    /// Its port; nothing when the main port serves everything.
    pub port: Option<u16>,
    /// Age of a shard's last turn from which on it counts as stalled.
    pub stall_threshold: Duration,
}

/// A secret that shows itself nowhere.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl AdministrationSettings {
    /// Nobody may, and no separate listener.
    pub(super) fn none() -> Self {
        Self {
            keys: ApiKeys::default(),
            secret: None,
            host: Ipv4Addr::LOCALHOST.into(),
            port: None,
            stall_threshold: Duration::from_secs(5),
        }
    }

    /// Where the separate listener is, if there is one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.port.map(|port| SocketAddr::new(self.host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_given_as_it_is_or_as_its_hash() {
        let hashed = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let keys = ApiKeys::parse(&format!("first-key, {hashed}")).unwrap();
        assert!(keys.admit("first-key") && keys.admit("hello"));
        assert!(!keys.admit("") && !keys.admit(hashed) && !keys.admit("first-key "));
        assert!(!ApiKeys::default().admit(""), "no key, nobody in");
        for wrong in ["", "a,,b", "sha256:", "sha256:zz", &hashed.replace('b', "g")] {
            assert!(ApiKeys::parse(wrong).is_none(), "{wrong}");
        }
        assert!(!format!("{keys:?}").contains("2c"));
    }
}
