//! The program as a person meets it: flags, environment, file, messages and exit codes.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use tableforge::command::authorize::TokenVerifier;
use tableforge::config::Settings;
use tableforge::permission::RoomRight;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Settings that stop the start right after they were read and before anything runs: what they do
/// not refuse ends at the preflight, at an address that no machine has (RFC 5737).
const NOWHERE: [&str; 2] = ["--ws-host", "192.0.2.1"];

fn run(args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tableforge"))
        .args(args)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("the program starts")
}

/// The one line that a refused start prints, and that it exits with `code`.
fn refusal(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("tableforge: "), "{text}");
    assert!(output.stdout.is_empty());
    text
}

struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tableforge-{}-{name}.toml", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_wrong_value_is_refused_with_name_value_source_and_what_is_allowed() {
    let file = File::new("wrong", "ws-port = \"abc\"\n");
    for (args, environment, source) in [
        (vec!["serve", "--ws-port", "abc"], vec![], "from --ws-port"),
        (vec!["serve"], vec![("WS_PORT", "abc")], "from the environment"),
        (vec!["serve", "--config", file.path()], vec![], file.path()),
        (vec!["dev", "--ws-port", "abc"], vec![], "from --ws-port"),
    ] {
        let text = refusal(&run(&args, &environment), 2);
        for part in
            ["WS_PORT: \"abc\"", source, "is not a port; allowed: 1 to 65535 (0 lets the system choose)"]
        {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn flag_goes_before_environment_and_environment_before_file() {
    let file = File::new("precedence", "shards = 101\nflush_budget_ms = 8\n");
    let config = ["serve", "--config", file.path()];
    let text = refusal(&run(&config, &[]), 2);
    assert!(text.contains("\"101\" from the file"), "{text}");
    let text = refusal(&run(&config, &[("SHARDS", "102")]), 2);
    assert!(text.contains("\"102\" from the environment"), "{text}");
    let text = refusal(&run(&[&config[..], &["--shards", "103"]].concat(), &[("SHARDS", "102")]), 2);
    assert!(text.contains("\"103\" from --shards"), "{text}");
    let text = refusal(&run(&config, &[("SHARDS", "")]), 2);
    assert!(text.contains("\"101\" from the file"), "empty means not set: {text}");
}

#[test]
fn an_unknown_key_in_the_file_is_refused_with_the_nearest_one() {
    let file = File::new("unknown", "redis-hots = \"localhost\"\n");
    let text = refusal(&run(&["serve", "--config", file.path()], &[]), 2);
    assert!(text.contains("\"redis-hots\"") && text.contains("\"redis_host\""), "{text}");
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let text = refusal(&run(&["serve", "--config", "/nonexistent/tableforge.toml"], &[]), 2);
    assert!(text.contains("/nonexistent/tableforge.toml"), "{text}");
    let file = File::new("broken", "shards = 1\nws-port = = 1\n");
    let text = refusal(&run(&["serve", "--config", file.path()], &[]), 2);
    assert!(text.contains(file.path()) && text.contains("line 2"), "{text}");
}

#[test]
fn without_a_secret_serve_names_both_ways_out_and_takes_either() {
    let text = refusal(&run(&["serve"], &[]), 2);
    assert!(text.contains("JWT_SECRET") && text.contains("AUTH_REQUIRED=false"), "{text}");
    for setting in [("JWT_SECRET", SECRET), ("AUTH_REQUIRED", "false")] {
        let text = refusal(&run(&[&["serve"][..], &NOWHERE].concat(), &[setting]), 1);
        assert!(text.contains("192.0.2.1"), "{text}");
    }
}

#[test]
fn a_short_secret_is_refused_with_the_reason_and_not_shown() {
    for (args, environment) in [
        (vec!["serve"], vec![("JWT_SECRET", "hunter2hunter2")]),
        (vec!["serve", "--jwt-secret", "hunter2hunter2", "--auth-required", "false"], vec![]),
        (vec!["token", "--sub", "alice"], vec![("JWT_SECRET", "hunter2hunter2")]),
    ] {
        let text = refusal(&run(&args, &environment), 2);
        assert!(text.contains("JWT_SECRET") && text.contains("32 bytes"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_setting_that_is_not_implemented_is_refused_unless_it_asks_for_nothing() {
    for (name, value) in [("TLS_CERT_FILE", "/etc/cert.pem"), ("REDIS_CA_FILE", "ca.pem")] {
        let text = refusal(&run(&["serve"], &[("JWT_SECRET", SECRET), (name, value)]), 2);
        assert!(text.contains(name) && text.contains("not supported by this version"), "{text}");
    }
    let harmless = [("JWT_SECRET", SECRET), ("REDIS_TLS", "off")];
    refusal(&run(&[&["serve"][..], &NOWHERE].concat(), &harmless), 1);
}

#[test]
fn rules_for_messages_that_are_wrong_are_named_with_their_file() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("wrong-rules.toml");
    std::fs::write(&path, "[[rule]]\nmax_bytes = 1\n[[rule]]\nschema = { type = \"strin\" }\n").unwrap();
    let path = path.to_str().unwrap();
    let text = refusal(&run(&["serve"], &[("JWT_SECRET", SECRET), ("SCHEMAS_FILE", path)]), 2);
    assert!(text.contains(path) && text.contains("rule 2: schema/type"), "{text}");
    let text = refusal(&run(&["serve"], &[("JWT_SECRET", SECRET), ("SCHEMAS_FILE", "nowhere.toml")]), 2);
    assert!(text.contains("nowhere.toml: cannot read the message rules"), "{text}");
}

#[test]
fn dev_listens_on_loopback_only_and_takes_no_redis() {
    let text = refusal(&run(&["dev", "--ws-host", "0.0.0.0"], &[]), 2);
    assert!(text.contains("WS_HOST") && text.contains("loopback"), "{text}");
    let text = refusal(&run(&["dev", "--redis-host", "localhost"], &[]), 2);
    assert!(text.contains("--redis-host") && text.contains("tableforge serve"), "{text}");
}

#[test]
fn a_second_server_on_a_port_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let text = refusal(&run(&["dev"], &[("WS_PORT", &port), ("LOG_LEVEL", "off")]), 1);
    assert!(text.contains(&format!("port {port}")) && text.contains("--ws-port"), "{text}");
}

#[test]
fn too_little_locked_memory_is_refused() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -l 64 && exec \"$0\" dev --ws-port 0", env!("CARGO_BIN_EXE_tableforge")])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LOG_LEVEL", "off")
        .output()
        .unwrap();
    let text = refusal(&output, 1);
    assert!(text.contains("64 KiB") && text.contains("512 KiB"), "{text}");
}

#[test]
fn a_token_is_all_that_token_prints_and_the_server_takes_it() {
    let output = run(
        &[
            "token",
            "--sub",
            "alice",
            "--name",
            "Alice",
            "--ttl",
            "15m",
            "--permission",
            "broadcast",
            "--room",
            "table-*=join,publish",
            "--room",
            "lobby=join",
            "--jwt-issuer",
            "me",
        ],
        &[("JWT_SECRET", SECRET), ("JWT_AUDIENCE", "tables")],
    );
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let token = text.strip_suffix('\n').unwrap();
    let settings = Settings {
        jwt_secret: Some(SECRET.into()),
        jwt_issuer: Some("me".into()),
        jwt_audience: Some("tables".into()),
        ..Settings::for_tests()
    };
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let verifier = TokenVerifier::new(&settings).unwrap();
    let alice = verifier.verify(token, now).unwrap();
    assert_eq!((alice.user.as_str(), alice.name.as_deref()), ("alice", Some("Alice")));
    assert!(alice.may_broadcast() && !alice.is_admin());
    assert!(alice.may(RoomRight::Publish, "table-1") && !alice.may(RoomRight::Publish, "lobby"));
    assert!(verifier.verify(token, now + 14 * 60).is_ok() && verifier.verify(token, now + 16 * 60).is_err());
}

#[test]
fn token_refuses_what_the_server_would_refuse() {
    let secret = [("JWT_SECRET", SECRET)];
    assert_eq!(run(&["token", "--sub", "alice"], &[]).status.code(), Some(2), "no secret");
    refusal(&run(&["token", "--sub", ""], &secret), 2);
    refusal(&run(&["token", "--sub", "alice", "--name", &"x".repeat(257)], &secret), 2);
    for wrong in [
        ["--ttl", "0"],
        ["--ttl", "1w"],
        ["--room", "a*b=join"],
        ["--room", "a=fly"],
        ["--permission", "root"],
    ] {
        let output = run(&[&["token", "--sub", "alice"][..], &wrong].concat(), &secret);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(output.stdout.is_empty(), "{wrong:?}");
    }
}

#[test]
fn version_and_help_say_what_they_should() {
    let version = run(&["--version"], &[]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        format!("tableforge {}\n", env!("CARGO_PKG_VERSION"))
    );
    let secret = [("JWT_SECRET", SECRET)];
    let serve = String::from_utf8(run(&["serve", "--help"], &secret).stdout).unwrap();
    assert!(serve.contains("--redis-host") && serve.contains("[default: 3001]"), "{serve}");
    assert!(!serve.contains(SECRET), "a secret from the environment is shown");
    let dev = String::from_utf8(run(&["dev", "--help"], &[]).stdout).unwrap();
    assert!(dev.contains("--ws-port") && !dev.contains("--redis-host"), "{dev}");
}
