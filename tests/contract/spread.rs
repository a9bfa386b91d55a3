//! Forty connections on four shards: rooms, users and presence work as on one.
//!
//! The kernel spreads connections over the shards by a hash of their ports, so forty of them are on
//! all four but for a chance of one in twenty thousand, and on two at least for certain as good as.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::server::Server;
use crate::harness::token;

const CONNECTIONS: usize = 40;

#[track_caller]
fn crowd_in(server: &Server, room: &str) -> Vec<Client> {
    (0..CONNECTIONS)
        .map(|_| {
            let mut client = Client::connect(server);
            client.join(room);
            client
        })
        .collect()
}

#[test]
fn every_pair_of_members_hears_each_other() {
    let server = Server::with_shards(4);
    let mut crowd = crowd_in(&server, "r");
    for (number, speaker) in crowd.iter_mut().enumerate() {
        speaker.say("r", number);
    }
    for (own, listener) in crowd.iter_mut().enumerate() {
        let heard: BTreeSet<_> = (1..CONNECTIONS)
            .map(|_| listener.expect("room_message")["data"].as_u64().expect("a number"))
            .collect();
        let others: BTreeSet<_> = (0..CONNECTIONS as u64).filter(|number| *number != own as u64).collect();
        assert_eq!(heard, others, "each of the others once");
    }
}

#[test]
fn every_listener_hears_each_sender_in_order() {
    const MESSAGES: usize = 50;
    let server = Server::with_shards(4);
    let mut crowd = crowd_in(&server, "r");
    for number in 0..MESSAGES {
        crowd.iter_mut().for_each(|speaker| speaker.say("r", number));
    }
    for listener in &mut crowd {
        let mut next = std::collections::HashMap::<String, usize>::new();
        for _ in 0..MESSAGES * (CONNECTIONS - 1) {
            let event = listener.expect("room_message");
            let sender = event["senderId"].as_str().expect("a senderId").to_owned();
            let expected = next.entry(sender).or_default();
            assert_eq!(event["data"], *expected, "{}", event.text);
            *expected += 1;
        }
    }
}

#[test]
fn every_member_sees_every_coming_and_going_with_one_count() {
    let server = Server::with_shards(4);
    let mut crowd = crowd_in(&server, "r");
    let mut guest = Client::connect(&server);
    assert_eq!(guest.join("r")["memberCount"], CONNECTIONS + 1);
    let (user, socket) = (guest.user_id.clone(), guest.socket_id.clone());
    guest.vanish();
    for member in &mut crowd {
        for (kind, count) in [("user_joined_room", CONNECTIONS + 1), ("user_left_room", CONNECTIONS)] {
            let event =
                member.expect_that(kind, |event| event["type"] == kind && event["socketId"] == *socket);
            assert_eq!(
                (&event["userId"], &event["memberCount"]),
                (&json!(user), &json!(count)),
                "{}",
                event.text
            );
        }
    }
    for mut member in crowd.drain(..) {
        let listed = member.request(json!({"type": "room_members", "roomId": "r"}));
        assert_eq!(
            listed["memberCount"],
            listed["members"].as_array().expect("a list").len(),
            "{}",
            listed.text
        );
        member.leave("r");
    }
    assert_eq!(Client::connect(&server).join("r")["memberCount"], 1);
}

#[test]
fn a_user_on_every_shard_gets_each_message_once() {
    let server = Server::start(&[&token::REQUIRED[..], &[("SHARDS", "4")]].concat());
    let mut of_ann: Vec<_> =
        (0..CONNECTIONS).map(|_| Client::connect_as(&server, &token::of("ann"))).collect();
    let mut senders: Vec<_> =
        (0..8).map(|number| Client::connect_as(&server, &token::of(&number.to_string()))).collect();
    for sender in &mut senders {
        let me = sender.user_id.clone();
        sender.send(&json!({"type": "user_message", "targetUserId": "ann", "data": me}));
    }
    for connection in &mut of_ann {
        let heard: BTreeSet<_> =
            (0..8).map(|_| connection.expect("user_message")["senderId"].to_string()).collect();
        assert_eq!(heard.len(), 8, "each sender once");
        connection
            .drain()
            .iter()
            .for_each(|event| assert_ne!(event["type"], "user_message", "{}", event.text));
    }
}

#[test]
fn a_message_published_right_after_room_joined_arrives() {
    let server = Server::with_shards(4);
    let mut speaker = Client::connect(&server);
    let mut crowd: Vec<_> = (0..CONNECTIONS).map(|_| Client::connect(&server)).collect();
    for (number, listener) in crowd.iter_mut().enumerate() {
        let room = format!("r{number}");
        speaker.join(&room);
        listener.join(&room);
        speaker.say(&room, number);
        listener.expect_said(&room, number);
    }
}

#[test]
fn the_numbers_of_all_shards_are_summed() {
    let server = Server::with_shards(4);
    let crowd = crowd_in(&server, "r");
    let stats = server.get_json("/stats");
    assert_eq!((&stats["connections"], &stats["rooms"]), (&json!(CONNECTIONS), &json!(1)), "{stats}");
    drop(crowd);
    crate::harness::eventually("all connections are gone", || {
        let stats = server.get_json("/stats");
        (stats["connections"] == 0 && stats["rooms"] == 0).then_some(())
    });
}
