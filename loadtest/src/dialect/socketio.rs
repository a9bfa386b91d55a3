//! Socket.IO protocol 5 in Engine.IO protocol 4, over WebSocket from the start.

use std::io::Write;

use super::{Dialect, Incoming, Position, Standing, with_query};
use crate::stamp::{Payload, Stamp, StampReader};

/// Engine.IO `message` (4) with Socket.IO `CONNECT` (0), to the main namespace.
const CONNECT: &str = "40";

/// Engine.IO `pong`.
const PONG: &str = "3";

/// The beginning of a message in either direction: an `EVENT` (2) named `m`.
const MESSAGE: &[u8] = br#"42["m","#;

/// The number of the one ack that a connection ever asks for: that of its join.
const JOIN_ACK: u32 = 0;

/// The dialect of Socket.IO servers that know two events: `join` with a room's name, which they acknowledge,
/// and `m` with data, which they emit to the others in the sender's room.
#[derive(Debug)]
pub struct SocketIo {
    stamps: StampReader,
}

impl SocketIo {
    /// A dialect that has read nothing yet.
    pub fn new() -> Self {
        Self { stamps: StampReader::new() }
    }
}

impl Dialect for SocketIo {
    fn request_target(&self, path: &str, _: Option<&str>) -> String {
        with_query(path, "EIO=4&transport=websocket")
    }

    fn write_join(&self, room: &str, _: Option<&Position>, out: &mut Vec<u8>) {
        write!(out, r#"42{JOIN_ACK}["join","{room}"]"#).expect("writing to a Vec cannot fail");
    }

    fn write_message(&self, _: &str, stamp: &Stamp, payload: &Payload, _: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(MESSAGE);
        payload.write(stamp, out);
        out.push(b']');
    }

    fn read(&mut self, text: &[u8]) -> Incoming {
        if text.starts_with(MESSAGE) {
            return self.stamps.find(text).map_or(Incoming::Malformed, Incoming::Delivery);
        }
        // Engine.IO: 0 open, 1 close, 2 ping, 4 message; in that Socket.IO: 0 connected, 1 disconnected, 2 event,
        // 3 ack, 4 refused.
        match text {
            [b'0', ..] => Incoming::Answer(CONNECT),
            [b'2'] => Incoming::Answer(PONG),
            [b'4', b'0', ..] => Incoming::Greeting,
            [b'4', b'3', ..] => Incoming::Joined(Standing::default()),
            [b'1'] | [b'4', b'1'] => Incoming::Notice("disconnected".to_owned()),
            [b'4', b'4', reason @ ..] => {
                Incoming::Refused { code: String::from_utf8_lossy(reason).into_owned(), acknowledged: false }
            }
            [b'4', b'2', ..] => Incoming::Notice("another event".to_owned()),
            _ => Incoming::Malformed,
        }
    }

    fn is_correct(&self, text: &[u8], _: &str, stamp: &Stamp, payload: &Payload) -> bool {
        let data = text.strip_prefix(MESSAGE).and_then(|rest| rest.strip_suffix(b"]"));
        data.is_some_and(|data| payload.matches(stamp, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_upgrades_connects_joins_and_stays() {
        let mut dialect = SocketIo::new();
        let target = dialect.request_target("/socket.io/", Some("load-1"));
        assert_eq!(target, "/socket.io/?EIO=4&transport=websocket");
        let open =
            br#"0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#;
        assert_eq!(dialect.read(open), Incoming::Answer("40"));
        assert_eq!(dialect.read(br#"40{"sid":"y"}"#), Incoming::Greeting);
        let mut join = Vec::new();
        dialect.write_join("load-1", None, &mut join);
        assert_eq!(join, br#"420["join","load-1"]"#);
        assert_eq!(dialect.read(b"430[]"), Incoming::Joined(Standing::default()));
        assert_eq!(dialect.read(b"2"), Incoming::Answer("3"));
    }

    #[test]
    fn a_message_is_an_event_with_the_data_and_comes_back_the_same() {
        let stamp = Stamp { sender: 4, sequence: 2, intended_us: 77_000 };
        let payload = Payload::new(100, 9);
        let mut dialect = SocketIo::new();
        let mut text = Vec::new();
        dialect.write_message("load-1", &stamp, &payload, false, &mut text);
        let event: (String, serde_json::Value) = serde_json::from_slice(&text[2..]).unwrap();
        assert_eq!((event.0.as_str(), event.1["n"].as_u64()), ("m", Some(2)));
        assert_eq!(dialect.read(&text), Incoming::Delivery(stamp));
        assert!(dialect.is_correct(&text, "load-1", &stamp, &payload));
        text.insert(text.len() - 1, b' ');
        assert!(!dialect.is_correct(&text, "load-1", &stamp, &payload));
    }

    #[test]
    fn other_messages_are_told_apart() {
        let mut dialect = SocketIo::new();
        let refused = Incoming::Refused { code: r#"{"message":"no"}"#.into(), acknowledged: false };
        assert_eq!(dialect.read(br#"44{"message":"no"}"#), refused);
        assert_eq!(dialect.read(br#"42["news",1]"#), Incoming::Notice("another event".into()));
        assert_eq!(dialect.read(br#"42["m",{"x":1}]"#), Incoming::Malformed);
        assert_eq!(dialect.read(b"41"), Incoming::Notice("disconnected".into()));
        assert_eq!(dialect.read(b"hello"), Incoming::Malformed);
        assert_eq!(dialect.read(b""), Incoming::Malformed);
    }
}
