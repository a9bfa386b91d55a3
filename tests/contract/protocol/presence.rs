//! Who is in a room: the events of coming and going, counts, and lists.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::client::{Client, Event};
use crate::harness::server::Server;
use crate::harness::token;

with_one_shard_and_four!(
    members_hear_who_comes_and_goes_with_the_right_count,
    a_connection_that_dies_leaves_its_rooms,
    a_connection_that_closes_leaves_its_rooms,
    the_list_of_members_is_complete,
    a_user_with_two_connections_is_one_member,
    counts_are_right_after_many_joins_and_deaths_at_once,
);

#[track_caller]
fn assert_presence(event: &Event, who: (&str, &str), count: u64) {
    assert_eq!((&event["userId"], &event["socketId"]), (&json!(who.0), &json!(who.1)), "{}", event.text);
    assert_eq!(event["memberCount"], count, "{}", event.text);
}

/// The user ids of a list of members.
fn users(members: &Value) -> BTreeSet<String> {
    let members = members.as_array().expect("a list of members");
    members.iter().map(|member| member["userId"].as_str().expect("a userId").to_owned()).collect()
}

fn members_hear_who_comes_and_goes_with_the_right_count(shards: usize) {
    let server = Server::with_shards(shards);
    let mut first = Client::connect(&server);
    assert_eq!(first.join("r")["memberCount"], 1);
    let mut others = Vec::new();
    for count in 2..=5 {
        let mut other = Client::connect(&server);
        assert_eq!(other.join("r")["memberCount"], count);
        let event = first.expect("user_joined_room");
        assert_eq!(event["roomId"], "r");
        assert_presence(&event, (&other.user_id, &other.socket_id), count);
        others.push(other);
    }
    for (mut other, count) in others.into_iter().zip([4, 3, 2, 1]) {
        other.leave("r");
        let event = first.expect("user_left_room");
        assert_eq!(event["roomId"], "r");
        assert_presence(&event, (&other.user_id, &other.socket_id), count);
        let about_itself = other
            .drain()
            .into_iter()
            .find(|event| event["userId"] == *other.user_id && event["type"] != "connection_established");
        assert!(about_itself.is_none(), "told about itself: {about_itself:?}");
    }
    first.drain().iter().for_each(|event| assert_ne!(event["type"], "user_left_room", "{}", event.text));
}

fn a_connection_that_dies_leaves_its_rooms(shards: usize) {
    let server = Server::with_shards(shards);
    let mut witness = Client::connect(&server);
    let mut dies = Client::connect(&server);
    for room in ["one", "two"] {
        witness.join(room);
        dies.join(room);
    }
    let who = (dies.user_id.clone(), dies.socket_id.clone());
    dies.vanish();
    for room in ["one", "two"] {
        let event =
            witness.expect_that(room, |event| event["type"] == "user_left_room" && event["roomId"] == room);
        assert_presence(&event, (&who.0, &who.1), 1);
    }
}

fn a_connection_that_closes_leaves_its_rooms(shards: usize) {
    let server = Server::with_shards(shards);
    let mut witness = Client::connect(&server);
    let mut polite = Client::connect(&server);
    witness.join("r");
    polite.join("r");
    let who = (polite.user_id.clone(), polite.socket_id.clone());
    assert_eq!(polite.close(), 1000);
    assert_presence(&witness.expect("user_left_room"), (&who.0, &who.1), 1);
}

fn the_list_of_members_is_complete(shards: usize) {
    let server = Server::with_shards(shards);
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(&server)).collect();
    let everyone: BTreeSet<_> = clients.iter().map(|client| client.user_id.clone()).collect();
    for client in &mut clients[..7] {
        let plain = client.join("r");
        assert!(plain.get("members").is_none(), "nobody asked for it: {}", plain.text);
    }
    let joined = clients[7].join_with(json!({"type": "join_room", "roomId": "r", "members": true}));
    assert_eq!(users(&joined["members"]), everyone, "{}", joined.text);
    let listed = clients[0].request(json!({"type": "room_members", "roomId": "r"}));
    assert_eq!(
        (&listed["type"], &listed["roomId"]),
        (&json!("room_members"), &json!("r")),
        "{}",
        listed.text
    );
    assert_eq!(listed["memberCount"], 8, "{}", listed.text);
    assert_eq!(users(&listed["members"]), everyone, "{}", listed.text);
}

fn a_user_with_two_connections_is_one_member(shards: usize) {
    let shards = shards.to_string();
    let server = Server::start(&[&token::REQUIRED[..], &[("SHARDS", &shards)]].concat());
    let mut witness = Client::connect_as(&server, &token::of("witness"));
    witness.join("r");
    let mut phone = Client::connect_as(&server, &token::of("ann"));
    let mut laptop = Client::connect_as(&server, &token::of("ann"));
    assert_eq!(phone.join("r")["memberCount"], 2);
    assert_eq!(witness.expect("user_joined_room")["userId"], "ann");
    let joined = laptop.join_with(json!({"type": "join_room", "roomId": "r", "members": true}));
    assert_eq!(joined["memberCount"], 2, "{}", joined.text);
    assert_eq!(users(&joined["members"]).len(), 2, "{}", joined.text);

    phone.say("r", "from the phone");
    laptop.expect_said("r", "from the phone");
    phone.vanish();
    laptop.leave("r");
    let left = witness.expect("user_left_room");
    assert_eq!((&left["userId"], &left["memberCount"]), (&json!("ann"), &json!(1)), "{}", left.text);
    witness.drain().iter().for_each(|event| {
        assert!(event["type"] != "user_joined_room" && event["type"] != "user_left_room", "{}", event.text);
    });
}

fn counts_are_right_after_many_joins_and_deaths_at_once(shards: usize) {
    let server = Server::with_shards(shards);
    let mut witness = Client::connect(&server);
    witness.join("r");
    let mut crowd: Vec<_> = (0..40).map(|_| Client::connect(&server)).collect();
    for client in &mut crowd {
        client.ask(json!({"type": "join_room", "roomId": "r"}));
    }
    for client in &mut crowd {
        client.expect("room_joined");
    }
    let counts: BTreeSet<_> =
        (0..40).map(|_| witness.expect("user_joined_room")["memberCount"].as_u64()).collect();
    assert_eq!(counts, (2..=41).map(Some).collect(), "each join has its own count");
    crowd.into_iter().for_each(Client::vanish);
    let counts: Vec<_> = (0..40).map(|_| witness.expect("user_left_room")["memberCount"].as_u64()).collect();
    assert_eq!(counts, (1..=40).rev().map(Some).collect::<Vec<_>>(), "each leave has its own count");
    assert_eq!(witness.join("r")["memberCount"], 1);
}

#[test]
fn the_list_of_members_has_the_names_of_tokens() {
    let server = Server::start(&token::REQUIRED);
    let named = token::with_claims(json!({"sub": "ann", "name": "Ann of \"Green\" Gables"}));
    let mut ann = Client::connect_as(&server, &named);
    ann.join("r");
    let mut bob = Client::connect_as(&server, &token::of("bob"));
    let joined = bob.join_with(json!({"type": "join_room", "roomId": "r", "members": true}));
    let members = joined["members"].as_array().expect("a list").clone();
    let of = |user: &str| members.iter().find(|member| member["userId"] == user).expect("the member").clone();
    assert_eq!(of("ann")["name"], "Ann of \"Green\" Gables", "{}", joined.text);
    assert!(of("bob").get("name").is_none(), "{}", joined.text);
}
