//! A small HTTP/1.1 client: one request per connection, over TCP or TLS.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::accept::certificate::{CertificateError, trusted};

/// Longest wait for the connection, and for each part of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of the largest answer that is read.
const ANSWER_BYTES: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not one that this client understands.
    #[error("{0:?} is not an address of a server: use http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    /// The authorities cannot be read that the server's certificate is checked against.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// TLS cannot begin.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The server could not be reached, or ended the connection.
    #[error("no answer from {0}: {1}")]
    Connection(String, std::io::Error),
    /// The answer is not HTTP.
    #[error("the answer from {0} is not HTTP")]
    Answer(String),
}

/// A server's `/api/`.
pub struct Client {
    /// Name and port.
    host: String,
    key: Option<String>,
    /// What `https://` begins with, and the name that the certificate must have.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Client {
    /// The server at `url`, with an API key or a token. The certificate of an `https://` one must lead to an authority
    /// in `ca_file`, or to one of the system's.
    ///
    /// # Errors
    /// When `url` is neither `http://HOST:PORT` nor `https://HOST:PORT`, or there are no authorities.
    pub fn new(url: &str, key: Option<String>, ca_file: Option<&Path>) -> Result<Self, ClientError> {
        let wrong = || ClientError::Url(url.to_owned());
        let (secure, host) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(host), _) => (false, host),
            (_, Some(host)) => (true, host),
            _ => return Err(wrong()),
        };
        let host = host.trim_end_matches('/');
        if host.is_empty() || host.contains(['/', '@', '?', '#']) || host.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => Some(name),
            _ => None,
        };
        let tls = if secure {
            let name = name.unwrap_or(host).trim_start_matches('[').trim_end_matches(']');
            Some((config(ca_file)?, ServerName::try_from(name.to_owned()).map_err(|_| wrong())?))
        } else {
            None
        };
        let port = if secure { 443 } else { 80 };
        let host = if name.is_some() { host.to_owned() } else { format!("{host}:{port}") };
        Ok(Self { host, key, tls })
    }

    /// The status and the body of the answer to `method path`.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> Result<(u16, String), ClientError> {
        let lost = |error| ClientError::Connection(self.host.clone(), error);
        let answer = self.exchange(method, path, body).map_err(lost)?;
        let wrong = || ClientError::Answer(self.host.clone());
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        Ok((status.ok_or_else(wrong)?, body.to_owned()))
    }

    fn exchange(&self, method: &str, path: &str, body: Option<&str>) -> std::io::Result<String> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.host);
        if let Some(key) = &self.key {
            request.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        if let Some(body) = body {
            let length = body.len();
            request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"));
        }
        request.push_str("\r\n");
        request.push_str(body.unwrap_or_default());
        let stream = self.connect()?;
        let Some((config, name)) = &self.tls else { return converse(stream, &request) };
        let connection =
            ClientConnection::new(config.clone(), name.clone()).map_err(std::io::Error::other)?;
        converse(StreamOwned::new(connection, stream), &request)
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::other("the name has no address");
        for address in self.host.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, ClientError> {
    let roots = trusted("TABLEFORGE_CA_FILE", ca_file)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn converse(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    String::from_utf8(answer).map_err(std::io::Error::other)
}

/// `name` as one part of a path (RFC 3986 section 2.1).
pub fn encode(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_http_with_a_host() {
        let client = |url| Client::new(url, None, None);
        for wrong in ["localhost:3001", "ws://a", "http://", "https://", "http://a/b", "http://a b"] {
            assert!(client(wrong).is_err(), "{wrong}");
        }
        assert_eq!(client("http://a/").unwrap().host, "a:80");
        assert_eq!(client("http://[::1]:3001").unwrap().host, "[::1]:3001");
    }

    #[test]
    fn names_are_one_part_of_a_path() {
        assert_eq!(encode("a/b c%\u{e9}"), "a%2Fb%20c%25%C3%A9");
    }
}
