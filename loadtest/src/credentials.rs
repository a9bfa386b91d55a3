//! Tokens that connections authenticate with.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

/// How long tokens made here stay valid: longer than any run.
const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where a connection's token comes from.
pub enum Credentials {
    /// None: the server takes anonymous users.
    Anonymous,
    /// The same token for all.
    Token(String),
    /// A token for each connection, signed with this HS256 secret; `sub` is `load-N`.
    Secret(EncodingKey),
}

#[derive(Serialize)]
struct Claims {
    sub: String,
    exp: u64,
}

impl Credentials {
    /// From the command line's `--token` and `--secret`.
    pub fn new(token: Option<String>, secret: Option<&str>) -> Self {
        match (token, secret) {
            (_, Some(secret)) => Self::Secret(EncodingKey::from_secret(secret.as_bytes())),
            (Some(token), None) => Self::Token(token),
            (None, None) => Self::Anonymous,
        }
    }

    /// The token of a connection.
    pub fn token(&self, connection: usize) -> Option<String> {
        match self {
            Self::Anonymous => None,
            Self::Token(token) => Some(token.clone()),
            Self::Secret(key) => {
                let expiry = SystemTime::now() + VALIDITY;
                let exp = expiry.duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs();
                let claims = Claims { sub: format!("load-{connection}"), exp };
                let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, key);
                Some(token.expect("HMAC signing takes any key"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};

    #[test]
    fn a_secret_makes_a_valid_token_for_each_connection() {
        let secret = "a secret of at least thirty-two bytes";
        let token = Credentials::new(None, Some(secret)).token(42).unwrap();
        let key = DecodingKey::from_secret(secret.as_bytes());
        let claims: serde_json::Value =
            jsonwebtoken::decode(&token, &key, &Validation::new(Algorithm::HS256)).unwrap().claims;
        assert_eq!(claims["sub"], "load-42");
    }

    #[test]
    fn without_a_secret_all_share_the_token_or_have_none() {
        assert_eq!(Credentials::new(Some("t".into()), None).token(1).as_deref(), Some("t"));
        assert_eq!(Credentials::new(None, None).token(1), None);
    }
}
