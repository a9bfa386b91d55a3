//! Rooms with history: numbers, acks, repetitions and the pages of `room_history`.

use serde_json::{Value, json};

use crate::harness::client::{Client, Event};
use crate::harness::eventually;
use crate::harness::server::Server;
use crate::harness::token;

with_one_shard_and_four!(
    all_members_see_the_same_numbers_which_rise_by_one,
    an_ack_carries_the_number_and_an_echo_too,
    a_repetition_gets_the_first_number_and_is_delivered_once,
    repetitions_that_race_from_two_connections_are_one_message,
    only_rooms_of_the_setting_have_history,
    pages_go_forward_and_back_and_stop_at_their_bounds,
    a_page_of_large_messages_ends_before_it_closes_the_reader,
    history_needs_the_right_and_not_membership,
    requests_at_once_get_one_reply_each,
);

/// A server of that many shards whose rooms all have history.
pub fn server(shards: usize, settings: &[(&str, &str)]) -> Server {
    let shards = shards.to_string();
    Server::start(&[&[("SHARDS", shards.as_str()), ("HISTORY_ROOMS", "*")], settings].concat())
}

/// Publishes and waits for the ack; the message's number.
#[track_caller]
pub fn publish(client: &mut Client, room: &str, data: impl Into<Value>) -> u64 {
    let data: Value = data.into();
    let ack = client.request(json!({"type": "room_message", "roomId": room, "data": data}));
    assert_eq!(ack["type"], "message_ack", "{}", ack.text);
    ack["offset"].as_u64().unwrap_or_else(|| panic!("an ack has an offset: {}", ack.text))
}

/// The numbers of the messages in a reply.
#[track_caller]
pub fn offsets(reply: &Event) -> Vec<u64> {
    let messages = reply["messages"].as_array().unwrap_or_else(|| panic!("messages: {}", reply.text));
    messages.iter().map(|message| message["offset"].as_u64().expect("an offset")).collect()
}

fn all_members_see_the_same_numbers_which_rise_by_one(shards: usize) {
    const EACH: usize = 40;
    let server = server(shards, &[]);
    let mut members: Vec<_> = (0..6).map(|_| Client::connect(&server)).collect();
    for member in &mut members {
        let joined = member.join_with(json!({"type": "join_room", "roomId": "r", "echo": true}));
        assert_eq!(joined["offset"], 0, "{}", joined.text);
        assert_eq!(joined["epoch"].as_str().map(str::len), Some(16), "{}", joined.text);
    }
    for number in 0..EACH {
        members.iter_mut().for_each(|member| member.say("r", number));
    }
    let heard: Vec<Vec<_>> = members
        .iter_mut()
        .map(|member| (0..EACH * 6).map(|_| member.expect("room_message").text).collect())
        .collect();
    for (place, text) in heard[0].iter().enumerate() {
        let event: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(event["offset"], place + 1, "{text}");
    }
    assert!(heard.iter().all(|texts| *texts == heard[0]), "all members get the same bytes in one order");
}

fn an_ack_carries_the_number_and_an_echo_too(shards: usize) {
    let server = server(shards, &[]);
    let (mut plain, mut echo) = (Client::connect(&server), Client::connect(&server));
    plain.join("r");
    echo.join_with(json!({"type": "join_room", "roomId": "r", "echo": true}));
    assert_eq!(publish(&mut plain, "r", "one"), 1);
    assert_eq!(publish(&mut echo, "r", "two"), 2);
    let offsets = [echo.expect("room_message"), echo.expect("room_message")].map(|e| e["offset"].clone());
    assert_eq!(offsets, [1, 2]);
    assert_eq!(plain.expect("room_message")["offset"], 2, "without echo one's own does not come back");
    plain.drain().iter().for_each(|event| assert_ne!(event["type"], "room_message", "{}", event.text));
}

fn a_repetition_gets_the_first_number_and_is_delivered_once(shards: usize) {
    let server = server(shards, &[]);
    let (mut sender, mut other) = (Client::connect(&server), Client::connect(&server));
    for room in ["r", "q"] {
        sender.join(room);
        other.join(room);
    }
    let say = |client: &mut Client, room: &str, id: &str| {
        client.send(&json!({"type": "room_message", "roomId": room, "data": id, "messageId": id}));
        client.reply_to(id)["offset"].clone()
    };
    assert_eq!(say(&mut sender, "r", "same"), 1);
    assert_eq!(say(&mut sender, "r", "same"), 1);
    assert_eq!(say(&mut other, "r", "same"), 2, "another user's message of that name is another one");
    assert_eq!(say(&mut sender, "r", "next"), 3);
    assert_eq!(say(&mut sender, "q", "same"), 1, "in another room it is another one");
    // Each room has its order; between two rooms there is none.
    let heard = [(); 3].map(|()| other.expect("room_message"));
    let of = |room: &str| -> Vec<_> {
        heard.iter().filter(|event| event["roomId"] == room).map(|event| event["offset"].clone()).collect()
    };
    assert_eq!((of("r"), of("q")), (vec![json!(1), json!(3)], vec![json!(1)]));
    let page = other.request(json!({"type": "room_history", "roomId": "r"}));
    assert_eq!(offsets(&page), [1, 2, 3]);
}

