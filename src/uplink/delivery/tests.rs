//! What reaches a shard that keeps up, and what one that does not is told instead.

use std::time::Duration;

use crossbeam_channel::Receiver;
use proptest::prelude::*;

use super::*;
use crate::config::{HistorySettings, RoomPattern};
use crate::room::history::Epoch;
use crate::shard::envelope::{Asker, Joined, Member};
use crate::shard::outlet::Waker;
use crate::uplink::history::{HistoryRules, Kept};

const NOW: u64 = 5;
const ROOM: Channel<'static> = Channel::Room("t:1");

/// The text of the frame that `payload` becomes, or nothing if it is garbage.
fn foreign(channel: Channel<'_>, payload: &[u8]) -> Option<String> {
    let frame = foreign_frame(channel, payload, NOW, &mut Scratch::default())?;
    Some(String::from_utf8(frame::payload(&frame).to_vec()).expect("events are text"))
}

#[test]
fn data_of_other_programs_comes_out_byte_for_byte() {
    let data = "{ \"b\" : 1.50e+3,\t\"a\":\"\\u00e9\\/\", \"c\":12345678901234567890123 }";
    let payload = format!("{{\"x\":[1],\"data\":{data},\"messageId\":\"m1\"}}");
    let expected = format!(
        "{{\"type\":\"room_message\",\"roomId\":\"t:1\",\"senderId\":\"server\",\"timestamp\":5,\
         \"messageId\":\"m1\",\"data\":{data}}}"
    );
    assert_eq!(foreign(ROOM, payload.as_bytes()), Some(expected));
}

#[test]
fn each_channel_gets_its_shape() {
    let payload = br#"{"data":null,"messageId":"m"}"#;
    let user = r#"{"type":"user_message","senderId":"server","timestamp":5,"messageId":"m","data":null}"#;
    let global = r#"{"type":"global_message","senderId":"server","timestamp":5,"data":null}"#;
    assert_eq!(foreign(Channel::User("u"), payload).as_deref(), Some(user));
    assert_eq!(foreign(Channel::Global, payload).as_deref(), Some(global));
}

#[test]
fn what_is_no_publication_is_garbage() {
    let nested = format!("{{\"data\":{}", "[".repeat(100_000));
    let long_id = format!("{{\"data\":1,\"messageId\":\"{}\"}}", "x".repeat(65));
    for payload in [
        "{}",
        "{\"Data\":1}",
        "{\"data\":1}x",
        "{\"data\":1,",
        "{\"data\":1,\"data\":2}",
        "{\"data\":1,\"messageId\":17}",
        &long_id,
        &nested,
    ] {
        assert_eq!(foreign(ROOM, payload.as_bytes()), None, "{payload:.30}");
    }
    assert_eq!(foreign(ROOM, b"{\"data\":\"\xff\"}"), None);
    let fits = |bytes| format!("{{\"data\":\"{}\"}}", "x".repeat(bytes - "{\"data\":\"\"}".len()));
    assert!(foreign(ROOM, fits(PAYLOAD_BYTES).as_bytes()).is_some());
    assert_eq!(foreign(ROOM, fits(PAYLOAD_BYTES + 1).as_bytes()), None);
}

/// A batch of the presence script that says that a user came to the room.
fn came() -> Vec<u8> {
    presence(1, "alice", 1)
}

