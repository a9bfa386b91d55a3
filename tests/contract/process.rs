//! The program as a process: how it starts, how it refuses to, and how it ends.

use rustix::process::Signal;

use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::raw::RawSocket;
use crate::harness::server::{Server, command};
use crate::harness::{eventually, free_port, http};

#[test]
fn dev_serves_the_console_page_and_says_where() {
    let port = free_port();
    let mut dev = Process::start("tableforge dev", &mut command("dev", port, &[]));
    let page = eventually("the page is there", || {
        assert_eq!(dev.ended(), None, "it runs: {}", dev.output());
        http::try_get(port, "/").filter(|response| response.status == 200)
    });
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{page:?}");
    assert!(page.body.contains("<title>"), "it is the page");
    eventually("its address is printed", || dev.output().contains(&format!(":{port}/")).then_some(()));
    let client = Client::open(port, "/ws", &[]).expect("anonymous users are welcome");
    assert_eq!(client.close(), 1000);
}

#[test]
fn the_console_page_needs_nothing_from_elsewhere() {
    let port = free_port();
    let _dev = Process::start("tableforge dev", &mut command("dev", port, &[]));
    let page =
        eventually("the page is there", || http::try_get(port, "/").filter(|page| page.status == 200)).body;
    for outside in ["src=\"http", "src=\"//", "@import", "url(http", "integrity=", "<link rel=\"stylesheet\""]
    {
        assert!(!page.contains(outside), "{outside} is in the page");
    }
    for inline in [" onclick=", " onload=", " onsubmit=", "javascript:", "innerHTML", "document.write"] {
        assert!(!page.contains(inline), "{inline} is in the page");
    }
}

#[test]
fn a_signal_drains_and_ends_with_success() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start(&[("SHARDS", "2")]);
        let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&server)).collect();
        let mut raw = RawSocket::upgraded(&server);
        clients.iter_mut().for_each(|client| drop(client.join("r")));
        server.process.signal(signal);
        let mut delays = std::collections::HashSet::new();
        for client in &mut clients {
            let event = client.expect("server_draining");
            delays.insert(event["reconnectAfterMs"].as_u64().expect("a delay in ms"));
            assert_eq!(client.expect_close(), 1012);
        }
        assert!(delays.len() > 10, "each connection has its own delay: {delays:?}");
        raw.expect("server_draining");
        assert_eq!(raw.expect_close(), 1012);
        assert!(server.process.wait().success(), "{signal:?}");
    }
}

#[test]
fn messages_sent_before_the_drain_are_delivered() {
    let mut server = Server::start(&[("SHARDS", "4")]);
    let (mut ann, mut bob) = (Client::connect(&server), Client::connect(&server));
    ann.join("r");
    bob.join("r");
    let acks: Vec<_> = (0..200)
        .map(|number| ann.ask(serde_json::json!({"type": "room_message", "roomId": "r", "data": number})))
        .collect();
    for id in &acks {
        assert_eq!(ann.reply_to(id)["type"], "message_ack");
    }
    server.process.signal(Signal::TERM);
    for number in 0..200 {
        bob.expect_said("r", number);
    }
    assert_eq!(bob.expect_close(), 1012);
    assert!(server.process.wait().success());
}

#[test]
fn a_peer_that_never_reads_does_not_hold_up_the_end() {
    let mut server = Server::start(&[("DRAIN_TIMEOUT", "1000")]);
    let mut stuck = RawSocket::upgraded(&server);
    stuck.send_text(r#"{"type":"join_room","roomId":"r"}"#);
    let half = http_half_request(server.port);
    server.terminate();
    drop((stuck, half));
}

/// A connection that has sent a part of its request.
fn http_half_request(port: u16) -> RawSocket {
    let mut socket = RawSocket::connect(port);
    socket.send(b"GET /ws HTTP/1.1\r\n");
    socket
}

#[test]
fn a_second_server_on_the_same_port_refuses_and_names_it() {
    let server = Server::start(&[]);
    let mut second =
        Process::start("the second", &mut command("serve", server.port, &[("AUTH_REQUIRED", "false")]));
    let status = second.wait();
    assert_eq!(status.code(), Some(1), "{}", second.output());
    let output = second.output();
    assert!(output.lines().any(|line| line.contains(&server.port.to_string())), "names the port: {output}");
    assert!(!output.contains("panicked"), "{output}");
    assert_eq!(http::get(server.port, "/ready").status, 200, "the first goes on");
}

#[test]
fn a_port_is_free_again_as_soon_as_its_server_has_ended() {
    let mut server = Server::start(&[]);
    let port = server.port;
    let clients: Vec<_> = (0..10).map(|_| Client::connect(&server)).collect();
    server.terminate();
    drop(clients);
    let server = Server::start_on(port, &[]);
    Client::connect(&server).join("r");
}

#[test]
fn serve_refuses_to_start_without_a_way_to_know_users() {
    let mut command = command("serve", free_port(), &[]);
    command.env_remove("AUTH_REQUIRED");
    let mut process = Process::start("tableforge serve", &mut command);
    let status = process.wait();
    let output = process.output();
    assert!(!status.success(), "{output}");
    assert!(output.contains("JWT_SECRET") && output.contains("AUTH_REQUIRED"), "says what to set: {output}");
}

#[test]
fn lines_that_go_to_the_journal_begin_with_their_priority_and_others_do_not() {
    let port = free_port();
    // As systemd says that standard error is the journal: by the device and the number of the file behind it.
    let to_journal = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$@\"";
    let elsewhere = "JOURNAL_STREAM=1:1 exec \"$@\"";
    for (script, begins) in [(to_journal, "<6>{"), (elsewhere, "{")] {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_tableforge"), "serve"]);
        shell.env("WS_PORT", port.to_string()).envs([
            ("WS_HOST", "127.0.0.1"),
            ("AUTH_REQUIRED", "false"),
            ("LOG_FORMAT", "json"),
        ]);
        let mut server = Process::start("tableforge serve", &mut shell);
        eventually("it serves", || server.output().contains("\"serving\"").then_some(()));
        server.signal(Signal::TERM);
        assert!(server.wait().success());
        let output = server.output();
        let serving = output.lines().find(|line| line.contains("\"serving\"")).expect("it was there");
        assert!(serving.starts_with(begins), "{serving}");
    }
}
