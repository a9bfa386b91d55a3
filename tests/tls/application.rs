//! The application that decides about joins, asked over https.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
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
use crate::harness::{free_port, token};

/// Starts an application that says yes to everything, with a certificate of `authority` for `localhost`; its port.
fn start_application(authority: &Authority) -> u16 {
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
    thread::spawn(move || {
        for socket in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).expect("a server");
            let stream = StreamOwned::new(connection, socket.expect("a connection"));
            thread::spawn(move || answer(BufReader::new(stream)));
        }
    });
    port
}

/// Says yes until the other end goes.
fn answer(mut stream: BufReader<StreamOwned<ServerConnection, std::net::TcpStream>>) {
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
        stream.read_exact(&mut vec![0; length]).expect("the body");
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
    let url = format!("https://localhost:{}/may", start_application(&authority));
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
fn a_file_of_authorities_that_cannot_be_used_stops_the_start() {
    let authority = Authority::new();
    let refused = |url: &str, ca: &str, words: &[&str]| {
        let settings = [("AUTHORIZE_URL", url), ("AUTHORIZE_CA_FILE", ca), ("LOG_LEVEL", "off")];
        let mut process = Process::start("tableforge", &mut command("serve", free_port(), &settings));
        assert!(!process.wait().success());
        let output = process.output();
        assert!(words.iter().all(|word| output.contains(word)), "{words:?}: {output}");
    };
    refused("https://localhost:1/", &authority.path("missing.pem"), &["AUTHORIZE_CA_FILE", "missing.pem"]);
    refused("http://localhost:1/", &authority.path("ca.pem"), &["AUTHORIZE_CA_FILE", "https://"]);
}
