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
fn an_unknown_key_in_the_file_is_refused_with_the_one_that_it_is_like() {
    for (key, setting) in [("redis-hots", "redis_host"), ("JWT_ISSUR", "jwt_issuer"), ("shard", "shards")] {
        let file = File::new("unknown", &format!("{key} = \"x\"\n"));
        let text = refusal(&run(&["serve", "--config", file.path()], &[]), 2);
        assert!(text.contains(&format!("{key:?} is not a setting; did you mean {setting:?}?")), "{text}");
    }
    for key in ["volume", "colour", "tables", "x", "worker_threads"] {
        let file = File::new("unlike", &format!("{key} = 1\n"));
        let text = refusal(&run(&["serve", "--config", file.path()], &[]), 2);
        assert!(text.contains(key) && text.contains("tableforge serve --help"), "{text}");
        assert!(!text.contains("did you mean"), "{text}");
    }
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

#[test]
fn completions_know_the_commands_and_settings_in_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell], &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("redis-host") && text.contains("serve"), "{shell}");
    }
    let output = run(&["completions", "powerhell"], &[]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn bash_takes_the_completions_and_completes_a_flag() {
    let script = run(&["completions", "bash"], &[]).stdout;
    let ask = "COMP_WORDS=(tableforge serve --redis-ho); COMP_CWORD=2; \
               _tableforge tableforge --redis-ho serve; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let text = [&script[..], ask.as_bytes()].concat();
    let output = Command::new("bash").arg("-c").arg(String::from_utf8(text).unwrap()).output().unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert_eq!(answer.trim(), "--redis-host", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_man_page_has_every_command_and_setting() {
    let output = run(&["man"], &[]);
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && page.contains(".TH"), "{page}");
    for command in ["SERVE", "DEV", "TOKEN", "ADMIN", "ADMIN BAN", "DOCTOR", "COMPLETIONS", "MAN"] {
        assert!(page.contains(&format!(".SH \"TABLEFORGE {command}\"")), "{command}");
    }
    assert!(!page.contains("SUBCOMMANDS"), "that section refers to pages that are not made: {page}");
    for setting in tableforge::config::catalog::settings() {
        let flag = setting.flag().replace('-', "\\-");
        assert!(page.contains(&flag), "{flag}");
    }
}

#[test]
fn the_doctor_says_what_the_machine_carries() {
    let given =
        [("AUTH_REQUIRED", "false"), ("WS_HOST", "127.0.0.1"), ("WS_PORT", "0"), ("WS_MAX_CONNECTIONS", "7")];
    let output = run(&["doctor", "--json"], &given);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &said["ok"]), (Some(0), &true.into()), "{said}");
    assert_eq!(said["carries"]["connections"], 7, "the setting is the least here");
    assert_eq!(
        said["carries"]["bytesPerConnection"],
        6 * 1024,
        "1 KiB of the server and 5 of the kernel: {said}"
    );
    assert!(
        said["carries"]["byMemory"].as_u64().unwrap() > 1000 && said["carries"]["byDescriptors"].is_u64()
    );
    let names: Vec<_> =
        said["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["settings", "kernel", "locked memory", "io_uring", "CPUs", "descriptors", "port"]);
    let text = String::from_utf8(run(&["doctor"], &given).stdout).unwrap();
    assert!(
        text.contains("carries 7 idle connections") && text.contains("The server can run here."),
        "{text}"
    );
}

#[test]
fn the_doctor_says_of_a_wrong_setting_what_the_start_says_and_looks_at_the_rest() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rest =
        format!("ws_port = 0\nws_max_connections = 7\nredis_host = \"127.0.0.1\"\nredis_port = {unused}\n");
    let file = File::new("doctor", &format!("auth_required = false\nshards = 101\n{rest}"));
    let start = refusal(&run(&["serve", "--config", file.path()], &[]), 2);
    let output = run(&["doctor", "--json", "--config", file.path()], &[]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &said["ok"]), (Some(1), &false.into()), "{said}");
    let failed: Vec<_> =
        said["checks"].as_array().unwrap().iter().filter(|check| check["verdict"] == "failed").collect();
    assert_eq!(
        (failed.len(), &failed[0]["name"], &failed[1]["name"]),
        (2, &"settings".into(), &"redis".into())
    );
    assert_eq!(format!("tableforge: {}\n", failed[0]["text"].as_str().unwrap()), start);
    assert!(failed[1]["text"].as_str().unwrap().contains(&format!("127.0.0.1:{unused}")), "{said}");
    assert_eq!(said["carries"]["bySetting"], 7, "what is right in the file is used");
    assert_eq!(said["checks"].as_array().unwrap().len(), 8, "every other look is made: {said}");
}

#[test]
fn the_doctor_names_an_unknown_key_and_looks_at_the_rest() {
    let file = File::new("doctor-key", "redis-hots = \"localhost\"\n");
    let start = refusal(&run(&["serve", "--config", file.path()], &[]), 2);
    let output = run(&["doctor", "--config", file.path()], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let row = format!("FAILED  settings       {}", start.strip_prefix("tableforge: ").unwrap());
    assert!(output.status.code() == Some(1) && text.starts_with(&row), "{text}");
    assert!(text.contains("\nok      kernel") && text.contains("idle connections"), "{text}");
}

#[test]
fn the_doctor_fails_for_what_would_stop_the_server() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let open = ("AUTH_REQUIRED", "false");
    for (given, name) in [
        (vec![], "settings"),
        (vec![open, ("WS_HOST", "192.0.2.1")], "port"),
        (vec![open, ("WS_PORT", "0"), ("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &port)], "redis"),
        (vec![open, ("WS_PORT", "0"), ("TABLEFORGE_SHARD_CPUS", "none")], "tuning"),
    ] {
        let output = run(&["doctor", "--json"], &given);
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        let failed = said["checks"].as_array().unwrap().iter().filter(|check| check["verdict"] == "failed");
        assert_eq!(failed.map(|check| check["name"].as_str().unwrap()).collect::<Vec<_>>(), [name]);
    }
}
