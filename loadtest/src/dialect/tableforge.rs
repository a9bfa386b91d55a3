//! TableForge's JSON messages, protocol version 1.

use std::io::Write;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Dialect, Incoming, Position, Standing};
use crate::stamp::{Payload, Stamp, StampReader};

/// The dialect of TableForge servers.
#[derive(Debug)]
pub struct TableForge {
    stamps: StampReader,
}

impl TableForge {
    /// A dialect that has read nothing yet.
    pub fn new() -> Self {
        Self { stamps: StampReader::new() }
    }

    fn read_join(&mut self, text: &[u8]) -> Incoming {
        // Without a history there is nothing in it but who is there: parsed, it would slow down the generator.
        if memchr::memmem::find(text, br#""epoch":"#).is_none() && text.ends_with(b"}") {
            return Incoming::Joined(Standing::default());
        }
        let Ok(joined) = serde_json::from_slice::<Joined>(text) else { return Incoming::Malformed };
        let stamps = |message: &&RawValue| self.stamps.find(message.get().as_bytes());
        let recovered = match joined.recovered {
            None => None,
            Some(false) => Some(Err(joined.reason.unwrap_or_else(|| "no reason".to_owned()))),
            Some(true) => match joined.messages.iter().map(stamps).collect() {
                Some(stamps) => Some(Ok(stamps)),
                None => return Incoming::Malformed,
            },
        };
        let position = joined.epoch.zip(joined.offset);
        let position = position.map(|(epoch, offset)| Position { epoch, offset });
        Incoming::Joined(Standing { position, recovered })
    }
}

/// How the reply to a join begins.
const JOINED: &[u8] = br#"{"type":"room_joined","#;

/// How a delivery begins.
const DELIVERY: &[u8] = br#"{"type":"room_message","#;

/// How the first message of a connection begins.
const GREETING: &[u8] = br#"{"type":"connection_established","#;

/// How the messages about those who come and go begin.
const PRESENCE: [&[u8]; 2] = [br#"{"type":"user_joined_room","#, br#"{"type":"user_left_room","#];

/// The fields of the reply to a join that matter here.
#[derive(Deserialize)]
struct Joined<'a> {
    #[serde(default)]
    epoch: Option<String>,
    #[serde(default)]
    offset: Option<u64>,
    #[serde(default)]
    recovered: Option<bool>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default, borrow)]
    messages: Vec<&'a RawValue>,
}

/// The fields of all messages other than deliveries that matter here.
#[derive(Deserialize)]
struct Control<'a> {
    r#type: &'a str,
    #[serde(default, rename = "messageId")]
    message_id: Option<&'a str>,
    #[serde(default)]
    code: Option<&'a str>,
    #[serde(default)]
    status: Option<&'a str>,
}

