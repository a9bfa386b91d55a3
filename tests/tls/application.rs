//! The application that decides about joins, and the collector of spans, spoken to over https.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::authority::Authority;
use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::server::{Server, command};
use crate::harness::{eventually, free_port, token};

/// Starts an application that says yes to everything, with a certificate of `authority` for `localhost`: its port, and
/// the bodies that it gets.
fn start_application(authority: &Authority) -> (u16, Receiver<String>) {
    authority.issue("application", "localhost");
    let certificate =
        CertificateDer::from_pem_file(authority.path("application.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(authority.path("application.key")).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they go together");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let (bodies, got) = channel();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).expect("a server");
            let stream = StreamOwned::new(connection, socket.expect("a connection"));
            let bodies = bodies.clone();
            thread::spawn(move || answer(BufReader::new(stream), &bodies));
        }
    });
    (port, got)
}

/// Says yes until the other end goes.
fn answer(
    mut stream: BufReader<StreamOwned<ServerConnection, std::net::TcpStream>>,
    bodies: &Sender<String>,
) {
    loop {
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).expect("the body");
        // Whoever does not look has let go of the other end.
        let _ = bodies.send(String::from_utf8(body).expect("JSON is text"));
        let body = r#"{"allow":["join"]}"#;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn only_an_application_that_proves_itself_is_believed() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (port, _bodies) = start_application(&authority);
    let url = format!("https://localhost:{port}/may");
    let (trusted, foreign) = (authority.path("ca.pem"), stranger.path("ca.pem"));
    for (ca, outcome) in [(&trusted, "room_joined"), (&foreign, "error")] {
        let settings = [
            ("JWT_SECRET", token::SECRET),
            ("AUTHORIZE_URL", url.as_str()),
            ("AUTHORIZE_CA_FILE", ca.as_str()),
        ];
        let server = Server::start(&settings);
        let mut client = Client::connect_as(&server, &token::of("ann"));
        for room in ["one", "two"] {
            let reply = client.request(json!({"type": "join_room", "roomId": room}));
            assert_eq!(reply["type"], outcome, "{}", reply.text);
            assert!(outcome != "error" || reply["code"] == "unavailable", "{}", reply.text);
        }
    }
}

#[test]
fn spans_go_only_to_a_collector_that_proves_itself() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (port, bodies) = start_application(&authority);
    let endpoint = format!("https://localhost:{port}");
    let start = |ca: &str| {
        Server::start(&[("OTLP_ENDPOINT", &endpoint), ("OTLP_CA_FILE", ca), ("TRACE_SAMPLE", "1")])
    };
    let wary = start(&stranger.path("ca.pem"));
    Client::connect(&wary).join("r");
    eventually("an export fails", || {
        wary.metric("tableforge_trace_export_failures_total").filter(|failures| *failures >= 1.0)
    });
    assert!(bodies.try_recv().is_err(), "the collector has heard nothing");
    let server = start(&authority.path("ca.pem"));
    Client::connect(&server).join("r");
    let body = eventually("spans come", || bodies.try_recv().ok());
    assert!(body.contains("resourceSpans") && body.contains("upgrade"), "{body}");
}

#[test]
fn a_file_of_authorities_that_cannot_be_used_stops_the_start() {
    let authority = Authority::new();
    let (missing, unused) = (authority.path("missing.pem"), authority.path("ca.pem"));
    for (address, file) in [("AUTHORIZE_URL", "AUTHORIZE_CA_FILE"), ("OTLP_ENDPOINT", "OTLP_CA_FILE")] {
        for (url, ca, word) in
            [("https://localhost:1/", &missing, "missing.pem"), ("http://localhost:1/", &unused, "https://")]
        {
            let settings = [(address, url), (file, ca.as_str()), ("LOG_LEVEL", "off")];
            let mut process = Process::start("tableforge", &mut command("serve", free_port(), &settings));
            assert!(!process.wait().success());
            let output = process.output();
            assert!(output.contains(file) && output.contains(word), "{output}");
        }
    }
}
