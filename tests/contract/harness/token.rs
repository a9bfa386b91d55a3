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
