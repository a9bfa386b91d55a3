//! The files in deploy/: what cannot run in a test is parsed and held against the server, what can is run.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tableforge::config::catalog;
use tableforge::config::reload::LIVE;
use tableforge::config::setting::Source;
use tableforge::config::sources::{Given, parse_file};
use tableforge::config::{Mode, Settings};

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

/// The YAML documents of a file.
fn yaml(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

/// The value of `key` in the systemd unit, in seconds or as it stands.
fn unit(key: &str) -> Vec<String> {
    let text = read("systemd/tableforge.service");
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

fn default_seconds(name: &str) -> u64 {
    catalog::find(name).unwrap().default.to_string().parse::<u64>().unwrap() / 1000
}

#[test]
fn the_unit_gives_a_drain_its_time_and_io_uring_its_calls() {
    let seconds = |key| unit(key)[0].parse::<u64>().unwrap();
    assert_eq!(unit("Type"), ["notify"]);
    assert!(seconds("TimeoutStopSec") > default_seconds("DRAIN_TIMEOUT"));
    assert!(seconds("WatchdogSec") >= 10, "a busy machine is no stall");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(unit("SystemCallFilter")[0].contains(call));
    }
    assert!(unit("LimitMEMLOCK").len() == 1 && unit("LimitNOFILE").len() == 1);
    assert_eq!(unit("RestartPreventExitStatus"), ["2"]);
}

#[test]
fn the_settings_file_of_the_package_is_one_with_and_without_its_examples() {
    let text = read("debian/tableforge.toml");
    let examples =
        text.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' '));
    for text in [text.clone(), examples.collect::<Vec<_>>().join("\n")] {
        let given = parse_file(Path::new("tableforge.toml"), &text).unwrap_or_else(|why| panic!("{why}"));
        assert!(given.iter().all(|given| LIVE.contains(&given.setting.name)));
    }
    assert!(unit("ExecStart")[0].ends_with("--config /etc/tableforge/tableforge.toml"));
}

#[test]
fn systemd_takes_the_unit() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("unit-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let text =
        read("systemd/tableforge.service").replace("/usr/bin/tableforge", env!("CARGO_BIN_EXE_tableforge"));
    let text = text.replace("man:tableforge(1)", "https://example.org/");
    let file = directory.join("tableforge.service");
    std::fs::write(&file, text).unwrap();
    std::fs::copy(path("systemd/tableforge.slice"), directory.join("tableforge.slice")).unwrap();
    let output =
        Command::new("systemd-analyze").arg("verify").arg(&file).output().expect("systemd-analyze runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<_> = said.lines().filter(|line| line.contains("tableforge.")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn compose_starts_three_instances_that_drain_and_may_use_io_uring() {
    let compose = &yaml("docker/compose.yaml")[0];
    let services = compose["services"].as_object().unwrap();
    let instances: Vec<_> = services.iter().filter(|(name, _)| name.starts_with("tableforge-")).collect();
    assert_eq!(instances.len(), 3);
    for (name, service) in instances {
        assert_eq!(service["security_opt"][0], "seccomp=seccomp.json", "{name}");
        let grace = service["stop_grace_period"].as_str().unwrap().trim_end_matches('s');
        assert!(grace.parse::<u64>().unwrap() > default_seconds("DRAIN_TIMEOUT"), "{name}");
        for setting in service["environment"].as_object().unwrap().keys() {
            assert!(catalog::find(setting).is_some(), "{setting} is no setting");
        }
        assert!(read("docker/upstream.conf").contains(&format!("{name}:3001")), "nginx knows {name}");
    }
    for service in services.values() {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(!from.starts_with('.') || path("docker").join(from).exists(), "{from}");
        }
    }
}

#[test]
fn the_image_has_the_program_and_nothing_that_runs_as_root() {
    let text = read("docker/Dockerfile");
    let stages = text.lines().filter(|line| line.starts_with("FROM ")).count();
    assert_eq!(stages, 2, "one to build, one to run");
    assert!(text.contains("ENTRYPOINT [\"/usr/bin/tableforge\"]") && text.contains("USER 65534"));
}

