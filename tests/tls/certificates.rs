//! The server's certificate: what is refused at the start, and how it is renewed.

use std::fs;

use rustix::process::Signal;
use serde_json::json;

use crate::authority::Authority;
use crate::harness::process::Process;
use crate::harness::server::command;
use crate::harness::{eventually, free_port};
use crate::secured::Secured;

#[test]
fn a_new_certificate_is_used_after_sighup_and_connections_stay() {
    let server = Secured::start(&[]);
    let shown = || {
        let stream = server.connect();
        stream.conn.peer_certificates().expect("a certificate")[0].clone().into_owned()
    };
    let old = shown();
    let mut client = server.client();

    let new = server.authority.issue("server", "localhost");
    assert_eq!(shown(), old, "not before it is told");
    server.process.signal(Signal::HUP);
    eventually("the new certificate is shown", || (shown() == new).then_some(()));

    fs::write(server.authority.path("server.pem"), "no certificate").expect("the file can be written");
    server.process.signal(Signal::HUP);
    eventually("the bad file is named", || {
        let log = server.process.output();
        (log.contains("TLS_CERT_FILE") && log.contains("server.pem")).then_some(())
    });
    assert_eq!(shown(), new, "the one from before stays");

    client.send(&json!({"type": "ping"}));
    client.expect("pong");
}

#[test]
fn without_tls_sighup_changes_nothing() {
    let server = crate::harness::server::Server::start(&[]);
    server.process.signal(Signal::HUP);
    eventually("the signal is logged", || server.process.output().contains("SIGHUP").then_some(()));
    assert_eq!(server.get_json("/health")["status"], "healthy");
}

#[test]
fn files_that_cannot_be_used_stop_the_start_and_are_named() {
    let authority = Authority::new();
    authority.issue("one", "localhost");
    authority.issue("other", "localhost");
    fs::write(authority.path("empty.pem"), "").expect("the file can be written");
    let refused = |cert: &str, key: &str, words: &[&str], code: i32| {
        let (cert, key) = (authority.path(cert), authority.path(key));
        let settings = [("TLS_CERT_FILE", &*cert), ("TLS_KEY_FILE", &*key), ("LOG_LEVEL", "off")];
        let mut process = Process::start("tableforge", &mut command("serve", free_port(), &settings));
        assert_eq!(process.wait().code(), Some(code));
        let output = process.output();
        assert_eq!(output.lines().count(), 1, "{output}");
        assert!(words.iter().all(|word| output.contains(word)), "{words:?}: {output}");
    };
    refused("missing.pem", "one.key", &["TLS_CERT_FILE", "missing.pem", "No such file"], 1);
    refused("one.pem", "missing.key", &["TLS_KEY_FILE", "missing.key", "No such file"], 1);
    refused("empty.pem", "one.key", &["TLS_CERT_FILE", "empty.pem", "PEM"], 1);
    refused("one.pem", "one.pem", &["TLS_KEY_FILE", "one.pem", "private key"], 1);
    refused("one.pem", "other.key", &["TLS_CERT_FILE", "TLS_KEY_FILE"], 1);

    let half = [("TLS_CERT_FILE", "server.pem")];
    let mut process = Process::start("tableforge", &mut command("serve", free_port(), &half));
    assert_eq!(process.wait().code(), Some(2));
    assert!(process.output().contains("set both or neither"), "{}", process.output());
}
