//! `connection_established`: the first message on every connection.

use std::collections::HashSet;

use crate::harness::client::Client;
use crate::harness::server::Server;
use crate::harness::token;

with_one_shard_and_four!(it_says_who_and_where_one_is, every_connection_has_its_own_ids);

fn it_says_who_and_where_one_is(shards: usize) {
    let shards = shards.to_string();
    let server = Server::start(&[
        ("SHARDS", &shards),
        ("INSTANCE_ID", "north-1"),
        ("MAX_MESSAGE_BYTES", "4096"),
        ("PING_INTERVAL", "7000"),
    ]);
    let greeting = Client::connect(&server).expect("connection_established");
    assert_eq!(greeting["instanceId"], "north-1", "{}", greeting.text);
    assert_eq!(greeting["protocol"], 1, "{}", greeting.text);
    assert_eq!(greeting["maxMessageBytes"], 4096, "{}", greeting.text);
    assert_eq!(greeting["heartbeatMs"], 7000, "{}", greeting.text);
    assert!(greeting["userId"].as_str().is_some_and(|id| !id.is_empty()), "{}", greeting.text);
}

fn every_connection_has_its_own_ids(shards: usize) {
    let server = Server::with_shards(shards);
    let clients: Vec<_> = (0..20).map(|_| Client::connect(&server)).collect();
    let sockets: HashSet<_> = clients.iter().map(|client| &client.socket_id).collect();
    let users: HashSet<_> = clients.iter().map(|client| &client.user_id).collect();
    assert_eq!((sockets.len(), users.len()), (20, 20), "anonymous users are made up one by one");
}

#[test]
fn it_names_no_user_before_authentication() {
    let server = Server::start(&token::REQUIRED);
    let greeting = Client::connect(&server).expect("connection_established");
    assert!(greeting.get("userId").is_none(), "{}", greeting.text);
}
