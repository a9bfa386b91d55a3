//! Every message of the protocol, every way to get one wrong, and `data` byte for byte.

use super::*;
use proptest::prelude::*;

/// Decodes `text` and compares with what is expected.
#[track_caller]
fn expect(text: &str, message_id: Option<&str>, command: Command<'_>) {
    assert_eq!(decode(text, &mut Scratch::default()), Ok(Request { message_id, command }), "{text}");
}

/// Decodes a text that is refused: code, `messageId`, and the words that its message must have.
#[track_caller]
fn refuse(text: &str, code: ErrorCode, message_id: Option<&str>, words: &str) {
    let mut scratch = Scratch::default();
    let rejection = decode(text, &mut scratch).expect_err(text);
    assert_eq!((rejection.code, rejection.message_id), (code, message_id), "{text}: {rejection:?}");
    assert!(rejection.message.contains(words), "{text}: {rejection:?}");
}

#[test]
fn every_message_is_understood() {
    let room = "table:42";
    expect(r#"{"type":"ping"}"#, None, Command::Ping);
    let token = Token("a.b.c");
    expect(r#"{"type":"authenticate","token":"a.b.c"}"#, None, Command::Authenticate { token });
    expect(
        r#"{"type":"join_room","roomId":"table:42","messageId":"1"}"#,
        Some("1"),
        Command::JoinRoom { room, since: None, members: false, echo: false },
    );
    expect(
        r#"{"echo":true,"members":true,"since":{"offset":7,"epoch":"e"},"roomId":"table:42","type":"join_room"}"#,
        None,
        Command::JoinRoom {
            room,
            since: Some(Position { epoch: "e", offset: 7 }),
            members: true,
            echo: true,
        },
    );
    expect(r#"{"type":"leave_room","roomId":"table:42"}"#, None, Command::LeaveRoom { room });
    expect(
        r#"{"type":"room_message","roomId":"table:42","data":{"roll":17}}"#,
        None,
        Command::RoomMessage { room, data: r#"{"roll":17}"# },
    );
    expect(
        r#"{"type":"user_message","targetUserId":"Zoë \"z\"","data":null}"#,
        None,
        Command::UserMessage { target: "Zoë \"z\"", data: "null" },
    );
    expect(r#"{"type":"global_message","data":"x"}"#, None, Command::GlobalMessage { data: "\"x\"" });
    expect(r#"{"type":"room_members","roomId":"table:42"}"#, None, Command::RoomMembers { room });
    expect(
        r#"{"type":"room_history","roomId":"table:42"}"#,
        None,
        Command::RoomHistory { room, since: None, limit: None, reverse: false },
    );
    let since = Some(Position { epoch: "e", offset: u64::MAX });
    expect(
        r#"{"type":"room_history","roomId":"table:42","since":{"epoch":"e","offset":18446744073709551615},
            "limit":300,"reverse":true}"#,
        None,
        Command::RoomHistory { room, since, limit: Some(300), reverse: true },
    );
}

#[test]
fn a_resume_has_a_wish_for_each_room() {
    let since = Some(Position { epoch: "e", offset: 7 });
    let first = ResumedRoom { room: "a", since, members: false, echo: true };
    let second = ResumedRoom { room: "b", since: None, members: true, echo: false };
    expect(
        r#"{"type":"resume","messageId":"m","rooms":[{"roomId":"a","since":{"epoch":"e","offset":7},"echo":true},
            {"roomId":"b","members":true,"x":[{}]}]}"#,
        Some("m"),
        Command::Resume { rooms: vec![first, second] },
    );
    expect(r#"{"type":"resume","rooms":[]}"#, None, Command::Resume { rooms: vec![] });
    let code = ErrorCode::InvalidMessage;
    refuse(r#"{"type":"resume"}"#, code, None, "rooms is missing: it must be a list");
    refuse(r#"{"type":"resume","rooms":{}}"#, code, None, "rooms is an object: it must be a list");
    refuse(r#"{"type":"resume","rooms":["a"]}"#, code, None, "an entry of rooms is a string");
    refuse(r#"{"type":"resume","rooms":[{}]}"#, code, None, "roomId is missing");
    let twice = r#"{"type":"resume","rooms":[{"roomId":"b"},{"roomId":"a"},{"roomId":"b"}]}"#;
    refuse(twice, code, None, "rooms has \"b\" twice: name each room once");
    refuse(r#"{"type":"resume","rooms":[{"roomId":"a b"}]}"#, ErrorCode::InvalidRoom, None, "1 to 128 bytes");
    let many = |count: usize| {
        let rooms: Vec<_> = (0..count).map(|number| format!(r#"{{"roomId":"{number}"}}"#)).collect();
        format!(r#"{{"type":"resume","rooms":[{}]}}"#, rooms.join(","))
    };
    assert!(decode(&many(limits::RESUME_ROOMS), &mut Scratch::default()).is_ok());
    refuse(&many(limits::RESUME_ROOMS + 1), code, None, "at most 1024 in one resume");
}

#[test]
fn unknown_fields_are_ignored_and_server_fields_cannot_be_forged() {
    expect(
        r#"{"type":"room_message","senderId":"admin","timestamp":1,"roomId":"r","data":{"senderId":"x"},"z":[{}]}"#,
        None,
        Command::RoomMessage { room: "r", data: r#"{"senderId":"x"}"# },
    );
}

#[test]
fn token_does_not_show_in_debug_output() {
    let mut scratch = Scratch::default();
    let request = decode(r#"{"type":"authenticate","token":"s3cret"}"#, &mut scratch).unwrap();
    assert!(!format!("{request:?}").contains("s3cret"));
}

#[test]
fn text_that_is_not_allowed_json_is_invalid_json() {
    let code = ErrorCode::InvalidJson;
    refuse("", code, None, "not JSON");
    refuse("hello", code, None, "not JSON");
    refuse(r#"{"type":"ping","messageId":"1""#, code, None, "not JSON");
    refuse(r#"{"type":"ping"} x"#, code, None, "not JSON");
    refuse("\u{feff}{\"type\":\"ping\"}", code, None, "not JSON");
    refuse(r#"{"type":"ping","messageId":"1","type":"ping"}"#, code, None, "key \"type\" is repeated");
    refuse(r#"{"type":"global_message","data":{"a":1,"a":2}}"#, code, None, "key \"a\" is repeated");
    refuse(r#"{"type":"global_message","data":1e400}"#, code, None, "range");
    refuse(r#"{"type":"global_message","data":"\ud800"}"#, code, None, "not JSON");
    let deep = format!(r#"{{"type":"global_message","data":{}{}}}"#, "[".repeat(32), "]".repeat(32));
    refuse(&deep, code, None, "at most 32 levels");
}

#[test]
fn message_must_be_an_object_with_a_known_type() {
    let code = ErrorCode::InvalidMessage;
    refuse("[]", code, None, "the message is a list: send an object");
    refuse("17", code, None, "the message is a number: send an object");
    refuse("null", code, None, "the message is null: send an object");
    refuse("{}", code, None, "type is missing: it must be a string");
    refuse(r#"{"type":7,"messageId":"m"}"#, code, Some("m"), "type is a number: it must be a string");
    refuse(
        r#"{"type":"dance","messageId":"m"}"#,
        ErrorCode::UnknownType,
        Some("m"),
        "\"dance\" is not known",
    );
    let long = format!(r#"{{"type":"{}"}}"#, "é".repeat(1000));
    let mut scratch = Scratch::default();
    let rejection = decode(&long, &mut scratch).unwrap_err();
    assert!(rejection.message.len() < 300, "a client's text is quoted in full");
}

#[test]
fn message_id_is_a_string_of_1_to_64_bytes() {
    let longest = "i".repeat(64);
    expect(&format!(r#"{{"type":"ping","messageId":"{longest}"}}"#), Some(&longest), Command::Ping);
    let code = ErrorCode::InvalidMessage;
    refuse(&format!(r#"{{"type":"ping","messageId":"{longest}x"}}"#), code, None, "has 65 bytes");
    refuse(r#"{"type":"ping","messageId":""}"#, code, None, "messageId has 0 bytes: it must have 1 to 64");
    refuse(r#"{"type":"ping","messageId":7}"#, code, None, "messageId is a number: it must be a string");
    refuse(r#"{"type":"ping","messageId":null}"#, code, None, "messageId is null: it must be a string");
}

#[test]
fn room_is_missing_or_mistyped_or_not_valid() {
    for kind in ["join_room", "leave_room", "room_message", "room_members", "room_history"] {
        let with = |room: &str| format!(r#"{{"type":"{kind}","messageId":"m"{room},"data":1}}"#);
        refuse(&with(""), ErrorCode::InvalidMessage, Some("m"), "roomId is missing");
        refuse(&with(r#","roomId":7"#), ErrorCode::InvalidMessage, Some("m"), "roomId is a number");
        for room in ["", "a b", "\\u0000", "a\\r\\nb", "*", "{}", "\u{202e}x", "é", "a/b", &"r".repeat(129)]
        {
            let text = with(&format!(r#","roomId":"{room}""#));
            refuse(&text, ErrorCode::InvalidRoom, Some("m"), "1 to 128 bytes");
        }
    }
}

#[test]
fn fields_that_are_missing_or_mistyped_are_named() {
    let cases = [
        (r#""type":"room_message","roomId":"r""#, "data is missing: it must be any JSON value"),
        (r#""type":"user_message","targetUserId":"u""#, "data is missing"),
        (r#""type":"global_message""#, "data is missing"),
        (r#""type":"user_message","data":1"#, "targetUserId is missing: it must be a string"),
        (r#""type":"user_message","data":1,"targetUserId":[]"#, "targetUserId is a list"),
        (r#""type":"user_message","data":1,"targetUserId":"""#, "targetUserId has 0 bytes"),
        (r#""type":"authenticate""#, "token is missing"),
        (r#""type":"authenticate","token":{}"#, "token is an object: it must be a string"),
        (r#""type":"join_room","roomId":"r","echo":1"#, "echo is a number: it must be true or false"),
        (r#""type":"join_room","roomId":"r","members":"yes""#, "members is a string"),
        (r#""type":"join_room","roomId":"r","since":7"#, "since is a number: it must be an object"),
        (r#""type":"join_room","roomId":"r","since":{"offset":1}"#, "since.epoch is missing"),
        (r#""type":"join_room","roomId":"r","since":{"epoch":1,"offset":1}"#, "since.epoch is a number"),
        (r#""type":"join_room","roomId":"r","since":{"epoch":"","offset":1}"#, "since.epoch has 0 bytes"),
        (r#""type":"join_room","roomId":"r","since":{"epoch":"e"}"#, "since.offset is missing"),
        (r#""type":"join_room","roomId":"r","since":{"epoch":"e","offset":-1}"#, "since.offset is a number"),
        (r#""type":"join_room","roomId":"r","since":{"epoch":"e","offset":1.5}"#, "since.offset is a number"),
        (
            r#""type":"room_history","roomId":"r","limit":0"#,
            "limit is a number: it must be a whole number from 1",
        ),
        (r#""type":"room_history","roomId":"r","limit":4294967296"#, "limit is a number"),
        (r#""type":"room_history","roomId":"r","reverse":null"#, "reverse is null"),
    ];
    for (fields, words) in cases {
        let text = format!(r#"{{{fields},"messageId":"m"}}"#);
        refuse(&text, ErrorCode::InvalidMessage, Some("m"), words);
    }
}

#[test]
fn data_comes_out_byte_for_byte() {
    for data in [
        "{ \"a\" :\t[ 1 ,\r\n2 ] }",
        "12345678901234567890123456789",
        "1.0e5",
        "-0",
        "1E+05",
        "0.10",
        r#""\u0041\/\ud83c\udfb2é""#,
        r#"{"data":{"data":"}"},"type":"ping","b":"\"]}{["}"#,
        "[]",
        "[[],[{}],{\"a\":[]}]",
        "\"\"",
        "false",
    ] {
        for (before, after) in [("", ""), (" ", "  "), ("\n\t", "\r\n")] {
            for rest in ["", r#","x":{"data":0}"#] {
                let text = format!(
                    r#"{{"a":["data",{{"data":1}}],"type":"global_message","data":{before}{data}{after}{rest}}}"#
                );
                expect(&text, None, Command::GlobalMessage { data });
            }
        }
    }
}

#[test]
fn publications_of_other_programs_need_data_only() {
    let decoded = |text: &str| {
        let mut scratch = Scratch::default();
        let decoded = decode_publication(text, &mut scratch);
        decoded
            .map(|Publication { message_id, data }| (message_id.map(str::to_owned), data.to_owned()))
            .map_err(|r| r.code)
    };
    assert_eq!(decoded(r#"{"data":{"roll": 17}}"#), Ok((None, r#"{"roll": 17}"#.to_owned())));
    let with_id = decoded(r#"{"type":"x","messageId":"m","data":1.0}"#);
    assert_eq!(with_id, Ok((Some("m".to_owned()), "1.0".to_owned())));
    assert_eq!(decoded(r#"{"roll":17}"#), Err(ErrorCode::InvalidMessage));
    assert_eq!(decoded(r#"{"data":1,"messageId":7}"#), Err(ErrorCode::InvalidMessage));
    assert_eq!(decoded(r#"{"data":1"#), Err(ErrorCode::InvalidJson));
}

/// White space as JSON allows it.
fn space() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ \t\r\n]{0,3}").unwrap()
}

/// JSON in odd but valid spellings. Keys are numbered, so that none is repeated.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?",
        "\"([a-z{}:,\\[\\] é🎲]|\\\\[\"\\\\/bfnrt]|\\\\u00[0-9a-fA-F]{2}|\\\\ud83c\\\\udfb2){0,20}\"",
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let element = (space(), inner, space()).prop_map(|(before, value, after)| before + &value + &after);
        let elements = proptest::collection::vec(element, 0..6);
        (elements, any::<bool>(), space()).prop_map(|(elements, is_object, space)| {
            if !is_object {
                return format!("[{}]", if elements.is_empty() { space } else { elements.join(",") });
            }
            let field = |(i, value): (usize, &String)| format!("{space}\"k\\u003{i}{{\"{space}:{value}");
            let fields: Vec<String> = elements.iter().enumerate().map(field).collect();
            format!("{{{}{space}}}", fields.join(","))
        })
    })
}

proptest! {
    #[test]
    fn any_data_comes_out_byte_for_byte(
        data in any_json(), other in any_json(), before in space(), after in space(), data_first: bool,
    ) {
        let data_field = format!("\"data\"{after}:{before}{data}{after}");
        let other_field = format!("{before}\"other\":{other}");
        let (one, two) = if data_first { (&data_field, &other_field) } else { (&other_field, &data_field) };
        let text = format!(r#"{{"type":"room_message",{one},"roomId":"r",{two}}}"#);
        let mut scratch = Scratch::default();
        let expected = Request { message_id: None, command: Command::RoomMessage { room: "r", data: &data } };
        prop_assert_eq!(decode(&text, &mut scratch), Ok(expected));
    }

    #[test]
    fn no_text_makes_it_panic(text in "[\\PC{}\\[\\]\",:\\\\]{0,80}|\\{\"(type|data|roomId)\":.{0,40}\\}") {
        let mut scratch = Scratch::default();
        if let Err(rejection) = decode(&text, &mut scratch) {
            prop_assert!(!rejection.message.is_empty());
        }
    }
}
