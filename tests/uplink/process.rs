//! The whole program and a real Redis: what a restart with the same name meets, what a panic ends.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use tableforge::config::{LogFormat, Settings};
use tableforge::identity::InstanceId;
use tableforge::logging;
use tableforge::shard::outlet::Waker;
use tableforge::uplink::driver::{Ports, start};
use tableforge::uplink::history::HistoryRules;

use crate::harness::{Redis, free_port, settings};

/// The signal of abort(3).
const SIGABRT: i32 = 6;

struct Server {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    log: Lines<BufReader<ChildStderr>>,
}

impl Server {
    fn start(redis: &Redis, heartbeat_ms: u64) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tableforge"))
            .arg("serve")
            .env_clear()
            .env("INSTANCE_ID", "same")
            .env("AUTH_REQUIRED", "false")
            .env("WS_HOST", "127.0.0.1")
            .env("WS_PORT", free_port().to_string())
            .env("SHARDS", "1")
            .env("REDIS_HOST", "127.0.0.1")
            .env("REDIS_PORT", redis.port.to_string())
            .env("INACTIVE_THRESHOLD", (heartbeat_ms * 3).to_string())
            .env("HEARTBEAT_INTERVAL", heartbeat_ms.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let out = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let log = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        Self { child, out, log }
    }

    fn serves(&mut self) -> bool {
        self.out.any(|line| line.is_ok_and(|line| line.contains("serves")))
    }

    fn signal(&mut self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill runs").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn after_a_clean_stop_the_name_is_free_at_once() {
    let redis = Redis::start();
    // After a crash the name would be taken for 25 minutes.
    let mut first = Server::start(&redis, 600_000);
    assert!(first.serves());
    first.signal("TERM");
    assert!(first.child.wait().expect("it ends").success());
    let mut client = redis.client();
    let holder: Option<String> =
        redis::cmd("HGET").arg("tableforge:boots").arg("same").query(&mut client).unwrap();
    assert_eq!(holder, None);
    let mut second = Server::start(&redis, 600_000);
    assert!(second.serves());
}

#[test]
fn after_a_crash_a_restart_says_that_it_waits_for_the_name() {
    let redis = Redis::start();
    let mut first = Server::start(&redis, 500);
    assert!(first.serves());
    first.signal("KILL");
    first.child.wait().expect("it ends");
    let mut second = Server::start(&redis, 500);
    assert!(second.serves());
    second.signal("TERM");
    let log: Vec<String> = second.log.by_ref().map_while(Result::ok).collect();
    let waits = log.iter().filter(|line| line.contains("INSTANCE_ID")).count();
    assert_eq!(waits, 1, "{log:#?}");
}

/// Set for the process that is to panic: the port of its Redis.
const PANICS: &str = "TABLEFORGE_TEST_PANICS";

#[test]
fn a_panic_in_the_uplink_ends_the_process() {
    if let Ok(port) = std::env::var(PANICS) {
        panic_in_the_uplink(port.parse().expect("a port"));
    }
    let redis = Redis::start();
    let output = Command::new(std::env::current_exe().expect("a test is a program"))
        .args(["--exact", "process::a_panic_in_the_uplink_ends_the_process", "--nocapture"])
        .env(PANICS, redis.port.to_string())
        .output()
        .expect("the test can start itself");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(SIGABRT), "{said}");
    let json = |line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"));
    let lines: Vec<serde_json::Value> = said.lines().map(json).collect();
    let errors: Vec<_> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    let [panic, end] = errors[..] else { panic!("two lines say it: {said}") };
    assert_eq!((&panic["panic"], &panic["thread"]), (&"no load".into(), &"tf-publisher".into()), "{panic}");
    assert!(panic["place"].as_str().is_some_and(|place| place.contains("process.rs:")), "{panic}");
    assert!(end["message"].as_str().is_some_and(|text| text.contains("ending the process")), "{end}");
}

/// Runs an uplink whose first heartbeat panics, until that ends the process.
fn panic_in_the_uplink(port: u16) -> ! {
    let _logging = logging::start(&Settings { log_format: LogFormat::Json, ..Settings::for_tests() });
    let (_commands, for_ingress) = crossbeam_channel::bounded(1);
    let (_publications, for_publisher) = crossbeam_channel::bounded(1);
    let waker = Waker::new().expect("an eventfd");
    let (commands, publications) = (for_ingress, for_publisher);
    let ports = Ports {
        shards: Vec::new(),
        answers: Vec::new(),
        commands,
        waker,
        publications,
        cells: Default::default(),
        tracer: None,
    };
    let id = InstanceId::parse("panics").expect("a valid name");
    let _handle = start(&settings(port), HistoryRules::none(), &id, 7, ports, || panic!("no load"), None)
        .expect("it starts");
    std::thread::sleep(crate::harness::PATIENCE);
    std::process::exit(0)
}
