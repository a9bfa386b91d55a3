//! Hostile names and messages in places where other programs read: the log, the metrics, other clients' screens.

use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::http;
use crate::harness::raw::RawSocket;
use crate::harness::server::Server;
use crate::harness::token;

/// Breaks lines, quotes and terminals, and turns text round.
const EVIL: &str =
    "x\r\n{\"level\":\"ERROR\",\"forged\":true}\n# TYPE forged counter\nforged 1\u{0}\u{1b}[2J\u{202e}\"} 7";

#[test]
fn no_name_or_message_writes_lines_of_its_own_into_log_or_metrics() {
    for format in ["json", "pretty"] {
        let settings = [("LOG_LEVEL", "trace"), ("LOG_FORMAT", format), ("JWT_SECRET", token::SECRET)];
        let mut server = Server::start(&settings);
        let token = token::with_claims(json!({"sub": EVIL, "name": EVIL}));
        let mut evil = Client::connect_as(&server, &token);
        assert_eq!(evil.user_id, EVIL);
        evil.join("r");
        evil.say("r", EVIL);
        evil.expect_refused(json!({"type": "join_room", "roomId": EVIL}), "invalid_room");
        evil.expect_refused(json!({"type": EVIL}), "unknown_type");
        evil.request(json!({"type": "user_message", "targetUserId": EVIL, "data": EVIL}));
        let path = "/%0d%0aforged?token=%0aforged";
        assert_eq!(http::get(server.port, path).status, 404);
        let mut raw = RawSocket::connect(server.port);
        raw.send(b"GET /\x1b[2J\xe2\x80\xae HTTP/1.1\r\nX-Forwarded-For: \x1b[2J\r\nOrigin: \x1b\r\n\r\n");
        raw.response();
        let metrics = http::get(server.port, "/metrics").body;
        assert!(
            !metrics.contains("forged") && !metrics.contains('\u{202e}') && !metrics.contains('\r'),
            "{metrics}"
        );
        evil.close();
        server.terminate();
        let log = server.process.output();
        assert!(log.contains("stopped"), "{log}");
        for line in log.lines() {
            let harmful = line.chars().find(|letter| letter.is_control() || *letter == '\u{202e}');
            assert_eq!(harmful, None, "{line:?}");
            assert!(
                !line.starts_with("forged") && !line.starts_with('#') && !line.contains("\"forged\":true"),
                "{line}"
            );
            assert!(!line.contains(&token), "a token in the log: {line}");
            if format == "json" && line.starts_with('{') {
                let event: Value = serde_json::from_str(line).expect("one object per line");
                assert!(event["level"].is_string(), "{line}");
            }
        }
    }
}

#[test]
fn display_names_lose_what_disturbs_where_that_is_set() {
    let settings = |on| [("SANITIZE_NAMES", on), ("JWT_SECRET", token::SECRET)];
    for (on, expected) in [("true", json!("AnnBoo")), ("false", json!("Ann\u{202e}\r\nBoo"))] {
        let server = Server::start(&settings(on));
        let mut witness = Client::connect(&server);
        witness.join("r");
        let named = |name: &str| token::with_claims(json!({"sub": "ann", "name": name}));
        let mut ann = Client::connect_as(&server, &named("Ann\u{202e}\r\nBoo"));
        ann.join("r");
        witness.expect("user_joined_room");
        let list = witness.request(json!({"type": "room_members", "roomId": "r"}));
        let member =
            list["members"].as_array().expect("a list").iter().find(|member| member["userId"] == "ann");
        assert_eq!(member.expect("she is there")["name"], expected, "{}", list.text);
        // A renewed token's name is no way around it.
        ann.request(json!({"type": "authenticate", "token": named("\u{202e}evil")}));
        ann.join("s");
        let list = ann.join_with(json!({"type": "join_room", "roomId": "s", "members": true}));
        assert_eq!(on == "true", !list.text.contains('\u{202e}'), "{}", list.text);
    }
}
