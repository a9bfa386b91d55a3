//! A shard that stands still while the others go on.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::server::{Server, command};
use crate::harness::{eventually, free_port, http};

/// A command that runs `wrapped` by way of a script beside this file.
pub fn by_way_of(script: &str, wrapped: &Command) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults").join(script);
    let mut command = Command::new("python3");
    command.arg(path).arg(wrapped.get_program()).args(wrapped.get_args()).env_clear();
    command.envs(wrapped.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn a_shard_that_stalls_fails_liveness_and_the_others_go_on() {
    let (port, admin_port) = (free_port(), free_port());
    let admin = admin_port.to_string();
    let settings = [("SHARDS", "2"), ("STALL_THRESHOLD", "500"), ("ADMIN_PORT", admin.as_str())];
    let mut command = by_way_of("stalling.py", &command("serve", port, &settings));
    let server = Server { port, process: Process::start("the server under a debugger", &mut command) };
    eventually("it serves", || http::try_get(admin_port, "/ready").filter(|answer| answer.status == 200));
    assert_eq!(http::get(admin_port, "/health").status, 200);
    // The kernel gives each connection to one of the two shards; these are enough for some on either.
    let mut clients: Vec<_> = (0..24).map(|_| Client::connect(&server)).collect();
    server.process.signal(Signal::USR1);
    eventually("shard 0 stands still", || {
        server.process.output().contains("shard 0 stands still").then_some(())
    });
    let unhealthy = eventually("liveness fails", || {
        http::try_get(admin_port, "/health").filter(|answer| answer.status == 503)
    });
    assert!(unhealthy.body.contains("\"stalledShards\":[0]"), "{}", unhealthy.body);
    let counted = eventually("it is counted", || {
        let metrics = http::get(admin_port, "/metrics").body;
        let line = metrics.lines().find(|line| line.starts_with("tableforge_shard_stalls_total{"));
        line.filter(|line| !line.ends_with(" 0")).map(str::to_owned)
    });
    assert!(counted.ends_with(" 1"), "{counted}");
    clients
        .iter_mut()
        .for_each(|client| client.send(&json!({"type": "ping", "messageId": "while it stalls"})));
    let answered = |clients: &mut [Client]| {
        clients.iter_mut().filter_map(|client| client.has_received("pong").then_some(())).count()
    };
    let going_on = eventually("the other shard's clients are answered", || {
        Some(answered(&mut clients)).filter(|count| *count > 0)
    });
    assert!(going_on < clients.len(), "some are on the shard that stands still");
    server.process.signal(Signal::USR2);
    for client in &mut clients {
        assert_eq!(client.reply_to("while it stalls")["type"], "pong");
    }
    eventually("liveness is back", || {
        http::try_get(admin_port, "/health").filter(|answer| answer.status == 200)
    });
}
