//! Messages to a user, on all of its connections, and to everyone.

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::server::Server;
use crate::harness::token;

with_one_shard_and_four!(
    a_user_message_reaches_every_connection_of_the_user,
    a_user_may_write_to_its_own_other_connections,
    a_global_message_reaches_every_authenticated_connection,
);

fn with_tokens(shards: usize) -> Server {
    let shards = shards.to_string();
    Server::start(&[&token::REQUIRED[..], &[("SHARDS", &shards)]].concat())
}

fn a_user_message_reaches_every_connection_of_the_user(shards: usize) {
    let server = with_tokens(shards);
    let mut bob = Client::connect_as(&server, &token::of("bob"));
    let mut carol = Client::connect_as(&server, &token::of("carol"));
    let mut of_ann: Vec<_> = (0..8).map(|_| Client::connect_as(&server, &token::of("ann"))).collect();
    let ack = bob.request(json!({"type": "user_message", "targetUserId": "ann", "data": {"hi": 1}}));
    assert_eq!(ack["type"], "message_ack", "{}", ack.text);
    for connection in &mut of_ann {
        let event = connection.expect("user_message");
        assert_eq!((&event["senderId"], event.data().as_str()), (&json!("bob"), r#"{"hi":1}"#));
        assert_eq!(event["messageId"], ack["messageId"], "{}", event.text);
        assert!(event["timestamp"].as_u64().is_some_and(|at| at > 1_600_000_000_000), "{}", event.text);
    }
    of_ann.pop().expect("there are eight").vanish();
    bob.send(&json!({"type": "user_message", "targetUserId": "ann", "data": 2}));
    for connection in &mut of_ann {
        assert_eq!(connection.expect("user_message")["data"], 2, "each message comes once");
    }
    bob.send(&json!({"type": "user_message", "targetUserId": "carol", "data": 3}));
    assert_eq!(carol.expect("user_message")["data"], 3, "the others' messages are not hers");
}

fn a_user_may_write_to_its_own_other_connections(shards: usize) {
    let server = with_tokens(shards);
    let mut phone = Client::connect_as(&server, &token::of("ann"));
    let mut laptop = Client::connect_as(&server, &token::of("ann"));
    phone.send(&json!({"type": "user_message", "targetUserId": "ann", "data": "note"}));
    assert_eq!(laptop.expect("user_message")["data"], "note");
}

fn a_global_message_reaches_every_authenticated_connection(shards: usize) {
    let server = with_tokens(shards);
    let permitted = token::with_claims(json!({"sub": "crier", "permissions": ["broadcast"]}));
    let mut crier = Client::connect_as(&server, &permitted);
    let mut audience: Vec<_> =
        (0..10).map(|number| Client::connect_as(&server, &token::of(&format!("user-{number}")))).collect();
    let mut stranger = Client::connect(&server);
    audience[0].expect_refused(json!({"type": "global_message", "data": "mine"}), "forbidden");
    let ack = crier.request(json!({"type": "global_message", "data": "hear, hear"}));
    assert_eq!(ack["type"], "message_ack", "{}", ack.text);
    for listener in &mut audience {
        let event = listener.expect("global_message");
        assert_eq!((&event["senderId"], &event["data"]), (&json!("crier"), &json!("hear, hear")));
        assert!(event["timestamp"].as_u64().is_some(), "{}", event.text);
    }
    let success = stranger.request(json!({"type": "authenticate", "token": token::of("late")}));
    assert_eq!(success["type"], "authentication_success", "{}", success.text);
    crier.send(&json!({"type": "global_message", "data": "again"}));
    assert_eq!(stranger.expect("global_message")["data"], "again", "the first came before authentication");
}
