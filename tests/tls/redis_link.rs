//! TLS between instances and Redis.

use std::process::Command;

use crate::authority::Authority;
use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::server::{Server, command};
use crate::harness::{eventually, free_port};

/// A Redis that speaks TLS only.
struct SecuredRedis {
    authority: Authority,
    port: u16,
    process: Process,
}

impl SecuredRedis {
    /// Starts one whose certificate names `host`; `clients` is what it wants of theirs.
    fn start(host: &str, clients: &str) -> Self {
        let authority = Authority::new();
        authority.issue("redis", host);
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--tls-port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "no", "--dir", env!("CARGO_TARGET_TMPDIR")]);
        command.args(["--tls-cert-file", &authority.path("redis.pem")]);
        command.args(["--tls-key-file", &authority.path("redis.key")]);
        command.args(["--tls-ca-cert-file", &authority.path("ca.pem"), "--tls-auth-clients", clients]);
        let process = Process::start("redis-server", &mut command);
        eventually("redis-server is ready", || process.output().contains("eady to accept").then_some(()));
        Self { authority, port, process }
    }

    fn settings(&self, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("REDIS_HOST", "127.0.0.1".to_owned()),
            ("REDIS_PORT", self.port.to_string()),
            ("REDIS_TLS", "true".to_owned()),
            ("REDIS_CA_FILE", self.authority.path("ca.pem")),
        ];
        settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        settings
    }

    #[track_caller]
    fn instance(&self, more: &[(&'static str, &str)]) -> Server {
        let settings = self.settings(more);
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let server = Server::start(&settings);
        eventually("the link to Redis is up", || {
            (server.get_json("/health")["status"] == "healthy").then_some(())
        });
        server
    }

    /// What a start says that must be refused.
    #[track_caller]
    fn refusal(&self, more: &[(&'static str, &str)]) -> String {
        let settings = self.settings(more);
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut process = Process::start("tableforge", &mut command("serve", free_port(), &settings));
        assert_eq!(process.wait().code(), Some(1), "{}", process.output());
        process.output()
    }
}

#[test]
fn instances_talk_over_it_and_come_back_to_it() {
    let redis = SecuredRedis::start("127.0.0.1", "no");
    let (one, other) = (redis.instance(&[]), redis.instance(&[]));
    let (mut ann, mut bob) = (Client::connect(&one), Client::connect(&other));
    ann.join("r");
    bob.join("r");
    // Larger than any record, so that records arrive in pieces.
    for bytes in [10, 60_000, 1_000] {
        let data = format!("{bytes} {}", "x".repeat(bytes));
        ann.say("r", data.as_str());
        bob.expect_said("r", data.as_str());
    }
    redis.process.signal(rustix::process::Signal::STOP);
    ann.expect_that("degraded", |event| event["status"] == "degraded");
    redis.process.signal(rustix::process::Signal::CONT);
    ann.expect_that("ok again", |event| event["status"] == "ok");
    bob.expect_that("ok again", |event| event["status"] == "ok");
    eventually("members reach each other again", || {
        ann.say("r", "again");
        bob.has_received("room_message").then_some(())
    });
}

#[test]
fn a_certificate_of_another_authority_stops_the_start() {
    let redis = SecuredRedis::start("127.0.0.1", "no");
    let stranger = Authority::new();
    let said = redis.refusal(&[("REDIS_CA_FILE", &stranger.path("ca.pem"))]);
    assert!(said.contains("UnknownIssuer") && said.contains("REDIS_CA_FILE"), "{said}");
    let said = redis.refusal(&[("REDIS_CA_FILE", &stranger.path("missing.pem"))]);
    assert!(said.contains("REDIS_CA_FILE") && said.contains("missing.pem"), "{said}");
}

#[test]
fn a_certificate_for_another_name_stops_the_start() {
    let redis = SecuredRedis::start("redis.example", "no");
    let said = redis.refusal(&[]);
    assert!(said.contains("not valid for name") && said.contains("REDIS_HOST"), "{said}");
}

#[test]
fn a_redis_that_asks_for_a_certificate_gets_it() {
    let redis = SecuredRedis::start("127.0.0.1", "yes");
    let said = redis.refusal(&[]);
    assert!(said.contains("TLS to Redis fails"), "{said}");
    redis.authority.issue("client", "instance.example");
    let (cert, key) = (redis.authority.path("client.pem"), redis.authority.path("client.key"));
    let server = redis.instance(&[("REDIS_CERT_FILE", &cert), ("REDIS_KEY_FILE", &key)]);
    Client::connect(&server).join("r");
}

#[test]
fn the_doctor_reaches_redis_as_the_server_does() {
    let redis = SecuredRedis::start("127.0.0.1", "no");
    let stranger = Authority::new().path("ca.pem");
    for (ca, verdict, word) in
        [(redis.authority.path("ca.pem"), "ok", "answers"), (stranger, "failed", "REDIS_CA_FILE")]
    {
        let settings = redis.settings(&[("REDIS_CA_FILE", &ca), ("AUTH_REQUIRED", "false")]);
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let output = command("doctor", free_port(), &settings).arg("--json").output().expect("it runs");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = said["checks"].as_array().expect("a list");
        let row = checks.iter().find(|check| check["name"] == "redis").expect("a row about Redis");
        assert_eq!(row["verdict"], verdict, "{said}");
        assert!(row["text"].as_str().expect("text").contains(word), "{row}");
    }
}

#[test]
fn a_redis_without_tls_counts_as_not_reached_and_the_log_says_why() {
    let plain = crate::harness::redis::RedisServer::start();
    let authority = Authority::new();
    let (port, ca) = (plain.port.to_string(), authority.path("ca.pem"));
    let settings = [
        ("REDIS_HOST", "127.0.0.1"),
        ("REDIS_PORT", port.as_str()),
        ("REDIS_TLS", "true"),
        ("REDIS_CA_FILE", ca.as_str()),
        ("REDIS_TIMEOUT", "200"),
    ];
    let server = Server::start(&settings);
    assert!(server.process.output().contains("speak TLS on REDIS_PORT"), "{}", server.process.output());
    assert_eq!(server.get_json("/health")["status"], "degraded");
}
