//! The settings: every one by its definition, together, and as documented.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tableforge::config::catalog::settings;
use tableforge::config::reload::{Change, LIVE, compare};
use tableforge::config::setting::{Group, Kind, SettingError, Source};
use tableforge::config::sources::{Given, parse_file};
use tableforge::config::{Checked, LogFormat, Mode, Settings};
use tableforge::limits;

const SECRET: (&str, &str) = ("JWT_SECRET", "0123456789abcdef0123456789abcdef");

fn load(mode: Mode, values: &[(&str, &str)]) -> Result<Checked, SettingError> {
    let given: Vec<_> =
        values.iter().map(|(name, value)| Given::new(name, value, Source::Environment)).collect();
    Settings::from_given(mode, &given)
}

fn serve(values: &[(&str, &str)]) -> Result<Settings, SettingError> {
    load(Mode::Serve, &[&[SECRET], values].concat()).map(|checked| checked.settings)
}

fn refusal(values: &[(&str, &str)]) -> String {
    let text = serve(values).expect_err("must be refused").to_string();
    assert!(!text.contains('\n') && !text.contains("  "), "not one tidy line: {text:?}");
    text
}

#[test]
fn the_defaults_of_serve_are_those_of_the_contract() {
    let settings = serve(&[]).unwrap();
    assert_eq!(settings.ws_host, "0.0.0.0".parse::<IpAddr>().unwrap());
    assert_eq!((settings.ws_port, settings.flush_budget), (3001, Duration::from_millis(8)));
    assert_eq!((settings.max_message_bytes, settings.max_rooms_per_connection), (65536, 128));
    assert_eq!((settings.message_rate, settings.message_burst), (100, 200));
    assert_eq!((settings.outbox_bytes, settings.outbox_age), (1 << 20, Duration::from_secs(10)));
    assert_eq!(settings.ping_interval + settings.pong_timeout, Duration::from_secs(33));
    assert!((1..=limits::SHARDS).contains(&settings.shards));
    assert!(settings.auth_required && !settings.console && settings.redis.is_none());
    assert_eq!(settings.log_format, LogFormat::Json);
}

#[test]
fn connections_per_address_spare_loopback_until_somebody_sets_them() {
    let limits = |mode, values: &[(&str, &str)]| {
        let limits = load(mode, &[&[SECRET], values].concat()).unwrap().settings.limits;
        (limits.max_connections_per_address, limits.spare_loopback, limits.max_connections_per_user)
    };
    assert_eq!(limits(Mode::Serve, &[]), (100, true, 20));
    assert_eq!(limits(Mode::Dev, &[]), (0, true, 20));
    let set = [("MAX_CONNECTIONS_PER_ADDRESS", "7"), ("MAX_CONNECTIONS_PER_USER", "0")];
    assert_eq!(limits(Mode::Serve, &set), (7, false, 0));
}

#[test]
fn dev_is_alone_on_loopback_for_everyone_and_says_what_it_ignores() {
    let given = [("REDIS_HOST", "redis.example"), ("AUTH_REQUIRED", "true"), ("WS_PORT", "4000")];
    let Checked { settings, notes } = load(Mode::Dev, &given).unwrap();
    assert!(settings.ws_host.is_loopback() && !settings.auth_required && settings.console);
    assert!(settings.redis.is_none());
    assert_eq!(settings.ws_port, 4000);
    assert_eq!(notes, ["tableforge dev ignores AUTH_REQUIRED", "tableforge dev ignores REDIS_HOST"]);
}

#[test]
fn instance_ids_are_made_up_anew() {
    let (one, other) = (serve(&[]).unwrap().instance_id, serve(&[]).unwrap().instance_id);
    assert_ne!(one, other);
    assert_eq!(serve(&[("INSTANCE_ID", "node-1")]).unwrap().instance_id.as_str(), "node-1");
}

#[test]
fn redis_is_used_if_it_has_a_host() {
    let redis = serve(&[("REDIS_HOST", "::1"), ("PUBLISH_BATCH_AGE_US", "700")]).unwrap().redis.unwrap();
    assert_eq!((&*redis.host, redis.port, &*redis.prefix), ("::1", 6379, "tableforge:"));
    assert_eq!(redis.batch_age, Duration::from_micros(700));
    let alone = load(Mode::Serve, &[SECRET, ("REDIS_PORT", "6380")]).unwrap();
    assert!(alone.settings.redis.is_none());
    assert!(alone.notes[0].contains("REDIS_PORT"), "{:?}", alone.notes);
}

