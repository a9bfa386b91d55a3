//! The scenarios against a real `tableforge dev`: what they report is right to the message, and nothing is lost.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Time for a server to be ready, on the slowest of machines.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running server, ended with its owner.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_loadtest")).with_file_name("tableforge");
        assert!(program.exists(), "{} is missing: cargo build --workspace", program.display());
        let port = free_port();
        let child = Command::new(program)
            .arg("dev")
            .env_clear()
            .envs([("WS_PORT", port.to_string()), ("SHARDS", "1".into()), ("MESSAGE_RATE", "0".into())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server can be started");
        let server = Self { child, port };
        let begun = Instant::now();
        while !server.is_ready() {
            assert!(begun.elapsed() < START_LIMIT, "the server is not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut answer = String::new();
        let asked = write!(stream, "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
    }

    /// Runs a scenario; its JSON, with a zero exit code.
    #[track_caller]
    fn run(&self, scenario: &str) -> Value {
        let (url, pid) = (format!("ws://127.0.0.1:{}/ws", self.port), self.child.id());
        let line = format!("{scenario} --json --url {url} --pid {pid}");
        let (code, output, said) = loadtest(&line);
        assert_eq!(code, Some(0), "{line}: {said}");
        serde_json::from_str(&output).expect("one JSON object on standard output")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on, below those that the kernel gives to outgoing connections.
fn free_port() -> u16 {
    std::iter::repeat_with(|| fastrand::u16(20_000..30_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("an endless iterator ends only when it has found one")
}

/// Exit code, standard output and standard error of the program.
fn loadtest(line: &str) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).args(line.split(' ')).output();
    let output = output.expect("the program can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn assert_figures(result: &Value, figures: &[(&str, Value)]) {
    for (pointer, expected) in figures {
        assert_eq!(result.pointer(pointer), Some(expected), "{pointer} of {result:#}");
    }
}

#[track_caller]
fn assert_nothing_lost(result: &Value) {
    assert_figures(
        result,
        &[
            ("/lost", 0.into()),
            ("/duplicated", 0.into()),
            ("/out_of_order", 0.into()),
            ("/connections_lost", serde_json::json!({})),
            ("/problems", serde_json::json!([])),
        ],
    );
    assert_eq!(result["deliveries_received"], result["deliveries_expected"]);
}

/// The whole series of a result adds up to its totals.
#[track_caller]
fn assert_series_adds_up(result: &Value, deliveries: u64) {
    let points = result["series"].as_array().expect("a list");
    let sum = |name: &str| points.iter().map(|point| point[name].as_u64().expect("a count")).sum::<u64>();
    assert_eq!(sum("sent"), result["messages_sent"]);
    assert_eq!(sum("delivered"), deliveries);
    assert!(points.iter().all(|point| point["server_resident_bytes"].as_u64() > Some(1_000_000)));
}

/// So many times somebody was to leave, and came back; each time so many were told, and nobody missed anything.
#[track_caller]
fn assert_churn(result: &Value, times: u64, told_each: u64) {
    let figure = |name: &str| result["churn"][name].as_u64().expect("a count");
    // On a machine that stalls, somebody may not be back when it is time to leave again.
    assert_eq!(figure("left") + figure("skipped"), times);
    assert_eq!((figure("back"), figure("lost")), (figure("left"), 0));
    assert_eq!(figure("presence_expected"), figure("left") * told_each);
    assert_eq!(figure("presence_received"), figure("presence_expected"));
}

#[test]
fn a_game_night_of_ten_rooms_loses_nothing_and_tells_of_everyone() {
    let result = Server::start()
        .run("game-night --connections 50 --duration 1 --warmup 0.5 --settle-ms 20000 --churn-rate 10");
    assert_nothing_lost(&result);
    // Every room sends 10 to 20 messages a second for a second and a half, to three others who stay.
    let rate = result["rate"].as_f64().expect("a rate");
    assert!((100.0..=200.0).contains(&rate), "{rate}");
    let sent = result["messages_sent"].as_u64().expect("a count");
    assert!(sent.abs_diff((rate * 1.5).round() as u64) <= 1, "{sent} at {rate} per second");
    assert_eq!(result["deliveries_received"], sent * 3);
    // The fifth of a room comes and goes, and the four others hear of each leave and each return.
    assert_churn(&result, 15, 8);
    let to_guests = result["churn"]["deliveries_received"].as_u64().expect("a count");
    assert!((1..=sent).contains(&to_guests), "{to_guests} of {sent}");
    assert_series_adds_up(&result, sent * 3 + to_guests);
}

#[test]
fn members_who_stay_miss_nothing_while_others_come_and_go() {
    let result = Server::start().run(
        "churn --connections 40 --room-size 10 --rate 100 --churn-rate 20 --duration 1 --warmup 0 --settle-ms 20000",
    );
    assert_nothing_lost(&result);
    assert_figures(
        &result,
        &[
            ("/messages_sent", 100.into()),
            // Five of ten stay, so that each message is for four of them.
            ("/deliveries_received", 400.into()),
        ],
    );
    assert_churn(&result, 20, 10);
}

#[test]
fn after_a_storm_everyone_is_back_and_has_what_was_missed() {
    let result = Server::start().run("storm --connections 200 --room-size 20 --away 0.1 --missed 2");
    assert_nothing_lost(&result);
    assert_figures(
        &result,
        &[
            ("/connections_ready", 200.into()),
            ("/dropped", 190.into()),
            ("/back", 190.into()),
            ("/not_back", 0.into()),
            ("/refused", serde_json::json!({})),
            ("/recovered", serde_json::json!({"recovered": 190})),
            ("/recovered_messages", 380.into()),
            // Twice two of each room's first member; those of the second time are heard live.
            ("/messages_sent", 40.into()),
            ("/deliveries_received", 760.into()),
        ],
    );
}

#[test]
fn a_storm_in_which_nobody_gets_in_says_why() {
    let server = Server::start();
    for (port, path, why) in [(free_port(), "/ws", "cannot connect"), (server.port, "/none", "HTTP 404")] {
        let url = format!("ws://127.0.0.1:{port}{path}");
        let (code, _, said) =
            loadtest(&format!("storm --connections 5 --room-size 5 --within 0.5 --url {url}"));
        assert_eq!(code, Some(2));
        assert!(said.contains("no connection became ready") && said.contains(why), "{said}");
    }
}

#[test]
fn a_sweep_ends_at_the_last_rate_and_its_result_compares_with_itself() {
    let server = Server::start();
    let result = server.run(
        "sweep --connections 20 --room-size 10 --first-rate 50 --last-rate 100 --p99-ms 60000 --duration 0.5 \
         --warmup 0 --attempts 9",
    );
    let directory = std::env::temp_dir().join(format!("loadtest-scenarios-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory can be made");
    let (before, after) = (directory.join("before.json"), directory.join("after.json"));
    let page = directory.join("page.html");
    std::fs::write(&before, result.to_string()).expect("the result can be written");
    let mut worse = result.clone();
    worse["highest_rate"] = 50.0.into();
    std::fs::write(&after, worse.to_string()).expect("the result can be written");
    let compare = |one: &PathBuf, other: &PathBuf| {
        loadtest(&format!("compare {} {} --html {}", one.display(), other.display(), page.display()))
    };
    let (same, worse) = (compare(&before, &before), compare(&before, &after));
    let text = std::fs::read_to_string(&page).expect("the page was written");
    std::fs::remove_dir_all(&directory).expect("the directory can be removed");

    assert_figures(&result, &[("/highest_rate", 100.0.into()), ("/passed", true.into())]);
    let steps = result["steps"].as_array().expect("a list");
    assert!(steps.iter().any(|step| step["rate"] == 50.0) && steps.iter().all(|step| step["lost"] == 0));
    assert_eq!(same.0, Some(0), "{}", same.2);
    assert_eq!(worse.0, Some(1));
    assert!(worse.2.contains("FAILED: highest rate, messages/s: 100 → 50 (-50.0 %)"), "{}", worse.2);
    assert!(text.contains("highest rate") && !text.contains("<script"));
}
