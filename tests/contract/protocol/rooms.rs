//! Rooms: joining, leaving, and who hears what.

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::server::Server;

with_one_shard_and_four!(
    all_members_but_the_sender_hear_a_message,
    a_sender_that_joined_with_echo_hears_itself,
    messages_of_one_sender_keep_their_order,
    rooms_are_apart,
    a_connection_may_be_in_many_rooms,
    who_left_hears_nothing_and_may_not_speak,
    who_came_back_hears_again,
    joining_twice_changes_nothing,
    joining_again_may_turn_echo_on,
    requests_sent_at_once_are_carried_out_in_order,
    room_names_may_use_every_allowed_character,
    a_room_named_in_the_address_is_joined_at_once,
);

fn a_room_named_in_the_address_is_joined_at_once(shards: usize) {
    let server = Server::with_shards(shards);
    let mut member = Client::connect(&server);
    member.join("r:1");
    let open = |path| Client::open(server.port, path, &[]).expect("the server upgrades");
    let mut client = open("/ws?join=r%3A1");
    let joined = client.expect("room_joined");
    assert_eq!((&joined["roomId"], &joined["memberCount"]), (&json!("r:1"), &json!(2)));
    member.say("r:1", 7);
    client.expect_said("r:1", 7);
    client.say("r:1", 8);
    member.expect_said("r:1", 8);
    let refusal = open("/ws?join=%22no%20room%22").expect("error");
    assert_eq!(refusal["code"], "invalid_room");
}

fn all_members_but_the_sender_hear_a_message(shards: usize) {
    let server = Server::with_shards(shards);
    let mut members: Vec<_> = (0..6).map(|_| Client::connect(&server)).collect();
    members.iter_mut().for_each(|member| drop(member.join("r")));
    for speaker in 0..members.len() {
        let (user, socket) = (members[speaker].user_id.clone(), members[speaker].socket_id.clone());
        members[speaker].say("r", speaker);
        for listener in (0..members.len()).filter(|listener| *listener != speaker) {
            let event = members[listener].expect_said("r", speaker);
            assert_eq!((&event["senderId"], &event["senderSocketId"]), (&json!(user), &json!(socket)));
        }
    }
    // Each has heard a later message of someone else by now, so its own would have come.
    for mut member in members {
        member.drain().iter().for_each(|event| assert_ne!(event["type"], "room_message", "{}", event.text));
    }
}

fn a_sender_that_joined_with_echo_hears_itself(shards: usize) {
    let server = Server::with_shards(shards);
    let mut sender = Client::connect(&server);
    let mut other = Client::connect(&server);
    sender.join_with(json!({"type": "join_room", "roomId": "r", "echo": true}));
    sender.join("without");
    other.join("r");
    let ack = sender.request(json!({"type": "room_message", "roomId": "r", "data": "me"}));
    assert_eq!((&ack["type"], &ack["roomId"]), (&json!("message_ack"), &json!("r")), "{}", ack.text);
    let heard = sender.expect("room_message");
    assert_eq!(heard.text, other.expect("room_message").text, "everyone gets the same bytes");
    assert_eq!(heard["messageId"], ack["messageId"]);
    sender.say("without", 1);
    sender.say("r", 2);
    assert_eq!(sender.expect("room_message")["data"], 2, "echo holds for the room that asked for it");
}

fn messages_of_one_sender_keep_their_order(shards: usize) {
    let server = Server::with_shards(shards);
    let mut senders: Vec<_> = (0..3).map(|_| Client::connect(&server)).collect();
    let mut listener = Client::connect(&server);
    listener.join("r");
    senders.iter_mut().for_each(|sender| drop(sender.join("r")));
    for number in 0..300 {
        senders.iter_mut().for_each(|sender| sender.say("r", number));
    }
    let mut heard = std::collections::HashMap::<String, i64>::new();
    for _ in 0..900 {
        let event = listener.expect("room_message");
        let sender = event["senderId"].as_str().expect("a senderId").to_owned();
        let next = heard.entry(sender).or_default();
        assert_eq!(event["data"], *next, "{}", event.text);
        *next += 1;
    }
}

fn rooms_are_apart(shards: usize) {
    let server = Server::with_shards(shards);
    let mut one = Client::connect(&server);
    let mut two = Client::connect(&server);
    let mut both = Client::connect(&server);
    one.join("one");
    two.join("two");
    both.join("one");
    both.join("two");
    both.say("two", "for two");
    both.say("one", "for one");
    one.expect_said("one", "for one");
    two.expect_said("two", "for two");
    one.drain().iter().for_each(|event| assert_ne!(event["type"], "room_message", "{}", event.text));
    two.drain().iter().for_each(|event| assert_ne!(event["type"], "room_message", "{}", event.text));
}

