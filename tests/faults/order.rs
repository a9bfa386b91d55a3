//! Everybody publishes everywhere, joins meanwhile, comes back at the edge, and repeats on another instance.

use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::redis::RedisServer;
use crate::harness::token;
use crate::{
    assert_not_recovered, hear, history, instance, join_since, message, messages_of, pair, publish,
    wait_for_instances,
};

#[test]
fn publishers_on_all_instances_are_seen_in_one_order_without_a_gap() {
    const EACH: usize = 100;
    let redis = RedisServer::start();
    let servers = ["a", "b", "c"].map(|id| instance(&redis, id, &[("SHARDS", "2")]));
    wait_for_instances(&servers, 3);
    let mut clients: Vec<_> =
        servers.iter().flat_map(|server| [server, server]).map(Client::connect).collect();
    for client in &mut clients {
        client.join_with(json!({"type": "join_room", "roomId": "h", "echo": true}));
    }
    for number in 0..EACH {
        for (sender, client) in clients.iter_mut().enumerate() {
            client.say("h", json!([sender, number]));
        }
    }
    let heard: Vec<_> = clients.iter_mut().map(|client| hear(client, EACH * 6)).collect();
    assert!(heard.iter().all(|one| *one == heard[0]), "all see the same");
    let offsets: Vec<_> = heard[0].iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (1..=EACH as u64 * 6).collect::<Vec<_>>());
    for sender in 0..6 {
        let of_sender =
            heard[0].iter().filter(|(_, data)| data[0] == sender).map(|(_, data)| data[1].as_u64());
        assert!(of_sender.eq((0..EACH as u64).map(Some)), "each sender's own order is kept");
    }
    assert_eq!(history(&mut clients[0], "h"), heard[0].iter().cloned().collect());
}

#[test]
fn a_join_that_races_with_messages_goes_on_from_its_offset_without_a_gap() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[]);
    let mut speakers = [&a, &b].map(Client::connect);
    speakers.iter_mut().for_each(|speaker| drop(speaker.join("h")));
    let mut known = json!(null);
    for round in 0..15 {
        let ids: Vec<_> = speakers
            .iter_mut()
            .map(|speaker| (0..20).map(|_| speaker.ask(message("h", round))).collect::<Vec<_>>())
            .collect();
        let mut newcomer = Client::connect(if round % 2 == 0 { &a } else { &b });
        let request = match &known {
            Value::Null => json!({"type": "join_room", "roomId": "h"}),
            since => json!({"type": "join_room", "roomId": "h", "since": since}),
        };
        let joined = newcomer.join_with(request);
        for (speaker, ids) in speakers.iter_mut().zip(ids) {
            ids.iter().for_each(|id| assert_eq!(speaker.reply_to(id)["type"], "message_ack"));
        }
        let last = publish(&mut speakers[0], "h", "last");
        assert_eq!(last, 41 * (round + 1));
        let at = joined["offset"].as_u64().expect("where the room stands");
        let missed = known["offset"].as_u64().map_or(Vec::new(), |since| {
            assert_eq!(joined["recovered"], true, "{}", joined.text);
            assert_eq!(messages_of(&joined).first().map_or(since + 1, |(first, _)| *first), since + 1);
            messages_of(&joined)
        });
        let live = hear(&mut newcomer, (last - at) as usize);
        let all: Vec<_> = missed.iter().chain(&live).map(|(offset, _)| *offset).collect();
        assert_eq!(
            all,
            (last + 1 - all.len() as u64..=last).collect::<Vec<_>>(),
            "neither a gap nor a repetition"
        );
        known = json!({"epoch": joined["epoch"], "offset": last});
    }
}

#[test]
fn recovery_is_exact_at_the_edges_of_the_window_on_every_instance() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &[("HISTORY_SIZE", "5")]);
    let mut speaker = Client::connect(&a);
    let epoch = speaker.join("h")["epoch"].clone();
    (1..=8).for_each(|number| assert_eq!(publish(&mut speaker, "h", number), number));
    // On the instance that followed the room, and on one that has to read it.
    for server in [&a, &b] {
        let mut client = Client::connect(server);
        for (since, first) in [(3, 4), (4, 5), (7, 8), (8, 9)] {
            let joined = join_since(&mut client, "h", &epoch, since);
            assert_eq!(
                (&joined["recovered"], &joined["offset"]),
                (&json!(true), &json!(8)),
                "{}",
                joined.text
            );
            let expected: Vec<_> = (first..=8).map(|number| (number, json!(number))).collect();
            assert_eq!(messages_of(&joined), expected, "after {since}");
            client.leave("h");
        }
        for (since, reason) in [(2, "expired"), (0, "expired"), (9, "future"), (u64::MAX, "future")] {
            let joined = join_since(&mut client, "h", &epoch, since);
            assert_not_recovered(&joined, reason);
            assert_eq!((&joined["epoch"], &joined["offset"]), (&epoch, &json!(8)), "where it goes on from");
            client.leave("h");
        }
    }
}

#[test]
fn the_same_message_id_racing_on_two_instances_is_one_message() {
    let redis = RedisServer::start();
    let [a, b] = pair(&redis, &token::REQUIRED);
    let mut both = [&a, &b].map(|server| Client::connect_as(server, &token::of("ann")));
    let mut watchers = [&a, &b].map(|server| Client::connect_as(server, &token::of("bob")));
    both.iter_mut().chain(&mut watchers).for_each(|client| drop(client.join("h")));
    for number in 1..=60 {
        let id = format!("id-{number}");
        let wanted = json!({"type": "room_message", "roomId": "h", "data": number, "messageId": id});
        both.iter_mut().for_each(|client| client.send(&wanted));
        for client in &mut both {
            let reply = client.reply_to(&id);
            assert_eq!(
                (&reply["type"], &reply["offset"]),
                (&json!("message_ack"), &json!(number)),
                "{}",
                reply.text
            );
        }
    }
    let expected: Vec<_> = (1..=60).map(|number| (number, json!(number))).collect();
    for watcher in &mut watchers {
        assert_eq!(hear(watcher, 60), expected);
        let unasked = watcher.drain();
        assert!(unasked.iter().all(|event| event["type"] != "room_message"), "each once: {unasked:#?}");
    }
}
