//! A server that speaks TLS, and TLS connections to it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion, version};
use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::authority::Authority;
use crate::harness::process::Process;
use crate::harness::server::command;
use crate::harness::{DEADLINE, eventually, free_port};

/// A TLS connection.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A server with a certificate of `authority` for `localhost`.
pub struct Secured {
    /// Who signed its certificate.
    pub authority: Authority,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The process.
    pub process: Process,
}

impl Secured {
    /// Starts one and waits until it is ready.
    #[track_caller]
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_behind(&[], settings)
    }

    /// As [`Secured::start`], for a server that wants `preface` in front of TLS.
    #[track_caller]
    pub fn start_behind(preface: &[u8], settings: &[(&str, &str)]) -> Self {
        let authority = Authority::new();
        authority.issue("server", "localhost");
        let port = free_port();
        let (cert, key) = (authority.path("server.pem"), authority.path("server.key"));
        let all = [&[("TLS_CERT_FILE", &*cert), ("TLS_KEY_FILE", &*key)], settings].concat();
        let process = Process::start("tableforge", &mut command("serve", port, &all));
        let mut server = Self { authority, port, process };
        eventually("the server is ready", || {
            if let Some(status) = server.process.ended() {
                panic!("the server ended at its start with {status}");
            }
            let answer = server.behind(preface).and_then(|stream| ask(stream, "/ready"));
            answer.ok().filter(|answer| answer.starts_with("HTTP/1.1 200 "))
        });
        server
    }

    /// A connection of any version whose handshake is over.
    #[track_caller]
    pub fn connect(&self) -> Stream {
        self.try_connect(&[&version::TLS13, &version::TLS12], &[b"http/1.1"]).expect("TLS succeeds")
    }

    /// A connection of one of these versions and application protocols.
    pub fn try_connect(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&[u8]],
    ) -> io::Result<Stream> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("a known version")
            .with_root_certificates(self.authority.roots())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        self.secure(config, TcpStream::connect(("127.0.0.1", self.port))?)
    }

    /// TLS over a connection that has sent `preface`, and whether its handshake succeeds.
    pub fn behind(&self, preface: &[u8]) -> io::Result<Stream> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .expect("a known version")
            .with_root_certificates(self.authority.roots())
            .with_no_client_auth();
        let mut socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.write_all(preface)?;
        self.secure(config, socket)
    }

    fn secure(&self, config: ClientConfig, socket: TcpStream) -> io::Result<Stream> {
        let name = "localhost".try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_nodelay(true)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }

    /// A client that has heard the greeting.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::over(self.connect())
    }

    /// The whole answer to `GET path`, which must end with close_notify.
    #[track_caller]
    pub fn get(&self, path: &str) -> String {
        self.try_get(path).expect("the server answers")
    }

    fn try_get(&self, path: &str) -> io::Result<String> {
        ask(self.try_connect(&[&version::TLS13], &[])?, path)
    }

    /// The value of a metric.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let line =
            text.lines().find(|line| line.starts_with(&format!("{name}{{"))).expect("the metric exists");
        line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
    }
}

/// The whole answer to `GET path`.
fn ask(mut stream: Stream, path: &str) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    // rustls fails this read when the connection ends without close_notify.
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A WebSocket over TLS.
pub struct Client {
    /// The socket.
    pub socket: WebSocket<Stream>,
}

impl Client {
    /// Upgrades, and takes the greeting.
    #[track_caller]
    pub fn over(stream: Stream) -> Self {
        let request = "wss://localhost/ws".into_client_request().expect("a valid address");
        let (socket, _) = tungstenite::client::client(request, stream).expect("the server upgrades");
        let mut client = Self { socket };
        client.expect("connection_established");
        client
    }

    /// Sends one message.
    #[track_caller]
    pub fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).expect("the connection is open");
    }

    /// Waits for the next message of that type.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Value {
        loop {
            match self.socket.read().unwrap_or_else(|why| panic!("waited for {kind}: {why}")) {
                Message::Text(text) => {
                    let event: Value = serde_json::from_str(&text).expect("JSON");
                    if event["type"] == kind {
                        return event;
                    }
                }
                Message::Close(frame) => panic!("waited for {kind}, but the server closed with {frame:?}"),
                _ => {}
            }
        }
    }

    /// Waits for the close frame and for the orderly end of TLS after it; the code.
    #[track_caller]
    pub fn expect_close(&mut self) -> u16 {
        let mut code = None;
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => code = frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(tungstenite::Error::ConnectionClosed) => return code.expect("a close frame with a code"),
                Err(why) => panic!("after {code:?} the connection ended out of order: {why}"),
            }
        }
    }
}