#[test]
fn heartbeats_follow_a_short_threshold() {
    let intervals = |values: &[(&str, &str)]| {
        let redis = serve(&[&[("REDIS_HOST", "localhost")], values].concat()).unwrap().redis.unwrap();
        (redis.heartbeat_interval.as_millis(), redis.cleanup_interval.as_millis())
    };
    assert_eq!(intervals(&[]), (5000, 5000));
    assert_eq!(intervals(&[("INACTIVE_THRESHOLD", "3000")]), (1000, 1000));
    assert_eq!(intervals(&[("INACTIVE_THRESHOLD", "60000")]), (5000, 5000));
    assert_eq!(intervals(&[("INACTIVE_THRESHOLD", "3000"), ("HEARTBEAT_INTERVAL", "1500")]), (1500, 1000));
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    for (values, word) in [
        (&[("INACTIVE_THRESHOLD", "3000"), ("HEARTBEAT_INTERVAL", "1501")][..], "at most 1500"),
        (&[("INACTIVE_THRESHOLD", "3000"), ("CLEANUP_INTERVAL", "3001")], "at most 3000"),
        (&[("MAX_MESSAGE_BYTES", "1048576")], "2097152 or more"),
        (&[("REDIS_USERNAME", "tables")], "REDIS_PASSWORD"),
        (&[("PROXY_PROTOCOL", "true")], "TRUSTED_PROXIES"),
        (&[("TLS_CERT_FILE", "cert.pem")], "set both or neither"),
        (&[("TLS_KEY_FILE", "key.pem")], "set both or neither"),
        (&[("REDIS_CA_FILE", "ca.pem")], "REDIS_TLS"),
        (&[("REDIS_TLS", "true"), ("REDIS_KEY_FILE", "key.pem")], "set both or neither"),
    ] {
        let text = refusal(values);
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn text_of_a_wrong_form_is_refused() {
    for (name, wrong) in [
        ("WS_HOST", "localhost"),
        ("INSTANCE_ID", "node 1"),
        ("AUTH_REQUIRED", "maybe"),
        ("DEFAULT_ROOM_PERMISSIONS", "join,fly"),
        ("ALLOWED_ORIGINS", "https://example.org/path"),
        ("ALLOWED_ORIGINS", "null"),
        ("ALLOWED_ORIGINS", "https://good.example,"),
        ("REDIS_HOST", "redis://localhost"),
        ("REDIS_HOST", "localhost:6379"),
        ("REDIS_PREFIX", "two words:"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "proxy.example"),
        ("LOG_LEVEL", "inof"),
        ("LOG_LEVEL", "info,tableforge=loud"),
        ("LOG_FORMAT", "xml"),
        ("WS_PORT", "-1"),
        ("WS_PORT", "3001\nSHARDS=1"),
    ] {
        let text = refusal(&[(name, wrong)]);
        assert!(text.starts_with(&format!("{name}: ")) && text.contains("allowed: "), "{text}");
    }
}

#[test]
fn lists_and_switches_take_the_usual_spellings() {
    let origins = "https://Play.Example.org, http://localhost:8080";
    let settings =
        serve(&[("ALLOWED_ORIGINS", origins), ("AUTH_REQUIRED", "Yes"), ("CONSOLE", "1")]).unwrap();
    assert_eq!(settings.allowed_origins, ["https://play.example.org", "http://localhost:8080"]);
    assert!(settings.auth_required && settings.console);
}

#[test]
fn numbers_are_taken_at_the_ends_of_their_range_and_refused_beyond() {
    for setting in settings() {
        let (min, max, zero) = match setting.kind {
            Kind::Number { min, max, zero, .. } => (min, max, zero.is_some()),
            Kind::Time { min, max, .. } => (min, max, false),
            _ => continue,
        };
        // The largest outbox goes with every message size, the longest threshold with every interval.
        let roomy = [("OUTBOX_BYTES", "1073741824"), ("INACTIVE_THRESHOLD", "3600000")];
        let with = |n: u64| {
            let value = n.to_string();
            let rest = roomy.into_iter().filter(|(name, _)| *name != setting.name);
            let mut values: Vec<(&str, &str)> = rest.collect();
            values.extend([(setting.name, &*value), ("MAX_MESSAGE_BYTES", "1024")]);
            if setting.name == "MAX_MESSAGE_BYTES" {
                values.pop();
            }
            serve(&values).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!((with(min), with(max)), (Ok(()), Ok(())), "{}", setting.name);
        let name = setting.name;
        assert!(with(max + 1).unwrap_err().contains("is out of range"), "{name}");
        if min > 0 {
            assert_eq!(with(0).is_ok(), zero, "{name}");
        }
    }
}

#[test]
fn every_setting_is_a_key_of_the_file_in_both_spellings() {
    for setting in settings() {
        for key in [setting.key(), setting.flag()] {
            let given = parse_file(Path::new("x.toml"), &format!("{key} = 1")).unwrap();
            assert_eq!(given[0].setting.name, setting.name);
        }
    }
    let error = |text| parse_file(Path::new("x.toml"), text).err().unwrap().to_string();
    assert!(error("ws_port = 1\nws-port = 2").contains("twice"));
    assert!(error("ws_port = 1.5").contains("ws_port"));
    assert!(error("[server]\nws_port = 1").contains("server"));
}

#[test]
fn a_list_in_the_file_is_a_list() {
    let given =
        parse_file(Path::new("x.toml"), "allowed_origins = [\"https://a.example\", \"https://b.example\"]");
    assert_eq!(given.unwrap()[0].value, "https://a.example,https://b.example");
}

#[test]
fn names_are_unique_and_debug_shows_no_secret() {
    let mut names: Vec<_> = settings().map(|setting| setting.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), settings().count());
    let settings = serve(&[("REDIS_HOST", "localhost"), ("REDIS_PASSWORD", "hunter2")]).unwrap();
    let shown = format!("{settings:?} {:?}", settings.redis);
    assert!(!shown.contains("hunter2") && !shown.contains(SECRET.1), "{shown}");
}

/// The tables of docs/operations.md, made from the definitions.
fn tables() -> String {
    let mut out = String::new();
    for group in Group::ALL {
        out += &format!("\n### {}\n\n", group.heading());
        out += "| name | unit | default | allowed | meaning |\n|---|---|---|---|---|\n";
        for setting in settings().filter(|setting| setting.group == group) {
            let (name, unit, allowed, prose) =
                (setting.name, setting.unit(), setting.allowed(), setting.prose);
            out += &format!("| `{name}` | {unit} | {} | {allowed} | {prose} |\n", setting.default);
        }
    }
    out
}

#[test]
fn the_documentation_lists_every_setting_as_it_is() {
    let docs = include_str!("../docs/operations.md");
    let (begin, end) = ("<!-- settings: begin -->\n", "<!-- settings: end -->");
    let documented =
        docs.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(table, _)| table);
    let made = format!("{}\n", tables());
    assert!(documented == Some(&made), "put this between the marks in docs/operations.md:\n{made}");
}

#[test]
fn the_documentation_lists_what_changes_without_a_restart() {
    let docs = include_str!("../docs/operations.md");
    let (begin, end) = ("<!-- live settings: begin -->\n", "<!-- live settings: end -->");
    let listed = docs.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).expect("the marks").0;
    let listed: Vec<_> = listed.split('`').skip(1).step_by(2).collect();
    assert_eq!(listed, LIVE);
    for name in LIVE {
        assert!(settings().any(|setting| setting.name == name), "{name} is no setting");
    }
}

