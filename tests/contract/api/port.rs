//! The separate port, and what is said of a shard that stands still.

use std::process::Command;

use serde_json::json;

use super::{KEY, WITH_KEY, call, get, json_of, post};
use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::server::Server;
use crate::harness::{eventually, free_port, http};

#[test]
fn the_separate_port_serves_administration_and_the_main_one_does_not() {
    let port = free_port();
    let admin_port = port.to_string();
    let server = Server::start(&[WITH_KEY[0], ("ADMIN_PORT", &admin_port), ("SHARDS", "2")]);
    for path in ["/health", "/ready", "/stats"] {
        assert_eq!(http::get(server.port, path).status, 200, "{path}");
        assert_eq!(http::get(port, path).status, 200, "{path}");
    }
    assert_eq!(http::get(server.port, "/metrics").status, 404);
    assert!(http::get(port, "/metrics").body.contains("tableforge_websocket_connections_total"));
    assert_eq!(call(server.port, "GET", "/api/v1/instances", "").status, 404);
    assert_eq!(http::get(port, "/api/v1/instances").status, 401);
    assert_eq!(http::get(port, "/ws").status, 404, "clients connect to the main port");

    let mut ann = Client::connect(&server);
    ann.join("r");
    assert_eq!(get(port, "/api/v1/rooms/r")["memberCount"], 1);
    assert_eq!(get(port, "/api/v1/instances")["instances"][0]["connections"], 1);
    assert_eq!(post(port, "/api/v1/rooms/r/messages", r#"{"data":1}"#), json!({}));
    ann.expect_said("r", 1);
    let path = format!("/api/v1/users/{}/disconnect", ann.user_id);
    assert_eq!(post(port, &path, "")["disconnected"], 1);
    assert_eq!(ann.expect_close(), 4503);
    let answer = json_of(&call(port, "POST", "/api/v1/broadcast", "{"), 400);
    assert_eq!(answer["error"]["code"], "invalid_json", "{answer}");
}

#[test]
fn a_port_that_is_taken_stops_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let mut command =
        crate::harness::server::command("serve", free_port(), &[("ADMIN_PORT", &port), ("API_KEY", KEY)]);
    let mut process = crate::harness::process::Process::start("tableforge", &mut command);
    assert_eq!(process.wait().code(), Some(1));
    eventually("the reason is told", || process.output().contains("ADMIN_PORT").then_some(()));
}

/// Stops one thread of another process, as a debugger does, until it is killed itself.
const STOP_THREAD: &str = "
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
thread = int(sys.argv[1])
PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
for request in PTRACE_SEIZE, PTRACE_INTERRUPT:
    if libc.ptrace(request, thread, None, None) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(thread, WALL)
print('stopped', flush=True)
time.sleep(3600)
";

/// The id of the server's first thread whose name begins with `name`: those that it starts itself inherit that.
fn thread(server: &Server, name: &str) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.process.id())).expect("the process runs");
    let named = tasks.flatten().filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name))
    });
    let numbers = named.map(|task| task.file_name().to_string_lossy().parse::<u32>().expect("a number"));
    numbers.min().unwrap_or_else(|| panic!("there is a thread {name}")).to_string()
}

#[test]
fn a_shard_that_stands_still_makes_health_fail_until_it_goes_on() {
    let port = free_port();
    let admin_port = port.to_string();
    let server = Server::start(&[("ADMIN_PORT", &admin_port), ("SHARDS", "2"), ("STALL_THRESHOLD", "1000")]);
    let mut command = Command::new("python3");
    command.args(["-c", STOP_THREAD, &thread(&server, "tf-shard-1")]);
    let mut debugger = Process::start("a debugger", &mut command);
    let stalled = eventually("health fails", || {
        assert_eq!(debugger.ended(), None, "{}", debugger.output());
        http::try_get(port, "/health").filter(|answer| answer.status == 503)
    });
    let stalled = json_of(&stalled, 503);
    let shards = stalled["stalledShards"].as_array().unwrap_or_else(|| panic!("a list: {stalled}"));
    assert!(stalled["status"] == "unhealthy" && shards.contains(&json!(1)), "{stalled}");
    eventually("it is counted", || {
        let metrics = http::get(port, "/metrics").body;
        let line = metrics.lines().find(|line| line.starts_with("tableforge_shard_stalls_total"))?;
        (!line.ends_with(" 0")).then_some(())
    });
    debugger.kill();
    eventually("health is back", || http::try_get(port, "/health").filter(|answer| answer.status == 200));
}
