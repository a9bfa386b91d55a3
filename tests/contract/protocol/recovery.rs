//! Coming back: `since` in `join_room`, `resume`, and what follows live without a gap or a duplicate.

use serde_json::{Value, json};

use super::history::{offsets, publish, server};
use crate::harness::client::{Client, Event};
use crate::harness::server::Server;
use crate::harness::token;

with_one_shard_and_four!(
    recovery_is_exact_at_the_edges_of_the_window,
    what_was_missed_is_what_others_got_and_includes_ones_own,
    a_room_outlives_its_members,
    more_than_a_reply_may_hold_is_read_in_pages,
    a_thousand_members_come_back_at_once,
    joining_while_others_publish_leaves_no_gap,
    a_resume_answers_for_every_room_and_sums_up,
    a_resume_may_be_pipelined,
    many_large_recoveries_do_not_close_the_client,
);

#[track_caller]
fn join_since(client: &mut Client, room: &str, epoch: &Value, offset: u64) -> Event {
    let since = json!({"epoch": epoch, "offset": offset});
    client.join_with(json!({"type": "join_room", "roomId": room, "since": since}))
}

#[track_caller]
fn assert_not_recovered(joined: &Event, reason: &str) {
    assert_eq!((&joined["recovered"], &joined["reason"]), (&json!(false), &json!(reason)), "{}", joined.text);
    assert!(joined.get("messages").is_none(), "never in part: {}", joined.text);
}

fn recovery_is_exact_at_the_edges_of_the_window(shards: usize) {
    let server = server(shards, &[("HISTORY_SIZE", "5")]);
    let (mut speaker, mut client) = (Client::connect(&server), Client::connect(&server));
    let epoch = speaker.join("r")["epoch"].clone();
    (1..=8).for_each(|number| _ = publish(&mut speaker, "r", number));
    for (since, expected) in [(3, vec![4, 5, 6, 7, 8]), (4, vec![5, 6, 7, 8]), (7, vec![8]), (8, vec![])] {
        let joined = join_since(&mut client, "r", &epoch, since);
        assert_eq!(joined["recovered"], true, "{}", joined.text);
        assert_eq!((&joined["epoch"], &joined["offset"]), (&epoch, &json!(8)));
        assert_eq!(offsets(&joined), expected);
        client.leave("r");
    }
    for (since, reason) in [(0, "expired"), (2, "expired"), (9, "future"), (u64::MAX, "future")] {
        let joined = join_since(&mut client, "r", &epoch, since);
        assert_not_recovered(&joined, reason);
        assert_eq!((&joined["epoch"], &joined["offset"]), (&epoch, &json!(8)), "where it goes on from");
        client.leave("r");
    }
    for epoch in ["0123456789abcdef", "x"] {
        assert_not_recovered(&join_since(&mut client, "r", &json!(epoch), 8), "epoch");
        client.leave("r");
    }
    let without = client.join("r");
    assert_eq!((&without["epoch"], &without["offset"]), (&epoch, &json!(8)));
    assert!(without.get("recovered").is_none() && without.get("messages").is_none(), "{}", without.text);
}

fn what_was_missed_is_what_others_got_and_includes_ones_own(shards: usize) {
    let server = server(shards, &[]);
    let (mut listener, mut speaker) = (Client::connect(&server), Client::connect(&server));
    let epoch = listener.join("r")["epoch"].clone();
    speaker.join("r");
    (1..=5).for_each(|number| _ = publish(&mut speaker, "r", json!({"n": number, "s": "\u{e9}\""})));
    let live: Vec<_> = (0..5).map(|_| listener.expect("room_message").text).collect();
    speaker.leave("r");
    let joined = join_since(&mut speaker, "r", &epoch, 0);
    assert!(joined.text.contains(&live.join(",")), "byte for byte: {}", joined.text);
    publish(&mut listener, "r", "later");
    assert_eq!(speaker.expect("room_message")["offset"], 6, "the first live one is the next");
}

fn a_room_outlives_its_members(shards: usize) {
    let server = server(shards, &[]);
    let mut first = Client::connect(&server);
    let epoch = first.join("r")["epoch"].clone();
    publish(&mut first, "r", "kept");
    first.leave("r");
    let joined = join_since(&mut Client::connect(&server), "r", &epoch, 0);
    assert_eq!((&joined["recovered"], offsets(&joined)), (&json!(true), vec![1]), "{}", joined.text);
}

