//! SIGHUP: what a running server takes over from its file, and what changes nothing.

use rustix::process::Signal;
use serde_json::json;

use crate::cluster::limits::admitted;
use crate::harness::client::Client;
use crate::harness::file::TempFile;
use crate::harness::process::Process;
use crate::harness::redis::RedisServer;
use crate::harness::server::{Server, command};
use crate::harness::{eventually, free_port, http, token};

/// A server with settings from a file, which come after those of the environment.
fn start(file: &TempFile, environment: &[(&str, &str)]) -> Server {
    let port = free_port();
    let mut command = command("serve", port, environment);
    command.args(["--config", file.path()]);
    for name in ["MESSAGE_RATE", "AUTH_REQUIRED", "MAX_CONNECTIONS_PER_USER"] {
        if !environment.iter().any(|(given, _)| *given == name) {
            command.env_remove(name);
        }
    }
    let process = Process::start("tableforge", &mut command);
    let mut server = Server { port, process };
    eventually("the server is ready", || {
        assert_eq!(server.process.ended(), None, "{}", server.process.output());
        http::try_get(port, "/ready").filter(|response| response.status == 200)
    });
    server
}

/// Has the file read again, and waits until `count` times of `outcome` are counted.
fn reload(server: &Server, file: &TempFile, text: &str, (outcome, count): (&str, u32)) {
    file.replace(text);
    server.process.signal(Signal::HUP);
    eventually("the file is read", || {
        (server.metric(&format!("tableforge_{outcome}_total")) == Some(f64::from(count))).then_some(())
    });
}

const DONE: &str = "reloads";
const REFUSED: &str = "reload_failures";

#[test]
fn limits_change_for_connections_that_exist() {
    let file = TempFile::new("auth_required = false\nmessage_rate = 0\n");
    let server = start(&file, &[("SHARDS", "2")]);
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(&server)).collect();
    for client in &mut clients {
        (0..50).for_each(|_| client.send(&json!({"type": "ping"})));
        client.join("one");
    }
    let text = "auth_required = false\nmessage_rate = 1\nmessage_burst = 3\nmax_rooms_per_connection = 1\n\
                max_message_bytes = 1024\nws_max_connections = 8\n";
    reload(&server, &file, text, (DONE, 1));
    let refused = |client: &mut Client, code: &str| {
        eventually(code, || {
            let reply = client.request(json!({"type": "join_room", "roomId": "two"}));
            (reply["code"] == code).then_some(())
        });
    };
    for client in &mut clients {
        refused(client, "rate_limited");
    }
    refused(&mut clients[0], "too_many_rooms");
    clients[0].send_text(&"x".repeat(2000));
    assert_eq!(clients[0].expect_close(), 1009);
    let log = server.process.output();
    for change in
        ["MESSAGE_RATE: 0 -> 1", "MAX_ROOMS_PER_CONNECTION: 128 -> 1", "MAX_MESSAGE_BYTES: 65536 -> 1024"]
    {
        assert!(log.contains(change), "{change}: {log}");
    }
    let _eighth = Client::connect(&server);
    assert_eq!(Client::open(server.port, "/ws", &[]).err(), Some(503), "no more than eight");
}

#[test]
fn a_file_that_cannot_be_used_changes_nothing() {
    let file = TempFile::new("auth_required = false\nmax_rooms_per_connection = 1\n");
    let server = start(&file, &[]);
    let mut client = Client::connect(&server);
    client.join("one");
    for (count, text) in [
        "auth_required = false\nmax_rooms_per_connection = 5\nmax_rums = 1\n",
        "auth_required = false\nmax_rooms_per_connection = 5\nmessage_rate = \"many\"\n",
        "auth_required = false\nmax_rooms_per_connection = 5\njwks_file = \"nowhere.json\"\n",
        "auth_required = false\nmax_rooms_per_connection = 5\nschemas_file = \"nowhere.toml\"\n",
        "auth_required = false\nmax_rooms_per_connection = 5\nmax_message_bytes = 16777216\n",
        "max_rooms_per_connection = 5\n",
        "max_rooms_per_connection =",
    ]
    .iter()
    .enumerate()
    {
        reload(&server, &file, text, (REFUSED, count as u32 + 1));
        client.expect_refused(json!({"type": "join_room", "roomId": "two"}), "too_many_rooms");
    }
    for cause in ["max_rums", "MESSAGE_RATE", "nowhere.json", "nowhere.toml", "OUTBOX_BYTES", "JWT_SECRET"] {
        // A failure is counted before its line is written.
        eventually(cause, || server.process.output().contains(cause).then_some(()));
    }
    reload(&server, &file, "auth_required = false\nmax_rooms_per_connection = 5\n", (DONE, 1));
    eventually("the next good file is taken", || {
        let reply = client.request(json!({"type": "join_room", "roomId": "two"}));
        (reply["type"] == "room_joined").then_some(())
    });
}