/// The same of a user who came, or left if `came` is 0; so many are there then.
fn presence(came: u8, user: &str, count: u32) -> Vec<u8> {
    let member = format!(r#"{{"user":"{user}","socket":"s"}}"#);
    let head = Header { origin: Origin(2), sequence: Sequence::Unnumbered, from_script: true };
    let mut batch = batch::header(head).to_vec();
    batch.push(2);
    batch.extend_from_slice(&(member.len() as u32 + 5).to_le_bytes());
    batch.push(came);
    batch.extend_from_slice(&count.to_le_bytes());
    batch.extend_from_slice(member.as_bytes());
    batch
}

/// A delivery to one shard whose queue holds so many envelopes and which is in the room `r`.
fn delivery_to(capacity: usize) -> (Delivery, Receiver<Envelope>) {
    let (outlet, shard) = Outlet::new(capacity, Waker::new().unwrap());
    let following = Following::new(HistoryRules::none(), 1);
    let mut delivery = Delivery::new(Origin(1), vec![outlet], following, Arc::default()).unwrap();
    let route = Arc::new(RoomRoute::default());
    route.add(ShardId(0));
    delivery.add_room(&RoomId::parse("r").unwrap(), route);
    (delivery, shard)
}

#[test]
fn no_message_of_a_room_comes_between_one_that_was_dropped_and_the_resync() {
    let (mut delivery, shard) = delivery_to(2);
    let message = |delivery: &mut Delivery| delivery.deliver(Channel::Room("r"), br#"{"data":1}"#, NOW);
    let next = || match shard.try_recv() {
        Ok(Envelope::RoomFrame { .. }) => "message",
        Ok(Envelope::RoomResync { reason: reason::OVERFLOW, .. }) => "resync",
        Ok(other) => panic!("unexpected {other:?}"),
        Err(_) => "nothing",
    };
    (0..3).for_each(|_| message(&mut delivery));
    assert_eq!(next(), "message");
    message(&mut delivery);
    assert_eq!(
        [next(), next(), next()],
        ["message", "resync", "nothing"],
        "the third and the fourth were dropped"
    );
    message(&mut delivery);
    assert_eq!(
        [next(), next(), next()],
        ["resync", "message", "nothing"],
        "told of the fourth, and on it goes"
    );
}

#[test]
fn presence_for_a_shard_that_stands_still_is_bounded_and_ends_in_a_resync() {
    let (mut delivery, shard) = delivery_to(1);
    let came = came();
    let sent = 1 + PRESENCE_WAITING + 10;
    for _ in 0..sent {
        delivery.deliver(Channel::Room("r"), &came, NOW);
    }
    assert_eq!(delivery.cells.deliveries_dropped.get(), 10);
    let (mut presence, mut resyncs) = (0, Vec::new());
    loop {
        match shard.try_recv() {
            Ok(Envelope::Presence(_)) => presence += 1,
            Ok(Envelope::RoomResync { room, reason, .. }) => resyncs.push((room, reason, presence)),
            Ok(other) => panic!("unexpected {other:?}"),
            Err(_) => break,
        }
        delivery.flush();
    }
    assert_eq!(presence, sent - 10);
    assert_eq!(resyncs, [(None, reason::OVERFLOW, presence)], "told once, behind what was delivered");
    delivery.deliver(Channel::Room("r"), &came, NOW);
    assert!(matches!(shard.try_recv(), Ok(Envelope::Presence(_))), "and then it goes on");
}

proptest! {
    #[test]
    fn any_bytes_give_json_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut payload = b"{\"data\":".to_vec();
        payload.extend_from_slice(&bytes);
        if let Some(event) = foreign(ROOM, &payload) {
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&event).is_ok());
        }
    }
}

/// A batch of another instance for the room `r`: of this number, with an event or repeated after `quiet_ms`.
fn numbered(sequence: Sequence, quiet_ms: Option<u32>) -> Vec<u8> {
    let mut batch = batch::header(Header { origin: Origin(2), sequence, from_script: false }).to_vec();
    match quiet_ms {
        Some(since) => batch::push_quiet(&mut batch, since),
        None => batch::push_event(&mut batch, b"{}"),
    }
    batch
}

/// The resyncs of the room `r`, subscribed at 0 s, when these batches come at these seconds.
fn resyncs(batches: &[(u64, Vec<u8>)]) -> Vec<&'static str> {
    let (outlet, shard) = Outlet::new(64, Waker::new().unwrap());
    let following = Following::new(HistoryRules::none(), 1);
    let mut delivery = Delivery::new(Origin(1), vec![outlet], following, Arc::default()).unwrap();
    let start = std::time::Instant::now();
    delivery.following().clock(start);
    let route = Arc::new(RoomRoute::default());
    route.add(ShardId(0));
    delivery.add_room(&RoomId::parse("r").unwrap(), route);
    for (seconds, batch) in batches {
        delivery.following().clock(start + std::time::Duration::from_secs(*seconds));
        delivery.deliver(Channel::Room("r"), batch, NOW);
    }
    let all = std::iter::from_fn(|| shard.try_recv().ok());
    all.filter_map(|e| if let Envelope::RoomResync { reason, .. } = e { Some(reason) } else { None })
        .collect()
}

