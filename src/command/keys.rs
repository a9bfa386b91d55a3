//! The keys that tokens are verified with: from a secret, a PEM file or a JSON Web Key Set, each for one algorithm.

use std::ops::RangeInclusive;
use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation};
use serde_json::Value;

use crate::limits;

/// The HMAC algorithms of `JWT_SECRET`, with the bytes that each key must have at least: as many as
/// the hash has (RFC 7518, section 3.2).
pub const SECRET_ALGORITHMS: [(&str, Algorithm, usize); 3] = [
    ("HS256", Algorithm::HS256, limits::JWT_SECRET_BYTES),
    ("HS384", Algorithm::HS384, 48),
    ("HS512", Algorithm::HS512, 64),
];

/// Bytes of an RSA modulus: 2,048 bits at least (RFC 7518, section 3.3), and at most 4,096, because the time that a
/// signature takes grows with the square.
const RSA_MODULUS_BYTES: RangeInclusive<usize> = 256..=512;

/// Bytes of a point of P-256 as it stands in a key: a tag and two coordinates.
const P256_POINT_BYTES: usize = 65;

/// Bytes of an Ed25519 key.
const ED25519_BYTES: usize = 32;

/// What is wrong with the content of a key file. The text says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not one public key in PEM.
    #[error("is not one public key in PEM; it must begin with -----BEGIN PUBLIC KEY-----")]
    Pem,
    /// A private key, which verifies nothing that its public key could not, and is not to lie about.
    #[error("holds a private key; give the server the public one, such as `openssl pkey -pubout` writes")]
    Private,
    /// A kind of key that no accepted algorithm goes with.
    #[error(
        "holds a key of no accepted kind; allowed: RSA of 2048 to 4096 bits (RS256), P-256 (ES256), Ed25519 (EdDSA)"
    )]
    Kind,
    /// Not a JWK Set.
    #[error("is not a JSON Web Key Set: an object with a list `keys` (RFC 7517, section 5)")]
    Set,
    /// A set in which nothing can be used.
    #[error(
        "has no usable key; allowed: RSA of 2048 to 4096 bits (RS256), EC P-256 (ES256), OKP Ed25519 (EdDSA), for signatures"
    )]
    NoKey,
    /// Two keys that tokens cannot tell apart.
    #[error("has several keys for {0} that `kid` does not tell apart; give each a `kid` of its own")]
    Ambiguous(&'static str),
}

/// One key and the one algorithm that it is for: a token never chooses how a key is used.
pub struct Key {
    /// The `kid` by which tokens name it, if it came from a set that gives it one.
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
    /// Checks the signature and nothing else: the crate would check times against its own clock.
    pub(super) signature_only: Validation,
}

impl Key {
    fn new(id: Option<String>, algorithm: Algorithm, decoding: DecodingKey) -> Self {
        let mut signature_only = Validation::new(algorithm);
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_nbf = false;
        signature_only.validate_aud = false;
        Self { id, algorithm, decoding, signature_only }
    }

    /// A public key, if it is sound.
    fn public(id: Option<String>, algorithm: Algorithm, decoding: DecodingKey) -> Option<Self> {
        is_sound(algorithm, &decoding).then(|| Self::new(id, algorithm, decoding))
    }
}

/// Whether a public key has the size of its kind and the cryptography takes it: a point may not be on its curve.
fn is_sound(algorithm: Algorithm, key: &DecodingKey) -> bool {
    let fits = match (algorithm, key.kind()) {
        (Algorithm::RS256, DecodingKeyKind::SecretOrDer(der)) => {
            modulus_bytes(der).is_some_and(|bytes| RSA_MODULUS_BYTES.contains(&bytes))
        }
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, .. }) => {
            RSA_MODULUS_BYTES.contains(&n.iter().skip_while(|byte| **byte == 0).count())
        }
        (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => point.len() == P256_POINT_BYTES,
        (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) => point.len() == ED25519_BYTES,
        _ => false,
    };
    fits && jsonwebtoken::crypto::verify("", b"", key, algorithm).is_ok()
}

/// Bytes of the modulus of a DER encoded RSA key (RFC 8017, appendix A.1.1) of 1,024 bits or more: shorter
/// ones have lengths of another form.
fn modulus_bytes(der: &[u8]) -> Option<usize> {
    match der {
        [0x30, 0x82, _, _, 0x02, 0x82, high, low, 0, ..] => {
            Some(usize::from(u16::from_be_bytes([*high, *low])) - 1)
        }
        _ => None,
    }
}

/// Why no key fits a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// There is none for its algorithm.
    Algorithm,
    /// There is none of its `kid`, or it has no `kid` where one is needed.
    Id,
}

/// All keys that tokens may be signed with. Cheap to clone.
#[derive(Clone, Default)]
pub struct KeySet(Vec<Arc<Key>>);

