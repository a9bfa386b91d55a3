//! A socket that sends whatever bytes a test wants, and shows the frames that come back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::DEADLINE;
use super::http::{self, Response};
use super::server::Server;

/// Opcodes of RFC 6455 section 5.2.
pub const CONTINUATION: u8 = 0x0;
/// A text frame.
pub const TEXT: u8 = 0x1;
/// A binary frame.
pub const BINARY: u8 = 0x2;
/// A close frame.
pub const CLOSE: u8 = 0x8;
/// A ping frame.
pub const PING: u8 = 0x9;
/// A pong frame.
pub const PONG: u8 = 0xA;

/// The bit of a frame's first byte that marks the last fragment.
pub const FIN: u8 = 0x80;
/// The bit of a frame's second byte that says the payload is masked.
const MASKED: u8 = 0x80;
/// The key that test frames are masked with.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// An upgrade request that any server must take.
pub const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first byte: final bit, reserved bits and opcode.
    pub first: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

/// A TCP connection to a server.
pub struct RawSocket {
    stream: BufReader<TcpStream>,
}

impl RawSocket {
    /// Connects, and sends nothing.
    #[track_caller]
    pub fn connect(port: u16) -> Self {
        Self::over(TcpStream::connect(("127.0.0.1", port)).expect("the server takes connections"))
    }

    /// Takes a TCP connection that exists.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket has nodelay");
        stream.set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
        Self { stream: BufReader::new(stream) }
    }

    /// Connects, upgrades, and takes the greeting.
    #[track_caller]
    pub fn upgraded(server: &Server) -> Self {
        let mut socket = Self::connect(server.port);
        socket.send(UPGRADE.as_bytes());
        let response = socket.response();
        assert_eq!(response.status, 101, "{response:?}");
        let greeting = socket.event();
        assert_eq!(greeting["type"], "connection_established", "{greeting}");
        socket
    }

    /// Sends `bytes` as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the connection is open");
    }

    /// Sends `bytes` as they are; the server may have closed already.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends a masked frame.
    #[track_caller]
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&frame(first, payload));
    }

    /// Sends a masked text frame.
    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send_frame(FIN | TEXT, text.as_bytes());
    }

    /// Reads an HTTP answer.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        http::read_response(&mut self.stream).expect("an HTTP answer")
    }

    /// Reads an HTTP answer; nothing when the connection ends before there is one.
    #[allow(dead_code, reason = "the hostile tests share this harness and ask for it")]
    pub fn try_response(&mut self) -> Option<Response> {
        http::read_response(&mut self.stream).ok()
    }

    /// Ends both directions of the connection.
    pub fn shutdown(self) {
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Both);
    }

    /// Reads the next frame, or `None` when the connection has ended.
    #[track_caller]
    pub fn frame(&mut self) -> Option<Frame> {
        match self.try_frame() {
            Ok(frame) => Some(frame),
            Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("no frame came in {DEADLINE:?}")
            }
            Err(_) => None,
        }
    }

    fn try_frame(&mut self) -> std::io::Result<Frame> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        assert_eq!(head[1] & MASKED, 0, "a server's frame is never masked");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length)?;
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.stream.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
            short => u64::from(short),
        };
        let mut payload = vec![0; usize::try_from(length).expect("a length that fits")];
        self.stream.read_exact(&mut payload)?;
        Ok(Frame { first: head[0], payload })
    }

    /// Reads the next text frame, which must be one, as JSON.
    #[track_caller]
    pub fn event(&mut self) -> Value {
        let frame = self.frame().expect("the connection is open");
        assert_eq!(frame.first, FIN | TEXT, "{}", String::from_utf8_lossy(&frame.payload));
        serde_json::from_slice(&frame.payload).expect("the event is JSON")
    }

    /// Reads events up to one of that type.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Value {
        loop {
            let event = self.event();
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// Sends `bytes` again and again, and reads nothing, until the server takes no more for a second or
    /// ends the connection; false if it has not within [`DEADLINE`].
    pub fn is_cut_off_sending(&mut self, bytes: &[u8]) -> bool {
        let until = Instant::now() + DEADLINE;
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(Duration::from_secs(1))).expect("the time is not zero");
        while Instant::now() < until {
            if stream.write_all(bytes).is_err() {
                return true;
            }
        }
        false
    }

    /// Waits for the end of the connection, whatever comes before it.
    #[track_caller]
    pub fn assert_ends(&mut self) {
        let mut rest = Vec::new();
        if let Err(why) = self.stream.read_to_end(&mut rest) {
            assert_ne!(why.kind(), std::io::ErrorKind::WouldBlock, "the connection stays open");
        }
    }

    /// Whether an answer, or the end of the connection, comes within `time`.
    #[track_caller]
    pub fn has_answer_within(&mut self, time: Duration) -> bool {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(time)).expect("the time is not zero");
        let answer = self.stream.fill_buf().map(|_| ()).map_err(|why| why.kind());
        self.stream.get_ref().set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
        answer != Err(std::io::ErrorKind::WouldBlock)
    }

    /// Reads up to a close frame and to the end of the connection after it; the close code.
    #[track_caller]
    pub fn expect_close(&mut self) -> u16 {
        loop {
            let frame = self.frame().expect("a close frame before the connection ends");
            if frame.first != FIN | CLOSE {
                continue;
            }
            let code = frame.payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
            // The server may end the connection before it has read this answer.
            let _ = self.try_send(&self::frame(FIN | CLOSE, &frame.payload));
            assert_eq!(self.frame(), None, "nothing follows a close frame");
            return code;
        }
    }
}

/// The bytes of a masked frame with that first byte.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..=125 => bytes.push(MASKED | short as u8),
        medium @ 126..=0xffff => {
            bytes.push(MASKED | 126);
            bytes.extend((medium as u16).to_be_bytes());
        }
        long => {
            bytes.push(MASKED | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// The bytes of a frame's header alone, which declares `length` bytes.
pub fn header_declaring(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first, MASKED | 127];
    bytes.extend(length.to_be_bytes());
    bytes.extend(MASK);
    bytes
}