fn a_connection_may_be_in_many_rooms(shards: usize) {
    let server = Server::with_shards(shards);
    let mut busy = Client::connect(&server);
    let mut guests: Vec<_> = (0..4).map(|_| Client::connect(&server)).collect();
    for number in 0..100 {
        busy.join(&format!("room-{number}"));
        guests[number % 4].join(&format!("room-{number}"));
    }
    for number in 0..100 {
        guests[number % 4].say(&format!("room-{number}"), number);
    }
    for number in 0..100 {
        busy.expect_said(&format!("room-{number}"), number);
    }
}

fn who_left_hears_nothing_and_may_not_speak(shards: usize) {
    let server = Server::with_shards(shards);
    let mut stays = Client::connect(&server);
    let mut leaves = Client::connect(&server);
    stays.join("r");
    leaves.join("r");
    stays.say("r", "before");
    leaves.expect_said("r", "before");
    leaves.leave("r");
    let after = stays.request(json!({"type": "room_message", "roomId": "r", "data": "after"}));
    assert_eq!(after["type"], "message_ack", "{}", after.text);
    leaves.expect_refused(json!({"type": "room_message", "roomId": "r", "data": 1}), "not_in_room");
    leaves.expect_refused(json!({"type": "leave_room", "roomId": "r"}), "not_in_room");
    leaves.join("r");
    stays.say("r", "again");
    assert_eq!(leaves.expect("room_message")["data"], "again", "nothing from the time outside");
}

fn who_came_back_hears_again(shards: usize) {
    let server = Server::with_shards(shards);
    let mut stays = Client::connect(&server);
    let mut restless = Client::connect(&server);
    stays.join("r");
    for round in 0..30 {
        assert_eq!(restless.join("r")["memberCount"], 2);
        stays.say("r", round);
        restless.expect_said("r", round);
        restless.leave("r");
    }
}

fn joining_twice_changes_nothing(shards: usize) {
    let server = Server::with_shards(shards);
    let mut stays = Client::connect(&server);
    let mut eager = Client::connect(&server);
    stays.join("r");
    assert_eq!(eager.join("r")["memberCount"], 2);
    assert_eq!(eager.join("r")["memberCount"], 2);
    stays.say("r", 1);
    stays.say("r", 2);
    eager.expect_said("r", 1);
    assert_eq!(eager.expect("room_message")["data"], 2, "each message comes once");
    eager.leave("r");
    eager.expect_refused(json!({"type": "leave_room", "roomId": "r"}), "not_in_room");
    stays.expect("user_joined_room");
    stays.expect("user_left_room");
    stays.drain().iter().for_each(|event| assert_ne!(event["type"], "user_joined_room", "{}", event.text));
}

fn joining_again_may_turn_echo_on(shards: usize) {
    let server = Server::with_shards(shards);
    let mut client = Client::connect(&server);
    client.join("r");
    client.say("r", "silent");
    client.join_with(json!({"type": "join_room", "roomId": "r", "echo": true}));
    client.say("r", "loud");
    assert_eq!(client.expect("room_message")["data"], "loud");
}

fn requests_sent_at_once_are_carried_out_in_order(shards: usize) {
    let server = Server::with_shards(shards);
    let mut other = Client::connect(&server);
    for round in 0..20 {
        let room = format!("pipelined-{round}");
        other.join(&room);
        let mut client = Client::connect(&server);
        client.send_at_once(&[
            json!({"type": "join_room", "roomId": room, "messageId": "1"}),
            json!({"type": "room_message", "roomId": room, "data": "first", "messageId": "2"}),
            json!({"type": "room_members", "roomId": room, "messageId": "3"}),
            json!({"type": "leave_room", "roomId": room, "messageId": "4"}),
            json!({"type": "room_message", "roomId": room, "data": "too late", "messageId": "5"}),
            json!({"type": "join_room", "roomId": room, "messageId": "6"}),
            json!({"type": "room_message", "roomId": room, "data": "second", "messageId": "7"}),
        ]);
        let replies = ["1", "2", "3", "4", "5", "6", "7"].map(|id| client.reply_to(id)["type"].clone());
        let expected = [
            "room_joined",
            "message_ack",
            "room_members",
            "room_left",
            "error",
            "room_joined",
            "message_ack",
        ];
        assert_eq!(replies, expected.map(|kind| json!(kind)));
        let heard = [other.expect("room_message"), other.expect("room_message")];
        assert_eq!([&heard[0]["data"], &heard[1]["data"]], [&json!("first"), &json!("second")]);
    }
}

fn room_names_may_use_every_allowed_character(shards: usize) {
    let server = Server::with_shards(shards);
    let mut one = Client::connect(&server);
    let mut two = Client::connect(&server);
    let longest = "x".repeat(128);
    for room in ["a", "0", ".", "..", "_-.:", "tableforge:rooms:a", "AZaz09_.:-", longest.as_str()] {
        assert_eq!(one.join(room)["roomId"], *room);
        two.join(room);
        two.say(room, room);
        one.expect_said(room, room);
    }
}
