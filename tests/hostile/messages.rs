//! Hostile JSON: refused with the documented code, carried out not even in part, closed for after ten.

use serde_json::{Value, json};

use crate::arena::{Arena, upgraded};
use crate::harness::client::Client;
use crate::harness::raw::RawSocket;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;

/// The code of the error that comes next.
#[track_caller]
fn refusal(socket: &mut RawSocket) -> String {
    let event = socket.event();
    assert_eq!(event["type"], "error", "{event}");
    event["code"].as_str().expect("a code").to_owned()
}

/// Sends each text on a connection of its own and expects its code, and then ten times for 4502.
#[track_caller]
fn assert_refused(code: &str, texts: &[(&str, String)]) {
    let mut arena = Arena::start(&[]);
    for (what, text) in texts {
        let (mut socket, _) = upgraded(arena.port());
        socket.send_text(text);
        assert_eq!(refusal(&mut socket), code, "{what}");
        socket.send_text(r#"{"type":"ping"}"#);
        assert_eq!(socket.event()["type"], "pong", "one mistake is forgiven: {what}");
        arena.assert_healthy(what);
        (0..10).for_each(|_| socket.send_text(text));
        // What follows the tenth is not read any more.
        let _ = socket.try_send(&crate::harness::raw::frame(0x81, br#"{"type":"ping"}"#));
        for _ in 0..10 {
            assert_eq!(refusal(&mut socket), code, "{what}");
        }
        assert_eq!(socket.expect_close(), 4502, "{what}");
        arena.note_end(4502);
        arena.assert_healthy(what);
    }
    arena.assert_restored();
}

/// A `ping` with one more field, whose value is written as given.
fn with_value(value: &str) -> String {
    format!(r#"{{"type":"ping","x":{value}}}"#)
}

#[test]
fn text_that_is_no_acceptable_json() {
    let nested = |levels: usize| with_value(&format!("{}{}", "[".repeat(levels), "]".repeat(levels)));
    assert_refused(
        "invalid_json",
        &[
            ("33 levels", nested(32)),
            ("30,000 levels", nested(30_000)),
            ("a repeated key", r#"{"type":"ping","type":"ping"}"#.to_owned()),
            ("a key repeated in disguise", r#"{"type":"ping","t\u0079pe":"ping"}"#.to_owned()),
            ("a key repeated inside", with_value(r#"{"a":1,"a":2}"#)),
            ("1e400", with_value("1e400")),
            ("-1e400", with_value("-1e400")),
            ("400 digits", with_value(&"9".repeat(400))),
            ("a byte order mark", "\u{feff}{\"type\":\"ping\"}".to_owned()),
            ("trailing bytes", r#"{"type":"ping"}x"#.to_owned()),
            ("two messages", r#"{"type":"ping"}{"type":"ping"}"#.to_owned()),
            ("a lone surrogate", with_value(r#""\ud800""#)),
            ("surrogates the wrong way round", with_value(r#""\udc00\ud800""#)),
            ("a lone surrogate in a key", r#"{"type":"ping","\ud800":1}"#.to_owned()),
            ("a control character", with_value("\"\u{1}\"")),
            ("NUL", with_value("\"\0\"")),
            ("more than a double", with_value("1e309")),
            ("a surrogate that is alone deep inside", with_value(r#"[{"a":["\uDBFF"]}]"#)),
            ("an escaped key repeated", with_value(r#"{"\u0061":1,"a":2}"#)),
            ("NUL behind the end", "{\"type\":\"ping\"}\0".to_owned()),
            ("a form feed", "\u{c}{\"type\":\"ping\"}".to_owned()),
            ("a leading zero", with_value("01")),
            ("NaN", with_value("NaN")),
            ("a comma too many", r#"{"type":"ping",}"#.to_owned()),
            ("single quotes", "{'type':'ping'}".to_owned()),
            ("no end", r#"{"type":"ping""#.to_owned()),
            ("a wide space", "\u{a0}{\"type\":\"ping\"}".to_owned()),
            ("nothing", String::new()),
        ],
    );
}

#[test]
fn rooms_with_impossible_names() {
    let names = ["a\0b", "a\r\nb", "*", "{}", "a\u{202e}b", "", " ", "a/b", "ä", &"a".repeat(129)];
    let texts =
        names.map(|name| (name, json!({"type": "join_room", "roomId": name, "messageId": "1"}).to_string()));
    assert_refused("invalid_room", &texts);
}

#[test]
fn a_room_that_cannot_be_is_one_escaped_line_in_the_log_and_nothing_in_redis() {
    let redis = RedisServer::start();
    let server = Server::in_cluster(&redis, "a", &[]);
    let mut client = Client::connect(&server);
    client.join("before");
    let keys = || {
        let mut keys: Vec<String> = redis.command(&["KEYS", "*"]);
        keys.extend(redis.command::<Vec<String>>(&["PUBSUB", "CHANNELS"]));
        keys.sort();
        keys
    };
    let before = keys();
    for name in ["evil\0\r\n\u{202e}\u{1b}[2J", "evil*", "evil{}"] {
        client.expect_refused(json!({"type": "join_room", "roomId": name}), "invalid_room");
    }
    assert_eq!(keys(), before);
    drop(client);
    let lines = |server: &Server| -> Vec<String> {
        server.process.output().lines().filter(|line| line.contains("evil")).map(Into::into).collect()
    };
    crate::harness::eventually("it is logged", || (!lines(&server).is_empty()).then_some(()));
    let lines = lines(&server);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(!lines[0].contains(|c: char| c.is_control() || c == '\u{202e}'), "{:?}", lines[0]);
}

#[test]
fn messages_that_mean_nothing() {
    assert_refused(
        "unknown_type",
        &[
            ("control characters", json!({"type": "\u{0}\n\u{1b}[31m\u{202e}\""}).to_string()),
            ("a long type", json!({"type": "z".repeat(60_000)}).to_string()),
        ],
    );
    assert_refused(
        "invalid_message",
        &[
            ("a list", "[]".to_owned()),
            ("a number", "1".to_owned()),
            ("no type", "{}".to_owned()),
            ("a type that is a list", json!({"type": ["ping"]}).to_string()),
            ("a messageId of 65 bytes", json!({"type": "ping", "messageId": "x".repeat(65)}).to_string()),
            ("a messageId that is null", json!({"type": "ping", "messageId": null}).to_string()),
            ("a room that is a number", json!({"type": "join_room", "roomId": 1}).to_string()),
            ("no data", json!({"type": "room_message", "roomId": "r"}).to_string()),
        ],
    );
}

#[test]
fn nine_invalid_messages_and_a_valid_one_may_go_on_for_ever() {
    let mut arena = Arena::start(&[]);
    let (mut socket, _) = upgraded(arena.port());
    for _ in 0..20 {
        (0..9).for_each(|_| socket.send_text("{"));
        (0..9).for_each(|_| assert_eq!(refusal(&mut socket), "invalid_json"));
        socket.send_text(r#"{"type":"ping"}"#);
        assert_eq!(socket.event()["type"], "pong");
    }
    drop(socket);
    arena.assert_healthy("invalid messages");
    arena.assert_restored();
}

/// Rules for messages in a file of their own; its path.
fn rules_file() -> String {
    let path =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rules-{}.toml", std::process::id()));
    let rules = r#"
        [[rule]]
        rooms = ["table-*"]
        max_bytes = 1000
        schema = { type = "object", properties = { roll = { type = "integer", maximum = 20 } } }
        [[rule]]
        kind = "user_message"
        schema = { type = "string", pattern = "^(a|a)*$" }
    "#;
    std::fs::write(&path, rules).expect("the directory is there");
    path.to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn messages_against_the_rules_of_the_server_reach_nobody_and_the_path_at_fault_is_named() {
    let mut arena = Arena::start(&[("SCHEMAS_FILE", &rules_file())]);
    let (mut sender, mut witness) = (Client::connect(&arena.server), Client::connect(&arena.server));
    for client in [&mut sender, &mut witness] {
        client.join("table-1");
        client.join("free");
    }
    let roll = |roll: Value| json!({"type": "room_message", "roomId": "table-1", "data": {"roll": roll}});
    let refused = sender.expect_refused(roll(json!(21)), "invalid_message");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("data/roll")), "{}", refused.text);
    sender.expect_refused(roll(json!("x".repeat(2_000))), "message_too_large");
    let evil =
        json!({"type": "user_message", "targetUserId": "u", "data": format!("{}!", "a".repeat(60_000))});
    let refused = sender.expect_refused(evil, "invalid_message");
    assert!(refused.text.len() < 1_000, "{}", refused.text);
    sender.say("free", json!({"roll": 21}));
    witness.expect_said("free", json!({"roll": 21}));
    sender.send(&roll(json!(20)));
    witness.expect_said("table-1", json!({"roll": 20}));
    witness.assert_none("room_message");
    (0..10).for_each(|_| sender.send(&roll(json!(null))));
    assert_eq!(sender.expect_close(), 4502);
    arena.note_end(4502);
    drop(witness);
    arena.assert_healthy("rules");
    arena.assert_restored();
}

#[test]
fn nobody_can_forge_a_field_of_the_server() {
    let mut arena = Arena::start(&[]);
    let (mut forger, mut victim) = (Client::connect(&arena.server), Client::connect(&arena.server));
    forger.join("r");
    victim.join("r");
    let forged = json!({
        "senderId": "server", "senderSocketId": "x", "timestamp": 1, "offset": 7, "type": "global_message",
    });
    let mut message = json!({"type": "room_message", "roomId": "r", "data": forged});
    for (field, value) in forged.as_object().expect("an object") {
        if field != "type" {
            message[field] = value.clone();
        }
    }
    forger.send(&message);
    let event = victim.expect_said("r", forged);
    assert_eq!(event["senderId"], *forger.user_id, "{}", event.text);
    assert_eq!(event["senderSocketId"], *forger.socket_id, "{}", event.text);
    assert_eq!(event["offset"], Value::Null, "{}", event.text);
    assert!(event["timestamp"].as_u64() > Some(1_600_000_000_000), "{}", event.text);
    drop((forger, victim));
    arena.assert_healthy("forgery");
    arena.assert_restored();
}
