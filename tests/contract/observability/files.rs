//! The documentation, the dashboard and the alerts name what a running server exposes, and nothing else.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::complete;
use crate::harness::http;
use crate::harness::redis::RedisServer;

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

/// The names of the metrics, without the endings of a histogram's samples.
fn exposed(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().expect("a name").to_owned()).collect()
}

/// All that looks like one of this server's metrics.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !word(c)).filter(|name| {
        name.strip_prefix("tableforge_")
            .or_else(|| name.strip_prefix("process_"))
            .is_some_and(|rest| !rest.is_empty())
    });
    words.map(str::to_owned).collect()
}

/// Names that stand for no metric of `exposed`.
fn unknown<'a>(named: &'a BTreeSet<String>, exposed: &BTreeSet<String>) -> Vec<&'a str> {
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).map(str::to_owned)
    };
    let known = |name: &str| exposed.contains(name) || base(name).is_some_and(|name| exposed.contains(&name));
    named.iter().map(String::as_str).filter(|name| !known(name)).collect()
}

#[test]
fn documentation_dashboard_and_alerts_name_what_the_server_exposes() {
    let redis = RedisServer::start();
    let server = complete(&redis);
    let text = http::get(server.port, "/metrics").body;
    let exposed = exposed(&text);

    let page = read("docs/observability.md");
    let rows =
        page.lines().filter(|line| line.starts_with("| `tableforge_") || line.starts_with("| `process_"));
    let documented: BTreeSet<_> = rows.map(|row| row.split('`').nth(1).expect("a name").to_owned()).collect();
    let missing: Vec<_> = exposed.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&exposed).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not documented: {missing:?}; not exposed: {gone:?}");
    assert_eq!(unknown(&named(&page), &exposed), [""; 0], "in docs/observability.md");

    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/tableforge.json")).expect("JSON");
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            assert!(expression.contains("instance_id=~\"$instance\""), "{expression}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{expression}");
            expressions.push(expression.to_owned());
        }
    }
    assert!(expressions.len() > 40, "{} expressions", expressions.len());
    assert_eq!(unknown(&named(&expressions.join("\n")), &exposed), [""; 0], "in the dashboard");
    let variables: Vec<_> = dashboard["templating"]["list"]
        .as_array()
        .expect("variables")
        .iter()
        .map(|variable| variable["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(variables, ["datasource", "instance"]);

    for file in ["deploy/prometheus/tableforge.rules.yml", "deploy/prometheus/tableforge.test.yml"] {
        assert_eq!(unknown(&named(&read(file)), &exposed), [""; 0], "in {file}");
    }
}

#[test]
fn every_alert_says_what_to_do() {
    let rules: Value = serde_saphyr::from_str(&read("deploy/prometheus/tableforge.rules.yml")).expect("YAML");
    let page = read("docs/observability.md");
    let alerts = rules["groups"][0]["rules"].as_array().expect("rules");
    assert!(alerts.len() > 10);
    for alert in alerts {
        let name = alert["alert"].as_str().expect("a name");
        assert!(
            ["page", "ticket"].contains(&alert["labels"]["severity"].as_str().expect("a severity")),
            "{name}"
        );
        for annotation in ["summary", "description"] {
            assert!(alert["annotations"][annotation].as_str().is_some_and(|text| text.len() > 20), "{name}");
        }
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/observability.md");
    }
}

/// Runs promtool in deploy/prometheus/; whether it succeeded, and what it said.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut promtool = Command::new("promtool")
        .args(arguments)
        .current_dir(path("deploy/prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs: Debian has it in the package prometheus");
    let mut stdin = promtool.stdin.take().expect("stdin is piped");
    // It may end without reading what it does not need.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn promtool_takes_rules_their_tests_and_the_configuration() {
    for arguments in [
        ["check", "rules", "tableforge.rules.yml"],
        ["test", "rules", "tableforge.test.yml"],
        ["check", "config", "prometheus.yml"],
    ] {
        let (good, said) = promtool(&arguments, "");
        assert!(good, "{arguments:?}: {said}");
    }
}

#[test]
fn promtool_takes_the_metrics_but_for_the_two_names_of_the_contract() {
    let redis = RedisServer::start();
    let server = complete(&redis);
    let text = http::get(server.port, "/metrics").body;
    let (_, said) = promtool(&["check", "metrics"], &text);
    let contract = ["tableforge_websocket_connections_total", "tableforge_websocket_rooms_total"]
        .map(|name| format!("{name} "));
    let others: Vec<_> =
        said.lines().filter(|line| !contract.iter().any(|name| line.starts_with(name.as_str()))).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(said.lines().count() >= 2, "it has looked: {said}");
}
