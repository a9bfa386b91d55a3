//! `tableforge admin`.

use std::process::{Command, Output};

use serde_json::Value;

use super::{KEY, WITH_KEY};
use crate::harness::client::Client;
use crate::harness::server::Server;

fn admin(server: &Server, key: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tableforge"))
        .arg("admin")
        .args(args)
        .env_clear()
        .env("TABLEFORGE_URL", format!("http://127.0.0.1:{}", server.port))
        .env("TABLEFORGE_API_KEY", key)
        .output()
        .expect("the program starts")
}

/// The JSON that a command prints, which must succeed.
#[track_caller]
fn succeed(server: &Server, args: &[&str]) -> Value {
    let output = admin(server, KEY, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{args:?}: {why}: {output:?}"))
}

#[test]
fn everything_can_be_done_from_a_shell() {
    let mut server = Server::start(&[WITH_KEY[0], ("INSTANCE_ID", "me")]);
    let mut ann = Client::connect(&server);
    ann.join("r");
    let user = ann.user_id.clone();
    assert_eq!(succeed(&server, &["instances"])["instances"][0]["instanceId"], "me");
    assert_eq!(succeed(&server, &["rooms"])["rooms"][0]["roomId"], "r");
    assert_eq!(succeed(&server, &["rooms", "r"])["members"][0]["userId"], user.as_str());
    assert_eq!(succeed(&server, &["users", &user])["connections"], 1);
    succeed(&server, &["publish", "r", r#"{"roll": 17}"#, "--message-id", "m"]);
    assert_eq!(ann.expect("room_message")["data"]["roll"], 17);
    succeed(&server, &["broadcast", "\"hello\""]);
    assert_eq!(ann.expect("global_message")["data"], "hello");
    assert_eq!(succeed(&server, &["disconnect", &user, "--reason", "bye"])["disconnected"], 1);
    assert_eq!(ann.expect_close(), 4503);
    succeed(&server, &["ban", "bob", "--for", "10m"]);
    assert_eq!(succeed(&server, &["users"])["bans"][0]["userId"], "bob");
    assert_eq!(succeed(&server, &["unban", "bob"])["unbanned"], true);
    assert_eq!(succeed(&server, &["drain", "me"])["draining"], true);
    assert!(server.process.wait().success());
}

#[test]
fn data_arrives_as_it_was_written() {
    let server = Server::start(&WITH_KEY);
    let mut ann = Client::connect(&server);
    ann.join("r");
    let data = r#"{"b":1e2,"a":123456789012345678901,"c":[ 1.0 ]}"#;
    succeed(&server, &["publish", "r", data]);
    assert_eq!(ann.expect("room_message").data(), data);
    succeed(&server, &["broadcast", data]);
    assert_eq!(ann.expect("global_message").data(), data);
}

#[test]
fn a_failure_is_one_line_and_an_exit_code() {
    let server = Server::start(&WITH_KEY);
    for (key, args, word) in [
        ("wrong", &["instances"][..], "401"),
        (KEY, &["drain", "nobody"], "404"),
        (KEY, &["publish", "r", "{"], "not JSON"),
        (KEY, &["instances", "--url", "127.0.0.1:1"], "http://HOST:PORT"),
        (KEY, &["instances", "--url", "http://127.0.0.1:1"], "no answer"),
        (KEY, &["instances", "--url", "https://a", "--ca-file", "/nowhere"], "TABLEFORGE_CA_FILE: /nowhere"),
    ] {
        let output = admin(&server, key, args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(word) && text.lines().count() == 1, "{text}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}