impl KeySet {
    /// The key that HMAC tokens are signed with.
    pub fn of_secret(secret: &str, algorithm: Algorithm) -> Self {
        Self::of(Key::new(None, algorithm, DecodingKey::from_secret(secret.as_bytes())))
    }

    fn of(key: Key) -> Self {
        Self(vec![Arc::new(key)])
    }

    /// The one public key of a PEM file; its kind says which algorithm it is for.
    ///
    /// # Errors
    /// When the text is not one public key of an accepted kind.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private);
        }
        let begins = |tag: &str| text.matches(&format!("-----BEGIN {tag}-----")).count();
        if begins("PUBLIC KEY") + begins("RSA PUBLIC KEY") != 1 {
            return Err(KeyError::Pem);
        }
        let pem = text.as_bytes();
        let es256 = DecodingKey::from_ec_pem(pem).map(|key| (Algorithm::ES256, key));
        let eddsa = DecodingKey::from_ed_pem(pem).map(|key| (Algorithm::EdDSA, key));
        let rs256 = DecodingKey::from_rsa_pem(pem).map(|key| (Algorithm::RS256, key));
        let (algorithm, key) = es256.or(eddsa).or(rs256).map_err(|_| KeyError::Kind)?;
        Key::public(None, algorithm, key).map(Self::of).ok_or(KeyError::Kind)
    }

    /// The keys of a JSON Web Key Set (RFC 7517). Entries for other algorithms and purposes are passed over,
    /// as its section 5 wants.
    ///
    /// # Errors
    /// When the text is not such a set, or no key of it can be used, or a private key is in it.
    pub fn from_jwks(text: &str) -> Result<Self, KeyError> {
        let set: Value = serde_json::from_str(text).map_err(|_| KeyError::Set)?;
        let entries = set.get("keys").and_then(Value::as_array).ok_or(KeyError::Set)?;
        if entries.iter().any(|entry| entry.get("d").is_some()) {
            return Err(KeyError::Private);
        }
        let keys: Vec<_> = entries.iter().filter_map(key_of_jwk).map(Arc::new).collect();
        if keys.is_empty() {
            return Err(KeyError::NoKey);
        }
        for (place, key) in keys.iter().enumerate() {
            let same = |other: &Arc<Key>| other.algorithm == key.algorithm && other.id == key.id;
            if keys[..place].iter().any(same) {
                return Err(KeyError::Ambiguous(name(key.algorithm)));
            }
        }
        Ok(Self(keys))
    }

    /// These keys and those of `other`.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.0.extend(other.0.iter().cloned());
        self
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no token can be verified.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The algorithms that keys are there for, as tokens name them.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.0.iter().map(|key| name(key.algorithm)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The key for a token with that `alg` and `kid`. Keys without an id (a secret, a PEM file) take any `kid`
    /// that no key of the set has; a token without one needs the only key of its algorithm.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub(super) fn choose(&self, algorithm: Algorithm, kid: Option<&str>) -> Result<&Key, NoKey> {
        let fitting = || self.0.iter().map(Arc::as_ref).filter(|key| key.algorithm == algorithm);
        if fitting().next().is_none() {
            return Err(NoKey::Algorithm);
        }
        let named = kid.and_then(|kid| fitting().find(|key| key.id.as_deref() == Some(kid)));
        let unnamed = || fitting().find(|key| key.id.is_none());
        let only = || fitting().next().filter(|_| kid.is_none() && fitting().count() == 1);
        named.or_else(unnamed).or_else(only).ok_or(NoKey::Id)
    }
}

/// The name of an accepted algorithm in tokens (RFC 7518, section 3.1; RFC 8037, section 3.1).
fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 => "HS256",
        Algorithm::HS384 => "HS384",
        Algorithm::HS512 => "HS512",
        Algorithm::RS256 => "RS256",
        Algorithm::ES256 => "ES256",
        Algorithm::EdDSA => "EdDSA",
        _ => "another algorithm",
    }
}

/// The key of an entry, if it is for verifying signatures of an accepted algorithm.
fn key_of_jwk(entry: &Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(entry.clone()).ok()?;
    let curve = |name| entry.get("crv").and_then(Value::as_str) == Some(name);
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(_) if curve("P-256") => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(_) if curve("Ed25519") => Algorithm::EdDSA,
        _ => return None,
    };
    let common = &jwk.common;
    let other_algorithm = entry.get("alg").is_some_and(|alg| alg.as_str() != Some(name(algorithm)));
    let other_use = common.public_key_use.as_ref().is_some_and(|wanted| *wanted != PublicKeyUse::Signature);
    let no_verifying =
        common.key_operations.as_ref().is_some_and(|operations| !operations.contains(&KeyOperations::Verify));
    if other_algorithm || other_use || no_verifying {
        return None;
    }
    Key::public(common.key_id.clone(), algorithm, DecodingKey::from_jwk(&jwk).ok()?)
}

#[cfg(test)]
mod tests;
