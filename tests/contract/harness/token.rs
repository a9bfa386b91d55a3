//! Tokens as an application would issue them.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// The secret of every test server that verifies tokens: 32 bytes at least.
pub const SECRET: &str = "a secret of the tests, longer than 32 bytes";

/// The settings of a server that lets nobody in without a token.
pub const REQUIRED: [(&str, &str); 2] = [("AUTH_REQUIRED", "true"), ("JWT_SECRET", SECRET)];

/// Seconds since 1970, `offset` from now.
pub fn seconds_from_now(offset: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    now.as_secs() as i64 + offset
}

/// A token of `user` that is good for an hour.
pub fn of(user: &str) -> String {
    with_claims(json!({ "sub": user }))
}

/// A token with `claims`; without an `exp` among them, good for an hour.
pub fn with_claims(mut claims: Value) -> String {
    if claims.get("exp").is_none() {
        claims["exp"] = seconds_from_now(3600).into();
    }
    sign(&claims, Algorithm::HS256, SECRET)
}

/// A token with exactly `claims`, signed with an HMAC algorithm and a secret of the caller's choice.
pub fn sign(claims: &Value, algorithm: Algorithm, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).expect("the claims are JSON")
}

/// A key pair of the tests: its algorithm, its `kid` in [`KEY_SET`] and both keys in PEM.
pub struct KeyPair {
    /// What its tokens are signed with.
    pub algorithm: Algorithm,
    /// Its name in the set.
    pub kid: &'static str,
    /// The private key.
    pub private: &'static str,
    /// The public key.
    pub public: &'static str,
}

/// One key pair of each family.
pub const KEY_PAIRS: [KeyPair; 3] = [
    KeyPair {
        algorithm: Algorithm::RS256,
        kid: "rsa-1",
        private: include_str!("keys/rsa.private.pem"),
        public: include_str!("keys/rsa.public.pem"),
    },
    KeyPair {
        algorithm: Algorithm::ES256,
        kid: "ec-1",
        private: include_str!("keys/ec.private.pem"),
        public: include_str!("keys/ec.public.pem"),
    },
    KeyPair {
        algorithm: Algorithm::EdDSA,
        kid: "ed-1",
        private: include_str!("keys/ed.private.pem"),
        public: include_str!("keys/ed.public.pem"),
    },
];

/// The public keys of [`KEY_PAIRS`] as a JSON Web Key Set.
pub const KEY_SET: &str = include_str!("keys/set.json");

impl KeyPair {
    /// A token of `user` that is good for an hour, signed with the private key.
    pub fn token(&self, user: &str, kid: Option<&str>) -> String {
        let pem = self.private.as_bytes();
        let key = match self.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem),
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem),
            _ => EncodingKey::from_ed_pem(pem),
        };
        let header = Header { kid: kid.map(Into::into), ..Header::new(self.algorithm) };
        let claims = json!({"sub": user, "exp": seconds_from_now(3600)});
        jsonwebtoken::encode(&header, &claims, &key.expect("the key is one")).expect("the claims are JSON")
    }
}