fn repetitions_that_race_from_two_connections_are_one_message(shards: usize) {
    const MESSAGES: usize = 50;
    let shards = shards.to_string();
    let settings = [&token::REQUIRED[..], &[("SHARDS", shards.as_str()), ("HISTORY_ROOMS", "*")]].concat();
    let server = Server::start(&settings);
    let mut of_ann: Vec<_> = (0..8).map(|_| Client::connect_as(&server, &token::of("ann"))).collect();
    let mut listener = Client::connect_as(&server, &token::of("ben"));
    listener.join("r");
    of_ann.iter_mut().for_each(|client| drop(client.join("r")));
    for number in 0..MESSAGES {
        let id = format!("m{number}");
        let message = json!({"type": "room_message", "roomId": "r", "data": number, "messageId": id});
        of_ann.iter_mut().for_each(|client| client.send(&message));
        let given: Vec<_> = of_ann.iter_mut().map(|client| client.reply_to(&id)["offset"].clone()).collect();
        assert!(given.iter().all(|offset| *offset == number + 1), "one message, one number: {given:?}");
        let heard = listener.expect("room_message");
        assert_eq!(
            (&heard["offset"], &heard["data"]),
            (&json!(number + 1), &json!(number)),
            "{}",
            heard.text
        );
    }
    listener.drain().iter().for_each(|event| assert_ne!(event["type"], "room_message", "{}", event.text));
}

fn only_rooms_of_the_setting_have_history(shards: usize) {
    let server = server(shards, &[("HISTORY_ROOMS", "table-*,lobby")]);
    let mut client = Client::connect(&server);
    for (room, has_history) in [("table-1", true), ("lobby", true), ("lobby-2", false), ("tabl", false)] {
        let joined = client.join(room);
        assert_eq!(joined.get("epoch").is_some(), has_history, "{}", joined.text);
        assert_eq!(joined.get("offset").is_some(), has_history, "{}", joined.text);
        let ack = client.request(json!({"type": "room_message", "roomId": room, "data": 1}));
        assert_eq!((&ack["type"], ack.get("offset").is_some()), (&json!("message_ack"), has_history));
        let request = json!({"type": "room_history", "roomId": room});
        match has_history {
            true => assert_eq!(offsets(&client.request(request)), [1]),
            false => drop(client.expect_refused(request, "unavailable")),
        }
    }
}

fn pages_go_forward_and_back_and_stop_at_their_bounds(shards: usize) {
    let server = server(shards, &[("HISTORY_SIZE", "10"), ("HISTORY_PAGE", "6")]);
    let mut client = Client::connect(&server);
    let epoch = client.join("r")["epoch"].clone();
    (1..=12).for_each(|number| _ = publish(&mut client, "r", number));
    let mut page = |fields: Value| {
        let mut request = json!({"type": "room_history", "roomId": "r"});
        request.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let reply = client.request(request);
        assert_eq!(
            (&reply["type"], &reply["epoch"], &reply["offset"]),
            (&json!("room_history"), &epoch, &json!(12)),
            "{}",
            reply.text
        );
        for message in reply["messages"].as_array().expect("messages") {
            assert_eq!((&message["type"], &message["data"]), (&json!("room_message"), &message["offset"]));
        }
        offsets(&reply)
    };
    let since = |offset: u64| json!({"epoch": epoch, "offset": offset});
    assert_eq!(page(json!({})), [3, 4, 5, 6, 7, 8]);
    assert_eq!(page(json!({"limit": 2})), [3, 4]);
    assert_eq!(page(json!({"limit": 100})), [3, 4, 5, 6, 7, 8], "never more than a page");
    assert_eq!(page(json!({"since": since(8)})), [9, 10, 11, 12]);
    assert_eq!(page(json!({"since": since(1), "limit": 1})), [3], "what is not kept shows as a gap");
    assert_eq!(page(json!({"since": since(12)})), [0; 0]);
    assert_eq!(page(json!({"since": since(u64::MAX)})), [0; 0]);
    assert_eq!(page(json!({"reverse": true, "limit": 3})), [12, 11, 10]);
    assert_eq!(page(json!({"since": since(5), "reverse": true})), [4, 3]);
    assert_eq!(page(json!({"since": since(3), "reverse": true})), [0; 0]);
    for epoch in ["0123456789abcdef", "of another server"] {
        assert_eq!(page(json!({"since": {"epoch": epoch, "offset": 3}})), [0; 0]);
    }
}