fn more_than_a_reply_may_hold_is_read_in_pages(shards: usize) {
    let server = server(shards, &[("OUTBOX_BYTES", "131072")]);
    let (mut speaker, mut client) = (Client::connect(&server), Client::connect(&server));
    let epoch = speaker.join("r")["epoch"].clone();
    (0..15).for_each(|_| _ = publish(&mut speaker, "r", "x".repeat(20_000).as_str()));
    assert_not_recovered(&join_since(&mut client, "r", &epoch, 0), "too_much");
    let joined = join_since(&mut client, "r", &epoch, 4);
    assert_eq!(
        offsets(&joined),
        (5..=15).collect::<Vec<_>>(),
        "more than an outbox, and the connection goes on"
    );
    publish(&mut speaker, "r", "x".repeat(60_000).as_str());
    assert_eq!(client.expect("room_message")["offset"], 16);
}

fn a_thousand_members_come_back_at_once(shards: usize) {
    const MEMBERS: usize = 1000;
    let server = server(shards, &[]);
    let mut speaker = Client::connect(&server);
    let epoch = speaker.join("r")["epoch"].clone();
    (1..=20).for_each(|number| _ = publish(&mut speaker, "r", number));
    let mut members: Vec<_> = (0..MEMBERS).map(|_| Client::connect(&server)).collect();
    let request = json!({"type": "join_room", "roomId": "r", "since": {"epoch": epoch, "offset": 5}});
    let ids: Vec<_> = members.iter_mut().map(|member| member.ask(request.clone())).collect();
    let last = publish(&mut speaker, "r", "live");
    for (member, id) in members.iter_mut().zip(ids) {
        let joined = member.reply_to(&id);
        assert_eq!(joined["recovered"], true, "{}", joined.text);
        let mut seen = offsets(&joined);
        if seen.last() != Some(&last) {
            seen.push(member.expect("room_message")["offset"].as_u64().expect("an offset"));
        }
        assert_eq!(seen, (6..=last).collect::<Vec<_>>());
    }
}

fn joining_while_others_publish_leaves_no_gap(shards: usize) {
    const ROUNDS: u64 = 60;
    let server = server(shards, &[]);
    let mut speakers: Vec<_> = (0..3).map(|_| Client::connect(&server)).collect();
    let epochs: Vec<_> = speakers.iter_mut().map(|speaker| speaker.join("r")["epoch"].clone()).collect();
    let mut comers: Vec<_> = (0..ROUNDS).map(|_| Client::connect(&server)).collect();
    let mut joins = Vec::new();
    for (round, comer) in comers.iter_mut().enumerate() {
        let since = json!({"epoch": epochs[0], "offset": 0});
        joins.push(comer.ask(json!({"type": "join_room", "roomId": "r", "since": since})));
        speakers.iter_mut().for_each(|speaker| speaker.say("r", round));
    }
    for (comer, id) in comers.iter_mut().zip(joins) {
        let joined = comer.reply_to(&id);
        let mut seen = offsets(&joined);
        assert_eq!(seen.last().copied().unwrap_or(0), joined["offset"].as_u64().expect("an offset"));
        while seen.len() < 3 * ROUNDS as usize {
            seen.push(comer.expect("room_message")["offset"].as_u64().expect("an offset"));
        }
        assert_eq!(seen, (1..=3 * ROUNDS).collect::<Vec<_>>());
    }
}

