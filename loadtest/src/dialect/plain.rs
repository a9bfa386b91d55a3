//! Text rooms without a protocol: the room is in the request target, and messages are the data alone.

use super::{Dialect, Incoming, Joining, Position, with_query};
use crate::stamp::{Payload, Stamp, StampReader};

/// The dialect of servers that publish what a member sends, as it is, to the other members.
#[derive(Debug)]
pub struct Plain {
    stamps: StampReader,
}

impl Plain {
    /// A dialect that has read nothing yet.
    pub fn new() -> Self {
        Self { stamps: StampReader::new() }
    }
}

impl Dialect for Plain {
    fn joining(&self) -> Joining {
        Joining::Upgraded
    }

    fn request_target(&self, path: &str, room: Option<&str>) -> String {
        // A room's name consists of characters that need no escapes in a query.
        room.map_or_else(|| path.to_owned(), |room| with_query(path, &format!("room={room}")))
    }

    fn write_join(&self, _: &str, _: Option<&Position>, _: &mut Vec<u8>) {
        unreachable!("a connection is in its room from the upgrade on");
    }

    fn write_message(&self, _: &str, stamp: &Stamp, payload: &Payload, _: bool, out: &mut Vec<u8>) {
        payload.write(stamp, out);
    }

    fn read(&mut self, text: &[u8]) -> Incoming {
        self.stamps.find(text).map_or(Incoming::Malformed, Incoming::Delivery)
    }

    fn is_correct(&self, text: &[u8], _: &str, stamp: &Stamp, payload: &Payload) -> bool {
        payload.matches(stamp, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_joins_the_query() {
        let plain = Plain::new();
        assert_eq!(plain.request_target("/", Some("load-1")), "/?room=load-1");
        assert_eq!(plain.request_target("/chat?a=b", Some("load-1")), "/chat?a=b&room=load-1");
        assert_eq!(plain.request_target("/", None), "/");
    }

    #[test]
    fn a_message_comes_back_as_it_was_sent() {
        let stamp = Stamp { sender: 4, sequence: 2, intended_us: 77_000 };
        let payload = Payload::new(100, 9);
        let mut plain = Plain::new();
        let mut text = Vec::new();
        plain.write_message("load-1", &stamp, &payload, false, &mut text);
        assert_eq!(text.len(), 100);
        assert_eq!(plain.read(&text), Incoming::Delivery(stamp));
        assert!(plain.is_correct(&text, "load-1", &stamp, &payload));
        text.push(b' ');
        assert!(!plain.is_correct(&text, "load-1", &stamp, &payload));
        assert_eq!(plain.read(b"welcome"), Incoming::Malformed);
    }
}
