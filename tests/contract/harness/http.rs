//! Plain HTTP/1.1 over a socket, one request per connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::DEADLINE;

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and their values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Response {
    /// The value of the header `name` (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The answer to `GET path`.
#[track_caller]
pub fn get(port: u16, path: &str) -> Response {
    try_get(port, path).unwrap_or_else(|| panic!("no answer to GET {path} on port {port}"))
}

/// The answer to `GET path`, or `None` if there was none.
pub fn try_get(port: u16, path: &str) -> Option<Response> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    exchange(port, request.as_bytes()).ok()
}

/// The answer to `method path` with a JSON body.
pub fn send_json(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<Response> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    exchange(port, [head.as_bytes(), body.as_bytes()].concat().as_slice())
}

/// Sends `request` as it is and reads one answer.
pub fn exchange(port: u16, request: &[u8]) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(request)?;
    read_response(&mut BufReader::new(stream))
}

/// Reads one answer, with its body unless it is an upgrade or an interim one.
pub fn read_response(stream: &mut impl BufRead) -> std::io::Result<Response> {
    let status_line = read_line(stream)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status line: {status_line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut response = Response { status, headers, body: String::new() };
    let length = response.header("content-length").and_then(|length| length.parse().ok());
    let mut body = Vec::new();
    match length {
        _ if status < 200 => {}
        Some(length) => {
            stream.take(length).read_to_end(&mut body)?;
        }
        None => {
            stream.read_to_end(&mut body)?;
        }
    }
    response.body = String::from_utf8_lossy(&body).into_owned();
    Ok(response)
}

fn read_line(stream: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}
