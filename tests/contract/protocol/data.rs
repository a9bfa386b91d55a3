//! `data` belongs to the application, every other field to the server.

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::server::Server;

with_one_shard_and_four!(data_comes_out_byte_for_byte, no_client_forges_a_field_of_the_server);

/// JSON values that lose something when they are parsed and written again.
const DELICATE: [&str; 22] = [
    "null",
    "true",
    "0",
    "-0",
    "-0.0",
    "1.0",
    "1e5",
    "1E+05",
    "0.1000",
    "123456789012345678901234567890",
    "3.14159265358979323846264338327950288",
    "18446744073709551616",
    "\"\"",
    r#""\u0041\/\b\f\n\r\t\"\\""#,
    r#""\ud83c\udfb2 and 🎲""#,
    "\"\u{7f}\u{2028}\u{feff}\"",
    "[]",
    "[ 1 ,2,\t3 ]",
    "{}",
    "{ \"b\" : 1 , \"a\" : { \"c\" : [ { } ] } }",
    "{\n  \"type\": \"error\",\r\n  \"senderId\": \"root\",\n  \"data\": {\"data\": \"}\"}\n}",
    r#"{"\u0061":1,"":2,"roomId":"x"}"#,
];

fn data_comes_out_byte_for_byte(shards: usize) {
    let server = Server::with_shards(shards);
    let mut sender = Client::connect(&server);
    let mut other = Client::connect(&server);
    sender.join("r");
    other.join("r");
    for data in DELICATE {
        // Wherever it stands among the fields, and whatever space is around it.
        for text in [
            format!(r#"{{"type":"room_message","roomId":"r","data":{data}}}"#),
            format!("{{ \"data\" :\n {data}\t, \"roomId\" : \"r\" , \"type\" : \"room_message\" }}"),
            format!(
                r#"{{"a":{{"data":0}},"roomId":"r","data":  {data} ,"type":"room_message","z":[{data}]}}"#
            ),
        ] {
            sender.send_text(&text);
            assert_eq!(other.expect("room_message").data(), data, "sent as {text}");
        }
        let user = json!(other.user_id);
        sender.send_text(&format!(r#"{{"type":"user_message","targetUserId":{user},"data": {data} }}"#));
        assert_eq!(other.expect("user_message").data(), data);
    }
    let long = format!("\"{}\"", "0123456789abcdef".repeat(2000));
    sender.send_text(&format!(r#"{{"type":"room_message","roomId":"r","data":{long}}}"#));
    assert_eq!(other.expect("room_message").data(), long);
}

fn no_client_forges_a_field_of_the_server(shards: usize) {
    let server = Server::with_shards(shards);
    let mut sender = Client::connect(&server);
    let mut other = Client::connect(&server);
    sender.join("r");
    other.join("r");
    sender.send(&json!({
        "type": "room_message", "roomId": "r", "messageId": "mine", "data": {"senderId": "root"},
        "senderId": "root", "senderSocketId": "0", "timestamp": 1, "offset": 9, "instanceId": "x",
    }));
    let event = other.expect("room_message");
    assert_eq!(event["senderId"], *sender.user_id, "{}", event.text);
    assert_eq!(event["senderSocketId"], *sender.socket_id, "{}", event.text);
    assert_eq!(event["messageId"], "mine", "{}", event.text);
    assert!(event["timestamp"].as_u64().is_some_and(|at| at > 1_600_000_000_000), "{}", event.text);
    assert!(event.get("offset").is_none() && event.get("instanceId").is_none(), "{}", event.text);
}