/// A delivery in full.
#[derive(Deserialize)]
struct Delivery<'a> {
    r#type: &'a str,
    #[serde(rename = "roomId")]
    room_id: &'a str,
    #[serde(rename = "senderId")]
    sender_id: String,
    timestamp: u64,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Dialect for TableForge {
    fn write_join(&self, room: &str, since: Option<&Position>, out: &mut Vec<u8>) {
        write!(out, r#"{{"type":"join_room","roomId":"{room}""#).expect("writing to a Vec cannot fail");
        if let Some(Position { epoch, offset }) = since {
            write!(out, r#","since":{{"epoch":"{epoch}","offset":{offset}}}"#)
                .expect("writing to a Vec cannot fail");
        }
        out.push(b'}');
    }

    fn write_message(
        &self,
        room: &str,
        stamp: &Stamp,
        payload: &Payload,
        acknowledged: bool,
        out: &mut Vec<u8>,
    ) {
        write!(out, r#"{{"type":"room_message","roomId":"{room}","#).expect("writing to a Vec cannot fail");
        if acknowledged {
            // The reply carries the identifier back, so nothing has to be remembered per message.
            let Stamp { sender, sequence, intended_us } = stamp;
            write!(out, r#""messageId":"{sender}-{sequence}-{intended_us}","#)
                .expect("writing to a Vec cannot fail");
        }
        out.extend_from_slice(br#""data":"#);
        payload.write(stamp, out);
        out.push(b'}');
    }

    /// What comes often is told by how it begins and ends, since the server writes the type first: parsed, it would slow
    /// down the generator.
    fn read(&mut self, text: &[u8]) -> Incoming {
        if text.starts_with(DELIVERY)
            && let Some(stamp) = self.stamps.find(text)
        {
            return Incoming::Delivery(stamp);
        }
        if text.starts_with(JOINED) {
            return self.read_join(text);
        }
        let ends = text.ends_with(b"}");
        if ends && PRESENCE.iter().any(|head| text.starts_with(head)) {
            return Incoming::Presence;
        }
        if ends && text.starts_with(GREETING) {
            return Incoming::Greeting;
        }
        let Ok(message) = serde_json::from_slice::<Control>(text) else { return Incoming::Malformed };
        match message.r#type {
            "message_ack" => match message.message_id.and_then(parse_message_id) {
                Some(stamp) => Incoming::Acknowledged(stamp),
                None => Incoming::Malformed,
            },
            "error" => {
                let code = message.code.unwrap_or("no code").to_owned();
                let acknowledged = message.message_id.is_some();
                match code.as_str() {
                    "timeout" => Incoming::Uncertain { code, acknowledged },
                    _ => Incoming::Refused { code, acknowledged },
                }
            }
            "room_size" | "room_left" | "pong" => Incoming::Ignored,
            "cluster_status" => {
                Incoming::Notice(format!("cluster_status {}", message.status.unwrap_or("unknown")))
            }
            other => Incoming::Notice(other.to_owned()),
        }
    }

    fn is_correct(&self, text: &[u8], room: &str, stamp: &Stamp, payload: &Payload) -> bool {
        serde_json::from_slice::<Delivery>(text).is_ok_and(|delivery| {
            delivery.r#type == "room_message"
                && delivery.room_id == room
                && !delivery.sender_id.is_empty()
                && delivery.timestamp > 0
                && payload.matches(stamp, delivery.data.get().as_bytes())
        })
    }
}

/// The stamp out of a `messageId` that [`TableForge::write_message`] made.
fn parse_message_id(id: &str) -> Option<Stamp> {
    let mut parts = id.splitn(3, '-');
    let sender = parts.next()?.parse().ok()?;
    let sequence = parts.next()?.parse().ok()?;
    let intended_us = parts.next()?.parse().ok()?;
    Some(Stamp { sender, sequence, intended_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { sender: 4, sequence: 2, intended_us: 77_000 };

    /// A delivery as a server makes it out of a sent message.
    fn delivery(sent: &[u8]) -> String {
        let sent: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(sent).unwrap();
        let mut data = Vec::new();
        Payload::new(100, 9).write(&STAMP, &mut data);
        let (room, data) = (sent["roomId"].as_str().unwrap(), String::from_utf8(data).unwrap());
        format!(r#"{{"type":"room_message","roomId":"{room}","senderId":"u","timestamp":5,"data":{data}}}"#)
    }

    #[test]
    fn a_message_comes_back_as_a_delivery_and_as_an_ack() {
        let mut dialect = TableForge::new();
        let payload = Payload::new(100, 9);
        let mut sent = Vec::new();
        dialect.write_message("load-1", &STAMP, &payload, true, &mut sent);
        let received = delivery(&sent);
        assert_eq!(dialect.read(received.as_bytes()), Incoming::Delivery(STAMP));
        assert!(dialect.is_correct(received.as_bytes(), "load-1", &STAMP, &payload));
        assert!(!dialect.is_correct(received.as_bytes(), "load-2", &STAMP, &payload));
        let spaced = received.replace("\"data\":{\"s\":", "\"data\":{ \"s\":");
        assert!(!dialect.is_correct(spaced.as_bytes(), "load-1", &STAMP, &payload));

        let id = serde_json::from_slice::<serde_json::Value>(&sent).unwrap()["messageId"].clone();
        let ack = format!(r#"{{"type":"message_ack","roomId":"load-1","messageId":{id}}}"#);
        assert_eq!(dialect.read(ack.as_bytes()), Incoming::Acknowledged(STAMP));
    }

    #[test]
    fn a_join_says_what_was_seen_and_its_reply_brings_what_was_missed() {
        let mut dialect = TableForge::new();
        let seen = Position { epoch: "e".into(), offset: 41 };
        let mut join = Vec::new();
        dialect.write_join("r", Some(&seen), &mut join);
        let join: serde_json::Value = serde_json::from_slice(&join).unwrap();
        assert_eq!(join["since"], serde_json::json!({"epoch": "e", "offset": 41}));

        let mut data = Vec::new();
        Payload::new(100, 9).write(&STAMP, &mut data);
        let data = String::from_utf8(data).unwrap();
        let message = format!(r#"{{"type":"room_message","roomId":"r","offset":42,"data":{data}}}"#);
        let head =
            r#"{"type":"room_joined","roomId":"r","memberCount":2,"epoch":"e","offset":42,"recovered":"#;
        let position = Some(Position { epoch: "e".into(), offset: 42 });
        assert_eq!(
            dialect.read(format!(r#"{head}true,"messages":[{message},{message}]}}"#).as_bytes()),
            Incoming::Joined(Standing { position: position.clone(), recovered: Some(Ok(vec![STAMP; 2])) })
        );
        assert_eq!(
            dialect.read(format!(r#"{head}false,"reason":"expired"}}"#).as_bytes()),
            Incoming::Joined(Standing { position, recovered: Some(Err("expired".into())) })
        );
    }

    #[test]
    fn other_messages_are_told_apart() {
        let mut dialect = TableForge::new();
        let cases = [
            (r#"{"type":"connection_established","socketId":"a","protocol":1}"#, Incoming::Greeting),
            (
                r#"{"type":"room_joined","roomId":"load-0","memberCount":1}"#,
                Incoming::Joined(Standing::default()),
            ),
            (r#"{"type":"user_joined_room","roomId":"load-0","userId":"a\"b"}"#, Incoming::Presence),
            (r#"{"type":"user_left_room","roomId":"load-0","userId":"a\"b"}"#, Incoming::Presence),
            (
                r#"{"type":"room_message","roomId":"load-0","senderId":"u","timestamp":5,"data":"not ours"}"#,
                Incoming::Notice("room_message".into()),
            ),
            (
                r#"{"type":"error","code":"rate_limited","message":"slow down"}"#,
                Incoming::Refused { code: "rate_limited".into(), acknowledged: false },
            ),
            (
                r#"{"type":"error","code":"timeout","message":"?","messageId":"1-2-3"}"#,
                Incoming::Uncertain { code: "timeout".into(), acknowledged: true },
            ),
            (
                r#"{"type":"room_resync","roomId":"load-0","reason":"x"}"#,
                Incoming::Notice("room_resync".into()),
            ),
            (
                r#"{"type":"cluster_status","status":"degraded"}"#,
                Incoming::Notice("cluster_status degraded".into()),
            ),
            (r#"{"type":"message_ack"}"#, Incoming::Malformed),
            (r#"{"type":"connection_established","socketId":"a","pro"#, Incoming::Malformed),
            (r#"{"type":"room_joined","roomId":"load-0","memberC"#, Incoming::Malformed),
            (r#"{"type":"user_joined_room","roomId":"load-0","us"#, Incoming::Malformed),
            (r#"{"type":"user_left_room","roomId":"load-0","us"#, Incoming::Malformed),
            (r#"{"type":"room_message","roomId":"load-0","sen"#, Incoming::Malformed),
            ("hello", Incoming::Malformed),
        ];
        for (text, meaning) in cases {
            assert_eq!(dialect.read(text.as_bytes()), meaning, "{text}");
        }
    }
}
