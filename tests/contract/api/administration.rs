//! Users are disconnected and banned, instances listed and drained, in the whole cluster.

use std::ops::Add;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tableforge::admin::signing;

use super::{KEY, call, get, json_of, post};
use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::raw::{RawSocket, UPGRADE};
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::token;

const SETTINGS: [(&str, &str); 4] =
    [("API_KEY", KEY), ("SHARDS", "2"), token::REQUIRED[0], token::REQUIRED[1]];

/// Instances `a` and `b`, which administrate each other.
fn pair(redis: &RedisServer, settings: &[(&str, &str)]) -> [Server; 2] {
    let settings = [&SETTINGS[..], settings].concat();
    let pair = ["a", "b"].map(|id| Server::in_cluster(redis, id, &settings));
    for server in &pair {
        eventually("both instances answer", || {
            let list = get(server.port, "/api/v1/instances");
            (list["instances"].as_array().expect("a list").len() == 2).then_some(())
        });
    }
    pair
}

fn as_user(server: &Server, user: &str) -> Client {
    Client::connect_as(server, &token::of(user))
}

/// Connects as `user`; the code with which the server ends it before it says anything.
#[track_caller]
fn refused(server: &Server, user: &str) -> u16 {
    let mut raw = RawSocket::connect(server.port);
    let authorization = format!("\r\nAuthorization: Bearer {}\r\n\r\n", token::of(user));
    raw.send(UPGRADE.trim_end().to_owned().add(&authorization).as_bytes());
    assert_eq!(raw.response().status, 101);
    raw.expect_close()
}

#[test]
fn a_user_is_disconnected_from_every_instance() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let mut of_ann = [as_user(&a, "ann"), as_user(&a, "ann"), as_user(&b, "ann")];
    let mut bob = as_user(&b, "bob");
    let user = get(a.port, "/api/v1/users/ann");
    assert_eq!((&user["connections"], &user["bannedUntil"]), (&json!(3), &Value::Null), "{user}");
    assert_eq!(user["instances"][1]["instanceId"], "b", "{user}");
    assert_eq!(user["instances"][1]["sessions"][0]["socketId"], of_ann[2].socket_id, "{user}");
    let answer = post(a.port, "/api/v1/users/ann/disconnect", r#"{"reason":"enough"}"#);
    assert_eq!(answer["disconnected"], 3, "{answer}");
    for client in &mut of_ann {
        assert_eq!(client.expect_close(), 4503);
    }
    bob.drain();
    as_user(&b, "ann").drain();
}

#[test]
fn a_ban_holds_on_every_instance_also_after_a_restart_until_it_is_ended() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let mut ann = as_user(&b, "ann");
    let answer = post(a.port, "/api/v1/users/ann/ban", r#"{"durationMs":600000,"reason":"spam"}"#);
    assert_eq!(answer["disconnected"], 1, "{answer}");
    assert_eq!(ann.expect_close(), 4503);
    assert_eq!((refused(&a, "ann"), refused(&b, "ann")), (4503, 4503));
    assert_eq!(get(b.port, "/api/v1/bans")["bans"][0]["userId"], "ann");
    let mut stranger = as_user(&a, "bob");
    stranger.drain();
    drop(b);
    let c = Server::in_cluster(&redis, "c", &SETTINGS);
    eventually("the new instance knows the ban", || {
        (get(c.port, "/api/v1/bans")["bans"][0]["userId"] == "ann").then_some(())
    });
    assert_eq!(refused(&c, "ann"), 4503);
    let answer = json_of(&call(c.port, "DELETE", "/api/v1/users/ann/ban", ""), 200);
    assert_eq!(answer["unbanned"], true, "{answer}");
    as_user(&c, "ann").drain();
    eventually("the ban has ended elsewhere", || {
        (get(a.port, "/api/v1/bans")["bans"] == json!([])).then_some(())
    });
    as_user(&a, "ann").drain();
}