fn reread(before: &[(&str, &str)], new: &[(&str, &str)]) -> Result<Change, SettingError> {
    let given = |values: &[(&str, &str)]| -> Vec<_> {
        let all = [&[SECRET], values].concat();
        all.iter().map(|(name, value)| Given::new(name, value, Source::Environment)).collect()
    };
    compare(Mode::Serve, &given(before), &given(new))
}

#[test]
fn only_live_settings_change_and_the_others_are_named() {
    let change = reread(
        &[("MESSAGE_RATE", "5"), ("SHARDS", "2")],
        &[("MESSAGE_RATE", "6"), ("SHARDS", "3"), ("WS_PORT", "3001"), ("API_KEY", "k")],
    )
    .unwrap();
    assert_eq!((change.settings.message_rate, change.settings.shards), (6, 2));
    assert_eq!(change.changed, ["MESSAGE_RATE: 5 -> 6", "API_KEY: none -> (hidden)"]);
    assert_eq!(change.waiting, ["SHARDS"], "3001 is the default");
    assert!(reread(&[], &[("SHARDS", "0")]).is_err(), "wrong, even though it would have to wait");
    let tls = [("TLS_CERT_FILE", "a"), ("TLS_KEY_FILE", "b")];
    assert_eq!(reread(&[], &tls).unwrap().waiting, ["TLS_CERT_FILE", "TLS_KEY_FILE"]);
    let other = [("TLS_CERT_FILE", "c"), ("TLS_KEY_FILE", "b")];
    assert_eq!(reread(&tls, &other).unwrap().changed, ["TLS_CERT_FILE: a -> c"]);
}

#[test]
fn an_outbox_grows_at_once_and_shrinks_at_the_next_start() {
    let new = [("OUTBOX_BYTES", "4194304"), ("MAX_MESSAGE_BYTES", "1048576")];
    let change = reread(&[], &new).unwrap();
    assert_eq!((change.settings.outbox_bytes, change.settings.max_message_bytes), (4 << 20, 1 << 20));
    let change = reread(&new, &[]).unwrap();
    assert_eq!((change.settings.outbox_bytes, change.settings.max_message_bytes), (4 << 20, 65_536));
    assert_eq!(change.waiting, ["OUTBOX_BYTES"]);
}
