//! Clients that others have written: the browser, npm's `ws` and Python's `websockets`, with and without
//! compression, in plain text and over TLS.
//!
//! The libraries are installed by `tests/clients/install` when the first test needs them.

#[path = "../tls/authority.rs"]
#[allow(dead_code, reason = "these clients read the authority from its file")]
mod authority;
#[path = "../contract/harness/mod.rs"]
#[macro_use]
#[allow(dead_code, unused_macros, reason = "the harness has more than these tests need")]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use authority::Authority;
use harness::process::Process;
use harness::server::{Server, command};
use harness::webdriver::Browser;
use harness::{eventually, free_port};

const DEFLATE: &str = "permessage-deflate";

/// The directory with the installed libraries.
fn libraries() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/install");
    let output = Command::new(script).arg(&directory).output().expect("the script starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    directory
}

/// Runs `script` with the interpreter `program` in every combination of what client and server want.
#[track_caller]
fn converse(program: &str, script: &str) {
    let directory = libraries();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    for (switch, offer, extension) in
        [("true", "offer", DEFLATE), ("true", "plain", "none"), ("false", "offer", "none")]
    {
        let server = Server::start(&[("COMPRESSION", switch)]);
        let url = format!("ws://127.0.0.1:{}/ws", server.port);
        assert_converses(&directory, program, &script, &[&url, offer, extension]);
        let compressed = server.metric("tableforge_websocket_messages_compressed_total").expect("the metric");
        assert_eq!(compressed > 0.0, extension == DEFLATE, "{switch} {offer}");
    }
    let authority = Authority::new();
    authority.issue("server", "localhost");
    let (cert, key) = (authority.path("server.pem"), authority.path("server.key"));
    let port = free_port();
    let settings = [("TLS_CERT_FILE", &*cert), ("TLS_KEY_FILE", &*key)];
    let server = Process::start("tableforge", &mut command("serve", port, &settings));
    eventually("the server serves", || server.output().contains("serves wss://").then_some(()));
    let (url, ca) = (format!("wss://localhost:{port}/ws"), authority.path("ca.pem"));
    assert_converses(&directory, program, &script, &[&url, "offer", DEFLATE, &ca]);
    assert_converses(&directory, program, &script, &[&url, "plain", "none", &ca]);
}

#[track_caller]
fn assert_converses(directory: &Path, program: &str, script: &Path, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.current_dir(directory).arg(script).args(arguments);
    let mut process = Process::start(program, &mut command);
    let status = process.wait();
    assert!(status.success() && process.output().ends_with("done"), "{arguments:?}: {}", process.output());
}

#[test]
fn npm_ws() {
    converse("node", "conversation.js");
}

#[test]
fn python_websockets() {
    converse("./venv/bin/python", "conversation.py");
}

#[test]
fn the_browser() {
    for (switch, extension) in [("true", DEFLATE), ("false", "")] {
        let port = free_port();
        let server = Process::start("tableforge dev", &mut command("dev", port, &[("COMPRESSION", switch)]));
        eventually("the server runs", || server.output().contains("TableForge is running").then_some(()));
        let browser = Browser::start();
        browser.open(&format!("http://127.0.0.1:{port}/"));
        let heard = browser.run(
            "return new Promise((done) => {
                 const socket = new WebSocket(`ws://${location.host}/ws`);
                 const data = 'ünï '.repeat(2000);
                 const send = (message) => socket.send(JSON.stringify(message));
                 socket.onopen = () => send({ type: 'join_room', roomId: 'table', echo: true });
                 socket.onmessage = (event) => {
                     const message = JSON.parse(event.data);
                     if (message.type === 'room_joined') send({ type: 'room_message', roomId: 'table', data });
                     if (message.type === 'room_message') done([socket.extensions.split(';')[0], message.data === data]);
                 };
                 socket.onclose = () => done('closed');
             })",
        );
        assert_eq!(heard, json!([extension, true]), "COMPRESSION={switch}");
    }
}
