//! Plain JSON that other programs publish becomes the event that clients receive.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes of one publication of another program: as large as anyone would want to send to browsers.
pub const PAYLOAD_BYTES: usize = 1 << 20;

/// Bytes of a `messageId`, as for clients.
const MESSAGE_ID_BYTES: std::ops::RangeInclusive<usize> = 1..=64;

/// The `senderId` of what no client has sent.
const SENDER: &str = "server";

/// For whom a publication is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience<'a> {
    /// The members of the room with this name.
    Room(&'a str),
    /// One user's connections.
    User,
    /// Everyone.
    Global,
}

/// What another program may publish. Other fields are ignored.
#[derive(Deserialize)]
struct Publication<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow, rename = "messageId")]
    message_id: Option<&'a RawValue>,
}

/// The event's JSON text for a publication `payload` at `timestamp` (milliseconds since 1970), or
/// nothing if `payload` is not a JSON object with `data`. `data` is taken over byte for byte; a
/// `messageId` that is not a string of 1 to 64 bytes is left out.
pub fn event(audience: Audience<'_>, payload: &[u8], timestamp: u64) -> Option<String> {
    if payload.len() > PAYLOAD_BYTES || payload.first() != Some(&b'{') {
        return None;
    }
    let publication: Publication = serde_json::from_slice(payload).ok()?;
    let mut event = String::with_capacity(payload.len() + 192);
    match audience {
        Audience::Room(room) => {
            // A room's name needs no escapes (see `RoomId`).
            event.push_str(r#"{"type":"room_message","roomId":""#);
            event.push_str(room);
            event.push('"');
        }
        Audience::User => event.push_str(r#"{"type":"user_message""#),
        Audience::Global => event.push_str(r#"{"type":"global_message""#),
    }
    event.push_str(&format!(r#","senderId":"{SENDER}","timestamp":{timestamp}"#));
    if audience != Audience::Global
        && let Some(id) = publication.message_id.filter(|id| is_message_id(id))
    {
        event.push_str(r#","messageId":"#);
        event.push_str(id.get());
    }
    event.push_str(r#","data":"#);
    event.push_str(publication.data.get());
    event.push('}');
    Some(event)
}

fn is_message_id(raw: &RawValue) -> bool {
    serde_json::from_str::<String>(raw.get()).is_ok_and(|id| MESSAGE_ID_BYTES.contains(&id.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: Audience<'static> = Audience::Room("t:1");

    #[test]
    fn data_comes_out_byte_for_byte() {
        let data = "{ \"b\" : 1.50e+3,\t\"a\":\"\\u00e9\\/\", \"b\":12345678901234567890123 }";
        let payload = format!("{{\"x\":[1],\"data\":{data},\"messageId\":\"m\\n1\"}}");
        let expected = format!(
            "{{\"type\":\"room_message\",\"roomId\":\"t:1\",\"senderId\":\"server\",\"timestamp\":5,\
             \"messageId\":\"m\\n1\",\"data\":{data}}}"
        );
        assert_eq!(event(ROOM, payload.as_bytes(), 5), Some(expected));
    }

    #[test]
    fn each_audience_gets_its_shape() {
        let payload = br#"{"data":null,"messageId":"m"}"#;
        let user = r#"{"type":"user_message","senderId":"server","timestamp":5,"messageId":"m","data":null}"#;
        let global = r#"{"type":"global_message","senderId":"server","timestamp":5,"data":null}"#;
        assert_eq!(event(Audience::User, payload, 5).as_deref(), Some(user));
        assert_eq!(event(Audience::Global, payload, 5).as_deref(), Some(global));
    }

    #[test]
    fn an_unfit_message_id_is_left_out() {
        for id in ["17", "\"\"", "null", &format!("\"{}\"", "x".repeat(65))] {
            let payload = format!("{{\"messageId\":{id},\"data\":1}}");
            let event = event(ROOM, payload.as_bytes(), 5).expect("valid without the id");
            assert!(!event.contains("messageId"), "{event}");
        }
    }

    #[test]
    fn the_rest_is_garbage() {
        let nested = format!("{{\"data\":{}", "[".repeat(100_000));
        for payload in
            ["", "hello", "{}", "{\"Data\":1}", "{\"data\":1}x", " {\"data\":1}", "{\"data\":1,", &nested]
        {
            assert_eq!(event(ROOM, payload.as_bytes(), 5), None, "{:.20}", payload);
        }
        assert_eq!(event(ROOM, b"{\"data\":\"\xff\"}", 5), None);
        assert_eq!(event(ROOM, b"{\"data\":1,\"data\":2}", 5), None, "whose data would it be?");
        let long = format!("{{\"data\":\"{}\"}}", "x".repeat(PAYLOAD_BYTES));
        assert_eq!(event(ROOM, long.as_bytes(), 5), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_valid_json_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut payload = b"{\"data\":".to_vec();
            payload.extend_from_slice(&bytes);
            if let Some(event) = event(ROOM, &payload, 5) {
                prop_assert!(serde_json::from_str::<&RawValue>(&event).is_ok());
            }
        }
    }
}
