use proptest::prelude::*;

use super::*;

const NOW: u64 = 5;
const ROOM: Channel<'static> = Channel::Room("t:1");

/// The text of the frame that `payload` becomes, or nothing if it is garbage.
fn foreign(channel: Channel<'_>, payload: &[u8]) -> Option<String> {
    let frame = foreign_frame(channel, payload, NOW, &mut Scratch::default())?;
    Some(String::from_utf8(frame::payload(&frame).to_vec()).expect("events are text"))
}

#[test]
fn data_of_other_programs_comes_out_byte_for_byte() {
    let data = "{ \"b\" : 1.50e+3,\t\"a\":\"\\u00e9\\/\", \"c\":12345678901234567890123 }";
    let payload = format!("{{\"x\":[1],\"data\":{data},\"messageId\":\"m\\n1\"}}");
    let expected = format!(
        "{{\"type\":\"room_message\",\"roomId\":\"t:1\",\"senderId\":\"server\",\"timestamp\":5,\
         \"messageId\":\"m\\n1\",\"data\":{data}}}"
    );
    assert_eq!(foreign(ROOM, payload.as_bytes()), Some(expected));
}

#[test]
fn each_channel_gets_its_shape() {
    let payload = br#"{"data":null,"messageId":"m"}"#;
    let user = r#"{"type":"user_message","senderId":"server","timestamp":5,"messageId":"m","data":null}"#;
    let global = r#"{"type":"global_message","senderId":"server","timestamp":5,"data":null}"#;
    assert_eq!(foreign(Channel::User("u"), payload).as_deref(), Some(user));
    assert_eq!(foreign(Channel::Global, payload).as_deref(), Some(global));
}

#[test]
fn what_is_no_publication_is_garbage() {
    let nested = format!("{{\"data\":{}", "[".repeat(100_000));
    let long_id = format!("{{\"data\":1,\"messageId\":\"{}\"}}", "x".repeat(65));
    for payload in [
        "{}",
        "{\"Data\":1}",
        "{\"data\":1}x",
        "{\"data\":1,",
        "{\"data\":1,\"data\":2}",
        "{\"data\":1,\"messageId\":17}",
        &long_id,
        &nested,
    ] {
        assert_eq!(foreign(ROOM, payload.as_bytes()), None, "{payload:.30}");
    }
    assert_eq!(foreign(ROOM, b"{\"data\":\"\xff\"}"), None);
    let fits = |bytes| format!("{{\"data\":\"{}\"}}", "x".repeat(bytes - "{\"data\":\"\"}".len()));
    assert!(foreign(ROOM, fits(PAYLOAD_BYTES).as_bytes()).is_some());
    assert_eq!(foreign(ROOM, fits(PAYLOAD_BYTES + 1).as_bytes()), None);
}

proptest! {
    #[test]
    fn any_bytes_give_json_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut payload = b"{\"data\":".to_vec();
        payload.extend_from_slice(&bytes);
        if let Some(event) = foreign(ROOM, &payload) {
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&event).is_ok());
        }
    }
}