#[test]
fn the_environment_stays_before_the_file_and_what_waits_for_a_restart_is_named() {
    let file = TempFile::new("message_rate = 7\nhistory_size = 10\n");
    let server = start(&file, &[("MESSAGE_RATE", "0"), ("AUTH_REQUIRED", "false")]);
    let text = "message_rate = 1\nmessage_burst = 1\nhistory_size = 20\nws_port = 1\nlog_level = \"debug\"\n";
    reload(&server, &file, text, (DONE, 1));
    eventually("the log says what waits", || server.process.output().contains("HISTORY_SIZE").then_some(()));
    let log = server.process.output();
    assert!(log.contains("LOG_LEVEL: info -> debug") && log.contains("MESSAGE_BURST: 200 -> 1"), "{log}");
    assert!(!log.contains("MESSAGE_RATE:") && !log.contains("WS_PORT"), "the environment has them: {log}");
    let mut client = Client::connect(&server);
    (0..20).for_each(|_| assert_eq!(client.request(json!({"type": "ping"}))["type"], "pong"));
}

#[test]
fn keys_are_replaced_and_connections_stay() {
    const OTHER: &str = "another secret of the tests, longer than 32 bytes";
    let with = |secret: &str, key: &str| format!("jwt_secret = \"{secret}\"\napi_key = \"{key}\"\n");
    let file = TempFile::new(&with(token::SECRET, "old"));
    let server = start(&file, &[]);
    let claims = json!({"sub": "bob", "exp": token::seconds_from_now(600)});
    let of_bob = token::sign(&claims, jsonwebtoken::Algorithm::HS256, OTHER);
    let entry = |token: &str| {
        Client::open(server.port, "/ws", &[("authorization", &format!("Bearer {token}"))]).map(drop)
    };
    let admin = |key: &str| {
        let request = format!("GET /api/v1/bans HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n");
        http::exchange(server.port, request.as_bytes()).expect("an answer").status
    };
    let mut ann = Client::connect_as(&server, &token::of("ann"));
    assert_eq!((entry(&of_bob), admin("old"), admin("new")), (Err(401), 200, 401));
    reload(&server, &file, &with(OTHER, "new"), (DONE, 1));
    eventually("the new secret holds", || entry(&of_bob).ok());
    eventually("the old one does not", || entry(&token::of("ann")).err());
    assert_eq!((admin("old"), admin("new")), (401, 200));
    assert_eq!(ann.request(json!({"type": "ping"}))["type"], "pong");
    let log = server.process.output();
    assert!(log.contains("JWT_SECRET: (hidden) -> (hidden)") && !log.contains(OTHER), "{log}");
}

#[test]
fn the_log_follows_its_new_level() {
    let file = TempFile::new("auth_required = false\nlog_level = \"error\"\n");
    let server = start(&file, &[]);
    assert!(!server.process.output().contains("SIGHUP"));
    reload(&server, &file, "auth_required = false\nlog_level = \"info\"\n", (DONE, 1));
    eventually("it is told", || server.process.output().contains("LOG_LEVEL: error -> info").then_some(()));
}

#[test]
fn the_limit_of_a_users_connections_changes_on_all_instances_and_closes_nobody() {
    let redis = RedisServer::start();
    let with = |most: u32| format!("auth_required = false\nmax_connections_per_user = {most}\n");
    let port = redis.port.to_string();
    let [(file, a), (_, b)] = ["a", "b"].map(|id| {
        let file = TempFile::new(&with(2));
        let environment = [
            ("JWT_SECRET", token::SECRET),
            ("REDIS_HOST", "127.0.0.1"),
            ("REDIS_PORT", port.as_str()),
            ("INSTANCE_ID", id),
            ("SHARDS", "2"),
        ];
        let server = start(&file, &environment);
        eventually("the link to Redis is up", || {
            (server.get_json("/health")["status"] == "healthy").then_some(())
        });
        (file, server)
    });
    let mut open = vec![admitted(&b, "ann").expect("the first"), admitted(&a, "ann").expect("the second")];
    assert!(admitted(&a, "ann").is_none() && admitted(&b, "ann").is_none());
    reload(&a, &file, &with(4), (DONE, 1));
    open.extend((0..2).map(|_| eventually("the new limit holds", || admitted(&a, "ann"))));
    assert!(admitted(&a, "ann").is_none(), "the one on the other instance counts");
    assert!(admitted(&b, "ann").is_none(), "which has not read the new limit");
    reload(&a, &file, &with(1), (DONE, 2));
    let first = eventually("the lower limit holds", || {
        let first = admitted(&a, "bob")?;
        admitted(&a, "bob").is_none().then_some(first)
    });
    for socket in &mut open {
        socket.send_text(r#"{"type":"ping"}"#);
        socket.expect("pong");
    }
    reload(&a, &file, &with(0), (DONE, 3));
    eventually("it is said that no limit is none of the new ones", || {
        let log = a.process.output();
        log.lines()
            .any(|line| line.contains("until a restart") && line.contains("MAX_CONNECTIONS_PER_USER"))
            .then_some(())
    });
    assert!(admitted(&a, "bob").is_none(), "the limit of before stays");
    let log = a.process.output();
    for change in ["MAX_CONNECTIONS_PER_USER: 2 -> 4", "MAX_CONNECTIONS_PER_USER: 4 -> 1"] {
        assert!(log.contains(change), "{change}: {log}");
    }
    assert!(!log.contains("1 -> 0"), "{log}");
    drop(first);
}
