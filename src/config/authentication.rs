//! Where the keys for tokens come from, and the application that is asked who may join what.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;

use super::Settings;
use crate::command::keys::SECRET_ALGORITHMS;

/// Where keys come from besides `JWT_SECRET`.
#[derive(Clone, Debug)]
pub struct KeySettings {
    /// The one algorithm of tokens signed with `JWT_SECRET`.
    pub secret_algorithm: Algorithm,
    /// A PEM file with one public key.
    pub public_key_file: Option<PathBuf>,
    /// A JSON Web Key Set.
    pub jwks_file: Option<PathBuf>,
}

/// The application's answer to "may this user join this room?": where to ask and how long it holds.
#[derive(Clone, Debug)]
pub struct AuthorizationSettings {
    /// Where questions are posted; `http://` or `https://`.
    pub url: String,
    /// The authorities that its certificate is checked against; without it those of the system. Only with `https://`.
    pub ca_file: Option<PathBuf>,
    /// What the application knows the server by, sent as a bearer token.
    pub secret: Option<String>,
    /// Time for one answer, connecting included.
    pub timeout: Duration,
    /// Time for which an answer holds for further joins; zero to ask each time.
    pub cache_ttl: Duration,
    /// Questions under way at once.
    pub concurrency: usize,
    /// Time for which nobody is asked after several failures in a row.
    pub retry_pause: Duration,
}

/// Before any value is read.
impl Default for AuthorizationSettings {
    fn default() -> Self {
        let zero = Duration::ZERO;
        Self {
            url: String::new(),
            ca_file: None,
            secret: None,
            timeout: zero,
            cache_ttl: zero,
            concurrency: 0,
            retry_pause: zero,
        }
    }
}

impl KeySettings {
    /// No key yet.
    pub(super) fn none() -> Self {
        Self { secret_algorithm: Algorithm::HS256, public_key_file: None, jwks_file: None }
    }
}

impl AuthorizationSettings {
    /// Checks that the file with authorities is used.
    ///
    /// # Errors
    /// One line that names the setting and what would be right.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.ca_file.is_some() && !self.url.starts_with(HTTPS) {
            return Err(
                "AUTHORIZE_CA_FILE is set without an https:// AUTHORIZE_URL: nothing would be encrypted"
                    .into(),
            );
        }
        Ok(())
    }
}

const HTTPS: &str = "https://";

/// The address of an endpoint that questions can be posted to: `http://host:port/path`, or with `https`.
pub(super) fn endpoint(value: &str) -> Option<String> {
    let rest = value.strip_prefix("http://").or_else(|| value.strip_prefix(HTTPS))?;
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let fits = !host.is_empty() && !host.contains('@') && !rest.contains('#');
    (fits && rest.bytes().all(|byte| byte.is_ascii_graphic())).then(|| value.into())
}

/// Checks the settings of keys against each other.
///
/// # Errors
/// One line that names the setting and what would be right.
pub(super) fn check(settings: &Settings) -> Result<(), String> {
    let keys = &settings.keys;
    let no_key = settings.jwt_secret.is_none() && keys.public_key_file.is_none() && keys.jwks_file.is_none();
    if settings.auth_required && no_key {
        return Err(
            "JWT_SECRET is not set: set it to the secret (32 bytes or more) that tokens are signed with, or \
                    JWT_PUBLIC_KEY_FILE or JWKS_FILE to the public keys, or set AUTH_REQUIRED=false to allow \
                    anonymous users"
                .into(),
        );
    }
    let named = SECRET_ALGORITHMS.iter().find(|(_, algorithm, _)| *algorithm == keys.secret_algorithm);
    if let (Some(secret), Some((name, _, bytes))) = (&settings.jwt_secret, named)
        && secret.len() < *bytes
    {
        return Err(format!(
            "JWT_SECRET: has {} bytes, and {name} (JWT_ALGORITHM) needs {bytes} or more (RFC 7518 section 3.2); \
             make one with `openssl rand -hex {bytes}`",
            secret.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_http_address_without_credentials() {
        for right in ["http://app", "http://app:8080", "http://127.0.0.1:1/allow?server=1", "https://app/x"] {
            assert_eq!(endpoint(right).as_deref(), Some(right));
        }
        for wrong in [
            "https://",
            "ftp://app",
            "app:8080",
            "http://",
            "http:///path",
            "http://a@b/",
            "http://a/ b",
            "http://a/#b",
        ] {
            assert_eq!(endpoint(wrong), None, "{wrong}");
        }
    }
}