#[test]
fn the_seccomp_profile_allows_io_uring_and_no_calls_of_administrators() {
    let profile: Value = serde_json::from_str(&read("docker/seccomp.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let allowed: Vec<_> = profile["syscalls"][0]["names"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert!(allowed.is_sorted());
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register", "execve", "exit_group"] {
        assert!(allowed.contains(&call), "{call}");
    }
    for call in ["mount", "ptrace", "bpf", "init_module", "reboot", "setns", "unshare"] {
        assert!(!allowed.contains(&call), "{call}");
    }
}

#[test]
fn kubernetes_asks_the_right_addresses_and_waits_for_the_drain() {
    let documents = yaml("kubernetes/tableforge.yaml");
    let kinds: Vec<_> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ConfigMap", "Deployment", "Service", "PodDisruptionBudget"]);
    let (configured, documents) = (&documents[0]["data"], &documents[1..]);
    let template = &documents[0]["spec"]["template"];
    let (pod, labels) = (&template["spec"], &template["metadata"]["labels"]);
    for selector in [
        &documents[0]["spec"]["selector"]["matchLabels"],
        &documents[1]["spec"]["selector"],
        &documents[2]["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    let container = &pod["containers"][0];
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/ready");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health");
    let command = &container["lifecycle"]["preStop"]["exec"]["command"];
    let before: u64 = command[1].as_str().unwrap().parse().unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > before + default_seconds("DRAIN_TIMEOUT"), "preStop and drain fit");
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(catalog::find(name).is_some(), "{name} is no setting");
        if let Some(key) = variable["valueFrom"]["configMapKeyRef"]["key"].as_str() {
            let value = configured[key].as_str().unwrap();
            let given = [("AUTH_REQUIRED", "false"), (name, value)]
                .map(|(name, value)| Given::new(name, value, Source::Environment));
            Settings::from_given(Mode::Serve, &given).unwrap();
        }
    }
    let trusted = configured["trusted-proxies"].as_str().unwrap();
    assert_eq!(trusted, "192.0.2.0/24", "before it is set, nobody is believed");
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "Localhost");
}

#[test]
fn redis_takes_its_configuration() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut redis = Command::new("redis-server")
        .arg(path("redis/redis.conf"))
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "no"])
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-server is installed");
    let mut lines = BufReader::new(redis.stdout.take().unwrap()).lines().map_while(Result::ok);
    let ready = lines.any(|line| line.to_lowercase().contains("ready to accept connections"));
    let asked = ready.then(|| {
        let mut connection = redis::Client::open(("127.0.0.1", port)).unwrap().get_connection().unwrap();
        ["maxmemory-policy", "client-output-buffer-limit", "maxmemory"].map(|name| {
            let command =
                redis::cmd("CONFIG").arg("GET").arg(name).query::<(String, String)>(&mut connection);
            command.expect("CONFIG GET answers").1
        })
    });
    redis.kill().unwrap();
    redis.wait().unwrap();
    let [policy, buffers, memory] = asked.expect("redis-server takes the file and starts");
    assert_eq!(policy, "noeviction");
    assert!(buffers.contains("pubsub 268435456 67108864 30"), "{buffers}");
    assert_eq!(memory, "2147483648");
}

#[test]
fn the_debian_package_names_files_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let package = &manifest["package"]["metadata"]["deb"];
    for asset in package["assets"].as_array().unwrap() {
        let from = asset[0].as_str().unwrap();
        if let Some((directory, ending)) = from.split_once('*') {
            let entries = std::fs::read_dir(root.join(directory)).unwrap();
            let fits = entries.flatten().any(|entry| entry.path().to_string_lossy().ends_with(ending));
            assert!(fits, "{from}");
        } else if let Some(made) = from.strip_prefix("target/package/") {
            assert!(read("debian/build").contains(&format!("> \"$made/{made}\"")), "nothing makes {from}");
        } else {
            assert!(from.starts_with("target/release/") || root.join(from).exists(), "{from}");
        }
    }
    assert!(path("systemd/tableforge.service").exists() && path("debian/environment").exists());
}