fn a_resume_answers_for_every_room_and_sums_up(shards: usize) {
    let shards = shards.to_string();
    let settings = [
        &token::REQUIRED[..],
        &[("SHARDS", shards.as_str()), ("HISTORY_ROOMS", "table-*"), ("MAX_ROOMS_PER_CONNECTION", "22")],
    ];
    let server = Server::start(&settings.concat());
    let all = ["join", "publish", "history", "members"];
    let rights = json!({"table-*": all, "plain": all, "no-history": ["join"], "z*": all});
    let ann = token::with_claims(json!({"sub": "ann", "rooms": rights}));
    let (mut speaker, mut client) = (Client::connect_as(&server, &ann), Client::connect_as(&server, &ann));
    let mut rooms = Vec::new();
    for number in 0..20 {
        let room = format!("table-{number}");
        let epoch = speaker.join(&room)["epoch"].clone();
        (0..3).for_each(|_| _ = publish(&mut speaker, &room, number));
        rooms.push(json!({"roomId": room, "since": {"epoch": epoch, "offset": 1}, "members": true}));
    }
    rooms.push(json!({"roomId": "forbidden"}));
    rooms.push(json!({"roomId": "no-history", "since": {"epoch": "x", "offset": 1}}));
    rooms.push(json!({"roomId": "plain", "since": {"epoch": "x", "offset": 1}, "echo": true}));
    rooms.push(json!({"roomId": "z1"}));
    rooms.push(json!({"roomId": "z2"}));
    let resumed = client.request(json!({"type": "resume", "rooms": rooms}));
    assert_eq!(resumed["type"], "resumed", "{}", resumed.text);
    let mut joined: Vec<_> = resumed["joined"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|room| room.as_str().expect("a name"))
        .collect();
    joined.sort_unstable();
    let mut expected: Vec<_> = (0..20).map(|number| format!("table-{number}")).collect();
    expected.extend(["plain".to_owned(), "z1".to_owned()]);
    expected.sort_unstable();
    assert_eq!(joined, expected);
    let failed = resumed["failed"].as_array().expect("a list");
    let failures: Vec<_> = failed.iter().map(|failure| (&failure["roomId"], &failure["code"])).collect();
    let expected = [("forbidden", "forbidden"), ("no-history", "forbidden"), ("z2", "too_many_rooms")];
    assert_eq!(
        failures,
        expected
            .map(|(room, code)| (json!(room), json!(code)))
            .iter()
            .map(|(a, b)| (a, b))
            .collect::<Vec<_>>()
    );
    let before = client.drain();
    for (room, _) in expected {
        let error = before.iter().find(|event| event["roomId"] == room).expect("an error of its own");
        assert_eq!(error["type"], "error", "{}", error.text);
        assert!(error.get("messageId").is_none(), "{}", error.text);
    }
    for room in joined {
        let replies: Vec<_> =
            before.iter().filter(|e| e["type"] == "room_joined" && e["roomId"] == room).collect();
        assert_eq!(replies.len(), 1, "one for {room}");
        let reply = replies[0];
        assert!(reply.get("messageId").is_none(), "{}", reply.text);
        match room {
            "plain" => assert_not_recovered(reply, "no_history"),
            "z1" => assert!(reply.get("recovered").is_none(), "{}", reply.text),
            _ => assert_eq!((offsets(reply), reply.get("members").is_some()), (vec![2, 3], true)),
        }
    }
    publish(&mut speaker, "table-7", "live");
    assert_eq!(client.expect_said("table-7", "live")["offset"], 4);
}

fn a_resume_may_be_pipelined(shards: usize) {
    let server = server(shards, &[]);
    let mut client = Client::connect(&server);
    let rooms = |names: &[&str]| names.iter().map(|name| json!({"roomId": name})).collect::<Vec<_>>();
    client.send_at_once(&[
        json!({"type": "join_room", "roomId": "a", "messageId": "1"}),
        json!({"type": "resume", "rooms": rooms(&["a", "b"]), "messageId": "2"}),
        json!({"type": "room_message", "roomId": "a", "data": 1, "messageId": "3"}),
        json!({"type": "resume", "rooms": [], "messageId": "4"}),
    ]);
    let replies = ["1", "2", "3", "4"].map(|id| client.reply_to(id));
    let kinds = replies.each_ref().map(|reply| reply["type"].clone());
    assert_eq!(kinds, ["room_joined", "resumed", "message_ack", "resumed"].map(|kind| json!(kind)));
    assert_eq!((&replies[3]["joined"], &replies[3]["failed"]), (&json!([]), &json!([])));
    client.send(&json!({"type": "resume", "rooms": rooms(&["a"])}));
    let without = client.expect_that("a reply without messageId", |event| event["type"] == "resumed");
    assert_eq!((&without["joined"], without.get("messageId")), (&json!(["a"]), None), "{}", without.text);
}

fn many_large_recoveries_do_not_close_the_client(shards: usize) {
    let server = server(shards, &[("OUTBOX_BYTES", "131072")]);
    let (mut speaker, mut client) = (Client::connect(&server), Client::connect(&server));
    let mut rooms = Vec::new();
    for number in 0..30 {
        let room = format!("r{number}");
        let epoch = speaker.join(&room)["epoch"].clone();
        (0..3).for_each(|_| _ = publish(&mut speaker, &room, "x".repeat(15_000).as_str()));
        rooms.push(json!({"roomId": room, "since": {"epoch": epoch, "offset": 0}}));
    }
    let resumed = client.request(json!({"type": "resume", "rooms": rooms}));
    assert_eq!(resumed["joined"].as_array().map(Vec::len), Some(30), "{}", resumed.text);
    for _ in 0..30 {
        let joined = client.expect("room_joined");
        match joined["recovered"].as_bool() {
            Some(true) => assert_eq!(offsets(&joined), [1, 2, 3]),
            _ => assert_not_recovered(&joined, "too_much"),
        }
    }
    assert_eq!(client.request(json!({"type": "ping"}))["type"], "pong", "the connection goes on");
}

#[test]
fn another_run_of_the_server_has_another_epoch() {
    let epochs = [(); 2].map(|()| {
        let server = server(1, &[]);
        Client::connect(&server).join("r")["epoch"].clone()
    });
    assert_ne!(epochs[0], epochs[1]);
}
