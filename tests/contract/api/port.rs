//! The separate port, and what is said of a shard that stands still.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::json;

use super::{KEY, WITH_KEY, call, get, json_of, post};
use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::raw::RawSocket;
use crate::harness::server::Server;
use crate::harness::{DEADLINE, eventually, free_port, http};

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

/// The sample of a metric of the separate port with this label.
#[track_caller]
fn sample(port: u16, name: &str, label: &str) -> u64 {
    let metrics = http::get(port, "/metrics").body;
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    let value = line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.parse());
    value.unwrap_or_else(|| panic!("{name} {label}: {metrics}")).expect("a whole number")
}

#[test]
fn whoever_connects_and_asks_nothing_keeps_nobody_out() {
    let port = free_port();
    let server =
        Server::start(&[WITH_KEY[0], ("ADMIN_PORT", &port.to_string()), ("HANDSHAKE_TIMEOUT", "600000")]);
    let mut idle: Vec<_> = (0..200).map(|_| RawSocket::connect(port)).collect();
    for path in ["/health", "/ready", "/metrics", "/stats"] {
        assert_eq!(http::get(port, path).status, 200, "{path}");
    }
    assert_eq!(get(port, "/api/v1/instances")["instances"][0]["connections"], 0);
    let told = idle[0].response();
    assert_eq!((told.status, told.header("retry-after")), (503, Some("1")), "{told:?}");
    idle[0].assert_ends();
    let refused = sample(port, "tableforge_limits_reached_total", "limit=\"admin_connections\"");
    assert!((100..200).contains(&refused), "{refused} of 200 gave way");
    assert!(sample(port, "tableforge_http_responses_total", "status=\"503\"") >= refused);
    let last = idle.last_mut().expect("there are 200");
    last.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(last.response().status, 200, "those that came last still have their turn");
    drop(server);
}

#[test]
fn a_request_that_is_refused_early_may_be_sent_to_its_end() {
    let port = free_port();
    let server = Server::start(&[WITH_KEY[0], ("ADMIN_PORT", &port.to_string())]);
    let body = vec![b'x'; 16 << 20];
    let before = sample(port, "tableforge_http_responses_total", "status=\"401\"");
    for (key, status) in [("another", 401), (KEY, 413)] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server takes connections");
        stream.set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
        let length = body.len();
        let head = format!(
            "POST /api/v1/broadcast HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).expect("nothing is reset");
        let answer = http::read_response(&mut BufReader::new(stream)).expect("an answer");
        assert_eq!(answer.status, status, "{answer:?}");
    }
    assert_eq!(sample(port, "tableforge_http_responses_total", "status=\"401\""), before + 1);
    assert_eq!(sample(port, "tableforge_http_responses_total", "status=\"413\""), 1);
    drop(server);
}

#[test]
fn a_request_that_is_not_complete_in_time_is_told_so() {
    let port = free_port();
    let server =
        Server::start(&[WITH_KEY[0], ("ADMIN_PORT", &port.to_string()), ("HANDSHAKE_TIMEOUT", "200")]);
    let mut silent = RawSocket::connect(port);
    assert_eq!(silent.response().status, 408);
    let headers = format!("X-API-Key: {KEY}\r\nContent-Length: 9\r\nConnection: close\r\n");
    let mut slow = RawSocket::connect(port);
    slow.send(format!("POST /api/v1/broadcast HTTP/1.1\r\nHost: x\r\n{headers}\r\n{{").as_bytes());
    assert_eq!(json_of(&slow.response(), 408)["error"]["code"], "timeout");
    drop(server);
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

/// Stops the thread of the server whose name begins so, until what is returned is ended.
#[track_caller]
fn stop_thread(server: &Server, name: &str) -> Process {
    let mut command = Command::new("python3");
    command.args(["-c", STOP_THREAD, &thread(server, name)]);
    let mut debugger = Process::start("a debugger", &mut command);
    eventually("the thread stands still", || {
        assert_eq!(debugger.ended(), None, "{}", debugger.output());
        debugger.output().contains("stopped").then_some(())
    });
    debugger
}

#[test]
fn a_call_that_no_shard_answers_may_still_be_carried_out() {
    let port = free_port();
    let server = Server::start(&[WITH_KEY[0], ("ADMIN_PORT", &port.to_string())]);
    let mut ann = Client::connect(&server);
    ann.join("r");
    let mut debugger = stop_thread(&server, "tf-shard-0");
    let answer = call(port, "POST", "/api/v1/rooms/r/messages", r#"{"data":"late"}"#);
    assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
    assert_eq!(json_of(&answer, 503)["error"]["code"], "timeout", "it is not known to be undone");
    assert_eq!(http::get(port, "/metrics").status, 200, "the port goes on");
    debugger.kill();
    ann.expect_said("r", "late");
}

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
    let mut debugger = stop_thread(&server, "tf-shard-1");
    let stalled =
        eventually("health fails", || http::try_get(port, "/health").filter(|answer| answer.status == 503));
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