#[test]
fn a_ban_ends_by_itself_and_holds_for_tokens_that_come_later() {
    let server = Server::start(&SETTINGS);
    post(server.port, "/api/v1/users/ann/ban", r#"{"durationMs":600000}"#);
    let mut client = Client::connect(&server);
    client.send(&json!({"type": "authenticate", "token": token::of("ann")}));
    assert_eq!(client.expect("error")["code"], "forbidden");
    assert_eq!(client.expect_close(), 4503);
    post(server.port, "/api/v1/users/ann/ban", r#"{"durationMs":1}"#);
    eventually("the ban has ended", || (get(server.port, "/api/v1/bans")["bans"] == json!([])).then_some(()));
    as_user(&server, "ann").drain();
}

#[test]
fn an_instance_is_drained_from_another_one() {
    let redis = RedisServer::start();
    let [a, mut b] = pair(&redis, &[]);
    let mut client = as_user(&b, "ann");
    let answer = json_of(&call(a.port, "POST", "/api/v1/instances/b/drain", ""), 202);
    assert_eq!(answer, json!({"instanceId": "b", "draining": true}));
    client.expect("server_draining");
    assert_eq!(client.expect_close(), 1012);
    assert!(b.process.wait().success());
    eventually("the instance is known to have gone", || {
        (call(a.port, "POST", "/api/v1/instances/b/drain", "").status == 404).then_some(())
    });
}

#[test]
fn an_instance_answers_the_order_to_drain_itself() {
    let mut server = Server::start(&[("API_KEY", KEY), ("INSTANCE_ID", "me")]);
    assert_eq!(call(server.port, "POST", "/api/v1/instances/me/drain", "").status, 202);
    assert!(server.process.wait().success());
}

const ADMIN_SECRET: &str = "0123456789abcdef0123456789abcdef";

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// A signed command that ends ann's connections.
fn disconnect_ann(secret: &str, timestamp: u64, nonce: &str) -> String {
    let fields = [("command".to_owned(), json!("disconnect")), ("userId".to_owned(), json!("ann"))];
    signing::sign(secret.as_bytes(), fields.into(), timestamp, nonce)
}

/// Waits until a server has refused so many commands.
#[track_caller]
fn expect_refusals(server: &Server, count: f64) {
    eventually("refused commands are counted", || {
        (server.metric("tableforge_admin_commands_refused_total") == Some(count)).then_some(())
    });
}

#[test]
fn other_programs_need_the_secret_and_a_command_counts_once() {
    let redis = RedisServer::start();
    let [a, _b] = pair(&redis, &[("ADMIN_SECRET", ADMIN_SECRET)]);
    let mut ann = as_user(&a, "ann");
    let now = now_ms();
    let disconnect = |secret: &str, timestamp: u64, nonce: &str| {
        redis.publish("tableforge:admin", disconnect_ann(secret, timestamp, nonce).as_bytes())
    };
    redis.publish("tableforge:admin", br#"{"command":"disconnect","userId":"ann"}"#);
    disconnect("another secret, of the same length..", now, "n-1");
    disconnect(ADMIN_SECRET, now - 3_600_000, "n-2");
    expect_refusals(&a, 3.0);
    ann.drain();
    disconnect(ADMIN_SECRET, now, "n-3");
    assert_eq!(ann.expect_close(), 4503);
    let logged = "an administrator's order from Redis";
    eventually("the order is in the log", || {
        let log = a.process.output();
        let line = log.lines().find(|line| line.contains(logged))?;
        assert!(line.contains("disconnect") && line.contains("ann"), "{line}");
        assert!(!log.contains(ADMIN_SECRET) && !log.contains("n-3"), "{log}");
        Some(())
    });
    let mut ann = as_user(&a, "ann");
    disconnect(ADMIN_SECRET, now, "n-3");
    expect_refusals(&a, 4.0);
    ann.drain();
}

#[test]
fn a_process_that_starts_later_does_not_carry_a_command_out_again() {
    let redis = RedisServer::start();
    let settings = [&SETTINGS[..], &[("ADMIN_SECRET", ADMIN_SECRET)]].concat();
    let first = Server::in_cluster(&redis, "a", &settings);
    let mut ann = as_user(&first, "ann");
    let command = disconnect_ann(ADMIN_SECRET, now_ms(), "n-1");
    redis.publish("tableforge:admin", command.as_bytes());
    assert_eq!(ann.expect_close(), 4503);
    let later = Server::in_cluster(&redis, "b", &settings);
    eventually("it listens", || (redis.subscribers("tableforge:admin") == 2).then_some(()));
    let mut ann = as_user(&later, "ann");
    redis.publish("tableforge:admin", command.as_bytes());
    expect_refusals(&later, 1.0);
    ann.drain();
    redis.publish("tableforge:admin", disconnect_ann(ADMIN_SECRET, now_ms(), "n-2").as_bytes());
    assert_eq!(ann.expect_close(), 4503);
}

#[test]
fn whoever_else_listens_to_commands_is_not_waited_for() {
    let redis = RedisServer::start();
    let [a, _b] = pair(&redis, &[]);
    let _listening = redis.eavesdrop("tableforge:*", "tableforge:admin");
    let list = get(a.port, "/api/v1/instances");
    assert_eq!(list["instances"].as_array().expect("a list").len(), 2, "{list}");
    assert_eq!(list.get("complete"), None, "{list}");
    assert_eq!(call(a.port, "POST", "/api/v1/instances/nobody/drain", "").status, 404);
}

/// Sets what has Redis refuse all writes; administration goes on, and no ban is lost.
#[track_caller]
fn expect_administration_without_writes(setting: &str, settings: &[(&str, &str)]) {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, settings);
    let [mut ann, mut bob, mut eve] = ["ann", "bob", "eve"].map(|user| as_user(&b, user));
    let _: String = redis.command(&["CONFIG", "SET", setting, "1"]);
    let answer = post(a.port, "/api/v1/users/ann/ban", r#"{"durationMs":600000}"#);
    assert_eq!((&answer["disconnected"], answer.get("complete")), (&json!(1), None), "{answer}");
    assert_eq!(ann.expect_close(), 4503);
    let kept = || redis.command::<Option<String>>(&["HGET", "tableforge:bans", "ann"]);
    assert_eq!(kept(), None, "Redis takes no writes");
    // Both have read the list without this ban, twice.
    redis.expect_command("\"HGETALL\" \"tableforge:bans\"", 4);
    for (server, user, client) in [(&a, "bob", &mut bob), (&b, "eve", &mut eve)] {
        let path = format!("/api/v1/users/{user}/disconnect");
        let answer = post(server.port, &path, "");
        assert_eq!((&answer["disconnected"], answer.get("complete")), (&json!(1), None), "{answer}");
        assert_eq!(client.expect_close(), 4503);
        assert_eq!(refused(server, "ann"), 4503);
    }
    let _: String = redis.command(&["CONFIG", "SET", setting, "0"]);
    eventually("Redis keeps the ban", kept);
    let answer = json_of(&call(a.port, "DELETE", "/api/v1/users/ann/ban", ""), 200);
    assert_eq!(answer["unbanned"], true, "{answer}");
    eventually("and its end", || kept().is_none().then_some(()));
}

#[test]
fn a_full_redis_stops_no_administration_and_lifts_no_ban() {
    expect_administration_without_writes("maxmemory", &[]);
}

#[test]
fn a_redis_without_its_replicas_stops_no_administration_and_lifts_no_ban() {
    expect_administration_without_writes("min-replicas-to-write", &[("ADMIN_SECRET", ADMIN_SECRET)]);
}

#[test]
fn a_full_redis_that_has_lost_the_bans_gets_them_later() {
    let redis = RedisServer::start();
    let [a, _b] = pair(&redis, &[("ADMIN_SECRET", ADMIN_SECRET)]);
    post(a.port, "/api/v1/users/ann/ban", r#"{"durationMs":600000}"#);
    let kept = || redis.command::<Option<String>>(&["HGET", "tableforge:bans", "ann"]);
    eventually("Redis keeps the ban", kept);
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let _: i64 = redis.command(&["DEL", "tableforge:bans", "tableforge:admin-secret"]);
    // Each instance reads twice, before and after it has tried to leave a mark.
    redis.expect_command("\"HGETALL\" \"tableforge:bans\"", 5);
    assert_eq!(refused(&a, "ann"), 4503);
    assert_eq!(kept(), None, "Redis takes no writes");
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("Redis keeps the ban again", kept);
}

#[test]
fn administration_goes_on_alone_while_redis_is_away() {
    let mut redis = RedisServer::start();
    let [a, _b] = pair(&redis, &[]);
    let mut ann = as_user(&a, "ann");
    redis.kill();
    ann.expect("cluster_status");
    let answer = eventually("the control thread has noticed", || {
        let list = get(a.port, "/api/v1/instances");
        (list["instances"].as_array().expect("a list").len() == 1).then_some(list)
    });
    assert_eq!(answer["instances"][0]["instanceId"], "a", "{answer}");
    assert_eq!(answer["complete"], false, "{answer}");
    assert_eq!(get(a.port, "/api/v1/users/ann")["complete"], false);
    assert_eq!(call(a.port, "POST", "/api/v1/instances/b/drain", "").status, 503);
    for path in ["rooms/r", "rooms/r/members"] {
        assert_eq!(get(a.port, &format!("/api/v1/{path}"))["complete"], false, "{path}");
    }
    for path in ["rooms/r/messages", "users/bob/messages", "broadcast"] {
        let answer = post(a.port, &format!("/api/v1/{path}"), r#"{"data":1}"#);
        assert_eq!(answer["complete"], false, "{path}");
    }
    ann.expect("global_message");
    post(a.port, "/api/v1/users/ann/ban", r#"{"durationMs":600000}"#);
    assert_eq!(ann.expect_close(), 4503);
    redis.restart();
    eventually("the ban is kept in Redis once it is back", || {
        let kept: Option<String> = redis.command(&["HGET", "tableforge:bans", "ann"]);
        kept.map(drop)
    });
    assert_ne!(Duration::ZERO, Duration::from_millis(redis.command::<u64>(&["PTTL", "tableforge:bans"])));
}