#[test]
fn a_lost_last_batch_shows_when_its_number_is_repeated() {
    let follows = |number| numbered(Sequence::Follows(number), None);
    let quiet = |number, since| numbered(Sequence::Follows(number), Some(since));
    let none = [""; 0];
    // The sender repeats three to six seconds after the batch: within ten, whatever was lost has shown.
    assert_eq!(resyncs(&[(5, follows(7)), (9, quiet(7, 3_500))]), none, "it had come");
    assert_eq!(resyncs(&[(5, follows(7)), (12, quiet(8, 6_000))]), [reason::GAP], "it had not");
    assert_eq!(resyncs(&[(12, quiet(8, 6_000))]), [reason::GAP], "nothing of the sender had ever come");
    assert_eq!(resyncs(&[(12, quiet(8, 6_000)), (13, follows(9))]), [reason::GAP], "told once");
    assert_eq!(
        resyncs(&[(3, quiet(8, 3_500)), (4, follows(9))]),
        none,
        "sent before the room was subscribed"
    );
    assert_eq!(resyncs(&[(5, quiet(8, 3_500))]), none, "perhaps sent before the subscription was active");
}

#[test]
fn a_join_that_waits_for_the_history_knows_who_comes_and_goes_meanwhile() {
    let (outlet, shard) = Outlet::new(64, Waker::new().unwrap());
    let rooms = vec![RoomPattern::parse("r").unwrap()];
    let settings = HistorySettings { rooms, size: 9, ttl: Duration::from_secs(9), memory: 999, page: 9 };
    let following = Following::new(HistoryRules { settings, reply_bytes: 999 }, 1);
    let mut delivery = Delivery::new(Origin(1), vec![outlet], following, Arc::default()).unwrap();
    let (room, route) = (RoomId::parse("r").unwrap(), Arc::new(RoomRoute::default()));
    delivery.add_room(&room, route.clone());
    let member = |name| Member { user: UserId::parse(name).unwrap(), name: None, socket: "s".into() };
    let connection = ConnectionId { shard: ShardId(0), slot: 0, generation: 0 };
    let joined = |members| Joined {
        room: room.clone(),
        asker: Asker { connection, message_id: None },
        route: route.clone(),
        member_count: 2,
        members,
        history: None,
        recovery: Ok(Vec::new()),
    };
    let listed = Some(vec![member("carol"), member("dave")]);
    assert!(delivery.following().join(Box::new(joined(listed)), None).is_none(), "it waits");
    assert!(delivery.following().join(Box::new(joined(None)), None).is_none());
    for (came, name, count) in [(1, "alice", 3), (1, "alice", 3), (0, "carol", 2), (1, "bob", 3)] {
        delivery.deliver(Channel::Room("r"), &presence(came, name, count), NOW);
    }
    let [read] = &delivery.following().take_reads()[..] else { panic!("the history is read once") };
    let position = Position { epoch: Epoch(1), offset: 0 };
    delivery.history_read(read, Some(Kept { position, cut: false, messages: Vec::new() }));
    let present = [member("dave"), member("alice"), member("bob")];
    for members in [Some(&present[..]), None] {
        let Ok(Envelope::Joined(answer)) = shard.try_recv() else { panic!("the joins are answered") };
        assert_eq!((answer.member_count, answer.members.as_deref()), (3, members));
    }
}

/// What the shard is sent: messages, and reasons of resyncs.
fn heard(shard: &Receiver<Envelope>) -> Vec<&'static str> {
    let all = std::iter::from_fn(|| shard.try_recv().ok());
    let name = |envelope| match envelope {
        Envelope::RoomFrame { .. } => "message",
        Envelope::RoomResync { reason, .. } => reason,
        other => panic!("unexpected {other:?}"),
    };
    all.map(name).collect()
}