fn a_page_of_large_messages_ends_before_it_closes_the_reader(shards: usize) {
    let server = server(shards, &[("OUTBOX_BYTES", "131072")]);
    let (mut speaker, mut reader) = (Client::connect(&server), Client::connect(&server));
    let mut position = speaker.join("r");
    let large = "x".repeat(20_000);
    (0..12).for_each(|_| _ = publish(&mut speaker, "r", large.as_str()));
    let mut seen = Vec::new();
    while seen.len() < 12 {
        let since = json!({"epoch": position["epoch"], "offset": seen.len()});
        position = reader.request(json!({"type": "room_history", "roomId": "r", "since": since}));
        let page = offsets(&position);
        assert!((1..=3).contains(&page.len()), "at most half of the outbox, and never nothing: {page:?}");
        seen.extend(page);
    }
    assert_eq!(seen, (1..=12).collect::<Vec<_>>());
}

fn history_needs_the_right_and_not_membership(shards: usize) {
    let shards = shards.to_string();
    let settings = [&token::REQUIRED[..], &[("SHARDS", shards.as_str()), ("HISTORY_ROOMS", "*")]].concat();
    let server = Server::start(&settings);
    let of = |user: &str, rights: &[&str]| {
        token::with_claims(json!({"sub": user, "rooms": {"r": rights, "empty": rights}}))
    };
    let mut speaker = Client::connect_as(&server, &of("ann", &["join", "publish"]));
    let mut reader = Client::connect_as(&server, &of("ben", &["history"]));
    let joined = speaker.join("r");
    publish(&mut speaker, "r", 1);
    assert_eq!(offsets(&reader.request(json!({"type": "room_history", "roomId": "r"}))), [1]);
    let forbidden = ["r", "empty", "nobody-was-here"].map(|room| {
        let refusal = speaker.expect_refused(json!({"type": "room_history", "roomId": room}), "forbidden");
        refusal["message"].clone()
    });
    assert!(forbidden.iter().all(|words| *words == forbidden[0]), "the words do not tell rooms apart");
    let since = json!({"epoch": joined["epoch"], "offset": 0});
    speaker.expect_refused(json!({"type": "join_room", "roomId": "r", "since": since}), "forbidden");
    reader.expect_refused(json!({"type": "join_room", "roomId": "r"}), "forbidden");
    let empty = reader.request(json!({"type": "room_history", "roomId": "empty"}));
    assert_eq!((offsets(&empty), &empty["offset"]), (vec![], &json!(0)), "{}", empty.text);
}

fn requests_at_once_get_one_reply_each(shards: usize) {
    const MESSAGES: usize = 500;
    let server = server(shards, &[]);
    let mut client = Client::connect(&server);
    client.join("r");
    let ids: Vec<_> = (0..MESSAGES)
        .map(|number| client.ask(json!({"type": "room_message", "roomId": "r", "data": number})))
        .collect();
    let page = client.ask(json!({"type": "room_history", "roomId": "r", "limit": 1, "reverse": true}));
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(client.reply_to(id)["offset"], number + 1, "one sender's messages keep their order");
    }
    assert_eq!(offsets(&client.reply_to(&page)), [MESSAGES as u64], "it was asked for after all of them");
    let left = client.drain();
    assert!(left.iter().all(|event| event.get("messageId").is_none()), "a second reply: {left:?}");
}

#[test]
fn what_is_too_old_is_not_given_out() {
    let server = server(1, &[("HISTORY_TTL", "300")]);
    let mut client = Client::connect(&server);
    let joined = client.join("r");
    publish(&mut client, "r", 1);
    let page = eventually("the message has expired", || {
        let page = client.request(json!({"type": "room_history", "roomId": "r"}));
        offsets(&page).is_empty().then_some(page)
    });
    assert_eq!((&page["epoch"], &page["offset"]), (&joined["epoch"], &json!(1)), "the numbers go on");
    let since = |offset: u64| json!({"epoch": joined["epoch"], "offset": offset});
    let rejoined = client.join_with(json!({"type": "join_room", "roomId": "r", "since": since(0)}));
    assert_eq!((&rejoined["recovered"], &rejoined["reason"]), (&json!(false), &json!("expired")));
    let rejoined = client.join_with(json!({"type": "join_room", "roomId": "r", "since": since(1)}));
    assert_eq!(rejoined["recovered"], true, "who has seen all has missed nothing: {}", rejoined.text);
    assert_eq!(publish(&mut client, "r", 2), 2);
}
