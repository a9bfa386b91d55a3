//! A small HTTP/1.1 client: one request per connection, over plain TCP.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Longest wait for the connection, and for each part of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of the largest answer that is read.
const ANSWER_BYTES: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not one that this client understands.
    #[error("{0:?} is not an address of a server: use http://HOST:PORT")]
    Url(String),
    /// The server could not be reached, or ended the connection.
    #[error("no answer from {0}: {1}")]
    Connection(String, std::io::Error),
    /// The answer is not HTTP.
    #[error("the answer from {0} is not HTTP")]
    Answer(String),
}

/// A server's `/api/`.
pub struct Client {
    host: String,
    key: Option<String>,
}

impl Client {
    /// The server at `url`, with an API key or a token.
    ///
    /// # Errors
    /// When `url` is not `http://HOST:PORT`.
    pub fn new(url: &str, key: Option<String>) -> Result<Self, ClientError> {
        let wrong = || ClientError::Url(url.to_owned());
        let host = url.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
        if host.is_empty() || host.contains(['/', '@', '?', '#']) || host.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self { host: if has_port { host.to_owned() } else { format!("{host}:80") }, key })
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
        let mut last = std::io::Error::other("the name has no address");
        let addresses = self.host.to_socket_addrs()?;
        let mut stream = 'connected: {
            for address in addresses {
                match TcpStream::connect_timeout(&address, PATIENCE) {
                    Ok(stream) => break 'connected stream,
                    Err(error) => last = error,
                }
            }
            return Err(last);
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
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
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
        String::from_utf8(answer).map_err(std::io::Error::other)
    }
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
        for wrong in ["localhost:3001", "https://a", "http://", "http://a/b", "http://a b"] {
            assert!(Client::new(wrong, None).is_err(), "{wrong}");
        }
        assert_eq!(Client::new("http://a/", None).unwrap().host, "a:80");
        assert_eq!(Client::new("http://[::1]:3001", None).unwrap().host, "[::1]:3001");
    }

    #[test]
    fn names_are_one_part_of_a_path() {
        assert_eq!(encode("a/b c%\u{e9}"), "a%2Fb%20c%25%C3%A9");
    }
}
