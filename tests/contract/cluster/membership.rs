//! Who is in a room, over all instances, and what an instance subscribes to for it.

use serde_json::json;

use super::{pair, wait_for_instances};
use crate::harness::client::Client;
use crate::harness::eventually;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::token;

#[test]
fn members_of_all_instances_are_counted_listed_and_announced() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let (mut ann, mut bob, mut carol) = (Client::connect(&a), Client::connect(&b), Client::connect(&b));
    assert_eq!(ann.join("r")["memberCount"], 1);
    assert_eq!(bob.join("r")["memberCount"], 2);
    let joined = carol.join_with(json!({"type": "join_room", "roomId": "r", "members": true}));
    assert_eq!(joined["memberCount"], 3, "{}", joined.text);
    for client in [&ann, &bob, &carol] {
        assert!(joined["members"].to_string().contains(&client.user_id), "{}", joined.text);
    }
    for (who, count) in [(&bob, 2), (&carol, 3)] {
        let event = ann.expect("user_joined_room");
        assert_eq!(
            (&event["userId"], &event["memberCount"]),
            (&json!(who.user_id), &json!(count)),
            "{}",
            event.text
        );
    }
    let listed = ann.request(json!({"type": "room_members", "roomId": "r"}));
    assert_eq!(listed["members"].as_array().map(Vec::len), Some(3), "{}", listed.text);
    let gone = carol.user_id.clone();
    carol.vanish();
    for witness in [&mut ann, &mut bob] {
        let event = witness.expect("user_left_room");
        assert_eq!((&event["userId"], &event["memberCount"]), (&json!(gone), &json!(2)), "{}", event.text);
    }
}

#[test]
fn a_user_on_two_instances_is_one_member_until_its_last_connection_goes() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &token::REQUIRED);
    let mut witness = Client::connect_as(&a, &token::of("witness"));
    witness.join("r");
    let mut phone = Client::connect_as(&a, &token::of("ann"));
    let mut laptop = Client::connect_as(&b, &token::of("ann"));
    assert_eq!(phone.join("r")["memberCount"], 2);
    assert_eq!(laptop.join("r")["memberCount"], 2, "the same user");
    phone.leave("r");
    laptop.leave("r");
    let left = witness.expect("user_left_room");
    assert_eq!((&left["userId"], &left["memberCount"]), (&json!("ann"), &json!(1)), "{}", left.text);
    let events = witness.drain();
    let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!((count("user_joined_room"), count("user_left_room")), (1, 0), "{events:#?}");
}

#[test]
fn an_instance_subscribes_to_a_room_only_while_it_has_members() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let channel = "tableforge:rooms:table-42";
    assert_eq!(redis.subscribers(channel), 0);
    let (mut ann, mut bob, mut carol) = (Client::connect(&a), Client::connect(&b), Client::connect(&b));
    ann.join("table-42");
    assert_eq!(redis.subscribers(channel), 1, "the subscription is active once room_joined is here");
    bob.join("table-42");
    carol.join("table-42");
    assert_eq!(redis.subscribers(channel), 2, "one for each instance");
    bob.leave("table-42");
    ann.leave("table-42");
    eventually("a has left the channel", || (redis.subscribers(channel) == 1).then_some(()));
    carol.vanish();
    eventually("b has left the channel", || (redis.subscribers(channel) == 0).then_some(()));
}

#[test]
fn an_instance_is_not_ready_before_its_link_to_redis_is_up() {
    let redis = RedisServer::start();
    let port = redis.port.to_string();
    for _ in 0..10 {
        let server = Server::start(&[("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &port)]);
        let mut client = Client::connect(&server);
        client.join("r");
        assert_eq!(
            redis.subscribers("tableforge:rooms:r"),
            1,
            "the first client of a ready instance is subscribed"
        );
        let heard = client.drain();
        assert!(
            heard.iter().all(|event| event["type"] != "cluster_status"),
            "nothing has changed: {heard:#?}"
        );
    }
}

#[test]
fn an_instance_subscribes_to_a_user_only_while_it_has_connections_of_it() {
    let redis = RedisServer::start();
    let [a, _b] = pair(&redis, &token::REQUIRED);
    let channel = "tableforge:users:ann";
    let phone = Client::connect_as(&a, &token::of("ann"));
    let laptop = Client::connect_as(&a, &token::of("ann"));
    assert_eq!(redis.subscribers(channel), 1);
    phone.close();
    laptop.vanish();
    eventually("a has left the channel", || (redis.subscribers(channel) == 0).then_some(()));
}

#[test]
fn an_instance_that_is_killed_is_dropped_and_its_members_leave() {
    let redis = RedisServer::start();
    let [a, mut b] = pair(&redis, &[]);
    let mut ann = Client::connect(&a);
    ann.join("r");
    let mut lost: Vec<_> = (0..3).map(|_| Client::connect(&b)).collect();
    for client in &mut lost {
        client.join("r");
        ann.expect("user_joined_room");
    }
    b.process.kill();
    let mut left: Vec<_> = (0..3).map(|_| ann.expect("user_left_room")).collect();
    left.sort_by_key(|event| std::cmp::Reverse(event["memberCount"].as_u64()));
    let counts: Vec<_> = left.iter().map(|event| event["memberCount"].as_u64()).collect();
    assert_eq!(counts, [Some(3), Some(2), Some(1)], "{left:#?}");
    for client in &lost {
        assert!(
            left.iter().any(|event| event["userId"] == *client.user_id),
            "{} left: {left:#?}",
            client.user_id
        );
    }
    wait_for_instances(&a, 1);
    let listed = ann.join_with(json!({"type": "join_room", "roomId": "r", "members": true}));
    assert_eq!((&listed["memberCount"], listed["members"].as_array().map(Vec::len)), (&json!(1), Some(1)));
    let heard = ann.drain();
    assert!(heard.iter().all(|event| event["type"] != "user_left_room"), "each leaves once: {heard:#?}");
}

#[test]
fn an_instance_that_is_drained_is_dropped_at_once_and_its_members_leave() {
    let redis = RedisServer::start();
    // So long that only a farewell can be why it is gone.
    let [a, mut b] = pair(&redis, &[("INACTIVE_THRESHOLD", "600000")]);
    let (mut ann, mut bob) = (Client::connect(&a), Client::connect(&b));
    ann.join("r");
    bob.join("r");
    b.terminate();
    let left = ann.expect("user_left_room");
    assert_eq!((&left["userId"], &left["memberCount"]), (&json!(bob.user_id), &json!(1)), "{}", left.text);
    wait_for_instances(&a, 1);
}