#[test]
fn a_batch_of_before_a_loss_of_the_own_link_is_refused_behind_later_ones() {
    let none = [""; 0];
    let (mut delivery, shard) = delivery_to(64);
    let start = std::time::Instant::now();
    delivery.following().clock(start);
    let deliver = |delivery: &mut Delivery, sequence, quiet| {
        delivery.deliver(Channel::Room("r"), &numbered(sequence, quiet), NOW);
        heard(&shard)
    };
    let subscribe_again = |delivery: &mut Delivery| {
        let route = Arc::new(RoomRoute::default());
        route.add(ShardId(0));
        assert!(delivery.add_room(&RoomId::parse("r").unwrap(), route));
    };
    assert_eq!(deliver(&mut delivery, Sequence::Follows(7), None), ["message"]);
    delivery.remove_all();
    subscribe_again(&mut delivery);
    assert_eq!(deliver(&mut delivery, Sequence::Follows(6), None), none, "it comes behind the seventh");
    assert_eq!(deliver(&mut delivery, Sequence::Follows(7), Some(1)), none, "the seventh has been heard");
    delivery.remove_all();
    subscribe_again(&mut delivery);
    assert_eq!(deliver(&mut delivery, Sequence::Follows(9), None), ["message"], "the loss has been told");
    assert_eq!(deliver(&mut delivery, Sequence::Follows(8), None), none);
    assert_eq!(deliver(&mut delivery, Sequence::Follows(11), None), [reason::GAP, "message"], "a new loss");
    delivery.remove_room(&RoomId::parse("r").unwrap());
    subscribe_again(&mut delivery);
    assert_eq!(deliver(&mut delivery, Sequence::Begins(10), None), none);
    assert_eq!(deliver(&mut delivery, Sequence::Begins(14), None), ["message"]);
    assert_eq!(delivery.cells.late_batches.get(), 3);
    delivery.remove_all();
    delivery.following().clock(start + std::time::Duration::from_millis(senders::KEPT_MS));
    subscribe_again(&mut delivery);
    assert_eq!(deliver(&mut delivery, Sequence::Follows(3), None), ["message"], "long ago");
}

#[test]
fn a_lane_brings_what_is_wanted_here_and_keeps_each_rooms_numbers() {
    let (outlet, shard) = Outlet::new(64, Waker::new().unwrap());
    let following = Following::new(HistoryRules::none(), 1);
    let mut delivery = Delivery::new(Origin(1), vec![outlet], following, Arc::default()).unwrap();
    let route = Arc::new(RoomRoute::default());
    route.add(ShardId(0));
    delivery.add_room(&RoomId::parse("r").unwrap(), route);
    delivery.add_user(UserId::parse("u").unwrap());
    let lane = |number, text: &str| {
        let head = Header { origin: Origin(2), sequence: Sequence::Unnumbered, from_script: false };
        let mut batch = batch::header(head).to_vec();
        for name in ["elsewhere", "r"] {
            batch::push_section(&mut batch, Section::Room { name, sequence: Sequence::Follows(number) });
            batch::push_event(&mut batch, text.as_bytes());
        }
        for name in ["u", "nobody"] {
            batch::push_section(&mut batch, Section::User(name));
            batch::push_event(&mut batch, text.as_bytes());
        }
        batch
    };
    delivery.deliver_lane(&lane(4, "1"), NOW);
    delivery.deliver(Channel::Room("r"), &numbered(Sequence::Follows(5), None), NOW);
    delivery.deliver_lane(&lane(7, "2"), NOW);
    let mut heard = Vec::new();
    while let Ok(envelope) = shard.try_recv() {
        heard.push(match envelope {
            Envelope::RoomFrame { room, .. } => room.as_str().to_owned(),
            Envelope::ToUser { user, .. } => user.as_str().to_owned(),
            Envelope::RoomResync { reason, .. } => reason.to_owned(),
            other => panic!("unexpected {other:?}"),
        });
    }
    assert_eq!(heard, ["r", "u", "r", reason::GAP, "r", "u"]);
    delivery.deliver_lane(b"{\"data\":1}", NOW);
    delivery.deliver_lane(&came(), NOW);
    assert_eq!(delivery.cells.garbage_in.get(), 2);
}
