//! The ingress's logic with a made-up clock and a Redis that says what the test wants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tableforge::config::RedisSettings;
use tableforge::identity::{ConnectionId, InstanceId, RoomId, ShardId, UserId};
use tableforge::metrics::UplinkCells;
use tableforge::shard::envelope::{Asker, Envelope, Join, LinkState, Member, UplinkCommand};
use tableforge::shard::outlet::{Outlet, Waker};
use tableforge::uplink::batch::Origin;
use tableforge::uplink::delivery::Delivery;
use tableforge::uplink::following::Following;
use tableforge::uplink::history::HistoryRules;
use tableforge::uplink::ingress::{Ingress, PublisherLink};
use tableforge::uplink::lane;
use tableforge::uplink::link::{Handshake, Link, LinkError};

const BOTH_UP: PublisherLink = PublisherLink { losses: 0, up: true };

fn settings() -> RedisSettings {
    RedisSettings {
        host: String::new(),
        port: 0,
        username: None,
        password: None,
        db: 0,
        tls: false,
        ca_file: None,
        cert_file: None,
        key_file: None,
        prefix: "t:".into(),
        timeout: Duration::from_secs(1),
        batch_age: Duration::ZERO,
        batch_bytes: 0,
        batch_compress_bytes: 0,
        lane_peers: 16,
        heartbeat_interval: Duration::from_secs(5),
        cleanup_interval: Duration::from_secs(10),
        inactive_threshold: Duration::from_secs(20),
        counts_connections: false,
    }
}

fn ingress(now: Instant) -> (Ingress, Receiver<Envelope>) {
    let (outlet, shard) = Outlet::new(64, Waker::new().unwrap());
    let (origin, cells) = (Origin(1), Arc::new(UplinkCells::default()));
    let following = Following::new(HistoryRules::none(), 1);
    let delivery = Delivery::new(origin, vec![outlet], following, Arc::clone(&cells)).unwrap();
    let handshake = Handshake { username: None, password: None, db: 0, name: "t".into() };
    let link = Link::new(handshake, Duration::from_secs(1), 1, now);
    let id = InstanceId::parse("a").unwrap();
    let shared = (lane::closed(), cells);
    (Ingress::new(&settings(), (&id, origin), link, delivery, true, shared, now), shard)
}

/// Redis answers.
fn hear(ingress: &mut Ingress, bytes: &[u8], now: Instant) -> Result<(), LinkError> {
    let mut events = Vec::new();
    ingress.link().receive(bytes, now, &mut events)?;
    events.into_iter().try_for_each(|event| ingress.event(event, 0, now))
}

/// What the ingress has said since the last call.
fn said(ingress: &mut Ingress) -> String {
    let said = String::from_utf8_lossy(ingress.link().output()).into_owned();
    let bytes = ingress.link().output().len();
    ingress.link().wrote(bytes);
    said
}

fn register(ingress: &mut Ingress, now: Instant) {
    ingress.link().connected(now);
    hear(ingress, b"+OK\r\n+OK\r\n+OK\r\n", now).unwrap();
    hear(ingress, b">3\r\n+subscribe\r\n+x\r\n:1\r\n>3\r\n+subscribe\r\n+x\r\n:2\r\n", now).unwrap();
    hear(ingress, b"*2\r\n$3\r\nnew\r\n$1\r\na\r\n", now).unwrap();
    said(ingress);
}

fn join(who: &str) -> UplinkCommand {
    let member = Member { user: UserId::parse(who).unwrap(), name: None, socket: "s".into() };
    let connection = ConnectionId { shard: ShardId(0), slot: 0, generation: 0 };
    let asker = Asker { connection, message_id: None };
    let join = Join {
        room: RoomId::parse("r").unwrap(),
        asker,
        member,
        want_members: false,
        since: None,
        again: false,
    };
    UplinkCommand::Join { join: Box::new(join), enters: true, route: Arc::default() }
}

#[test]
fn the_shards_restore_only_when_both_connections_are_up() {
    let now = Instant::now();
    let (mut ingress, shard) = ingress(now);
    register(&mut ingress, now);
    ingress.tick(PublisherLink { losses: 0, up: false }, now).unwrap();
    ingress.command(join("early"), now);
    assert!(!said(&mut ingress).contains("early"));
    ingress.tick(BOTH_UP, now).unwrap();
    assert!(matches!(shard.try_recv(), Ok(Envelope::Link(LinkState::Restoring))));
    let lost = ingress.tick(PublisherLink { losses: 1, up: false }, now).unwrap_err();
    ingress.lost(&lost, now);
    assert!(matches!(shard.try_recv(), Ok(Envelope::Link(LinkState::Down))));
    ingress.lost(&lost, now);
    assert!(shard.try_recv().is_err(), "told once");
}

#[test]
fn a_join_subscribes_in_front_of_the_script_and_is_answered_behind_it() {
    let now = Instant::now();
    let (mut ingress, shard) = ingress(now);
    register(&mut ingress, now);
    ingress.tick(BOTH_UP, now).unwrap();
    let _ = shard.try_recv();
    ingress.command(join("alice"), now);
    ingress.command(join("bob"), now);
    let said = said(&mut ingress);
    assert_eq!(said.matches("t:rooms:r").count(), 1, "subscribed once: {said}");
    assert!(said.find("SUBSCRIBE") < said.find("join"));
    hear(&mut ingress, b">3\r\n+subscribe\r\n+x\r\n:3\r\n", now).unwrap();
    assert!(shard.try_recv().is_err(), "the subscription alone is no answer");
    hear(&mut ingress, b"*2\r\n:1\r\n*0\r\n", now).unwrap();
    let Ok(Envelope::Joined(joined)) = shard.try_recv() else { panic!("the join is answered") };
    assert_eq!((joined.member_count, joined.members), (1, None));
    let refusal = hear(&mut ingress, b"-OOM command not allowed\r\n", now).unwrap_err();
    assert!(refusal.to_string().contains("OOM"), "{refusal}");
}

/// The operations of presence.lua that the ingress has called since the last look.
fn operations(ingress: &mut Ingress) -> Vec<&'static str> {
    let said = said(ingress);
    let all = ["join", "leave", "restore", "occupied"];
    said.split("\r\n").filter_map(|word| all.into_iter().find(|operation| *operation == word)).collect()
}

#[test]
fn who_was_left_over_in_a_room_goes_although_someone_joins_before_deserted_rooms_are_swept() {
    let now = Instant::now();
    let leave = || {
        let member = Member { user: UserId::parse("alice").unwrap(), name: None, socket: "s".into() };
        UplinkCommand::Leave { room: RoomId::parse("r").unwrap(), member, last: true }
    };
    let (mut ingress, _shard) = ingress(now);
    register(&mut ingress, now);
    ingress.tick(BOTH_UP, now).unwrap();
    ingress.command(join("alice"), now);
    assert_eq!(operations(&mut ingress), ["join"], "the room's home may still have members to restore");
    ingress.command(leave(), now);
    assert_eq!(operations(&mut ingress), ["restore"], "Redis may hold others than the last one");
    ingress.command(UplinkCommand::Restored { shard: ShardId(0) }, now);
    ingress.command(join("alice"), now);
    ingress.command(join("bob"), now);
    assert_eq!(operations(&mut ingress), ["occupied", "restore", "join", "join"], "it was nobody's before");
}

#[test]
fn heartbeats_and_reaping_come_at_their_times() {
    let now = Instant::now();
    let (mut ingress, _shard) = ingress(now);
    register(&mut ingress, now);
    ingress.tick(BOTH_UP, now).unwrap();
    assert_eq!(said(&mut ingress), "", "others get the time to come back first");
    assert!(ingress.deadline() <= now + Duration::from_secs(5));
    let mut calls = String::new();
    for second in 1..=14 {
        let now = now + Duration::from_secs(second);
        hear(&mut ingress, b">2\r\n+other\r\n+x\r\n", now).unwrap();
        while ingress.link().awaited() > 0 {
            // What the calls are answered does not matter here.
            let _ = hear(&mut ingress, b"$0\r\n\r\n", now);
        }
        ingress.tick(BOTH_UP, now).unwrap();
        calls += &said(&mut ingress);
    }
    assert_eq!((calls.matches("reap").count(), calls.matches("register").count()), (5, 2), "{calls}");
}

/// The arguments of the restore call that the ingress makes for alice, announced, and anna, a newcomer.
fn restore_after(silence: Duration) -> Vec<String> {
    let start = Instant::now();
    let (mut ingress, _shard) = ingress(start);
    register(&mut ingress, start);
    ingress.lost(&LinkError::OtherConnection, start);
    let now = start + silence;
    register(&mut ingress, now);
    ingress.tick(BOTH_UP, now).unwrap();
    let member = |who| Member { user: UserId::parse(who).unwrap(), name: None, socket: "s".into() };
    let room = RoomId::parse("r").unwrap();
    let (members, newcomers) = (vec![member("alice")], vec![member("anna")]);
    let route = Arc::default();
    ingress.command(UplinkCommand::Restore { room, route, members, newcomers, told: false }, now);
    let said = said(&mut ingress);
    let words: Vec<String> = said.split("\r\n").filter(|w| !w.starts_with('$')).map(String::from).collect();
    let at = words.iter().position(|word| word == "restore").expect("the room is restored");
    words[at..].iter().filter(|word| !word.starts_with('{')).skip(4).cloned().collect()
}

#[test]
fn members_are_held_as_present_unless_others_may_have_taken_the_instance_for_dead() {
    let silence = settings().silence();
    let short = restore_after(silence - Duration::from_millis(1));
    assert_eq!(short[..5], ["r", "a", "1", "alice", "anna"]);
    let long = restore_after(silence);
    assert_eq!(long[..5], ["r", "a", "0", "anna", "alice"]);
}

#[test]
fn an_instance_that_stops_during_the_handshake_still_gives_its_name_back() {
    let now = Instant::now();
    let (mut ingress, _shard) = ingress(now);
    ingress.link().connected(now);
    ingress.leave(now);
    assert!(!ingress.has_left());
    said(&mut ingress);
    hear(&mut ingress, b"+OK\r\n+OK\r\n+OK\r\n", now).unwrap();
    assert!(said(&mut ingress).contains("unregister"));
    hear(&mut ingress, b":1\r\n", now).unwrap();
    assert!(ingress.has_left());
}

#[test]
fn an_instance_that_stops_without_a_connection_has_left_at_once() {
    let now = Instant::now();
    let (mut ingress, _shard) = ingress(now);
    ingress.leave(now);
    assert!(ingress.has_left());
}

#[test]
fn rooms_published_in_alone_are_told_although_the_link_was_lost_again_meanwhile() {
    let now = Instant::now();
    let (mut ingress, _shard) = ingress(now);
    register(&mut ingress, now);
    ingress.tick(BOTH_UP, now).unwrap();
    ingress.lost(&LinkError::OtherConnection, now);
    // The shard has sent it while the link was being restored, and the ingress takes it after the next loss.
    ingress.command(UplinkCommand::PublishedAlone { rooms: vec![RoomId::parse("r").unwrap()] }, now);
    register(&mut ingress, now);
    ingress.tick(BOTH_UP, now).unwrap();
    ingress.command(UplinkCommand::Restored { shard: ShardId(0) }, now);
    let said = said(&mut ingress);
    assert!(said.contains("PUBLISH") && said.contains("t:rooms:r"), "{said}");
}

#[test]
fn a_connection_that_waits_for_the_uplink_is_answered_while_there_is_no_link() {
    let now = Instant::now();
    let (mut ingress, shard) = ingress(now);
    let connection = ConnectionId { shard: ShardId(0), slot: 7, generation: 0 };
    let user = UserId::parse("ann").unwrap();
    ingress.command(UplinkCommand::Attach { user, connection, counted: None }, now);
    ingress.flush();
    assert!(
        matches!(shard.try_recv(), Ok(Envelope::Attached { connection: answered }) if answered == connection)
    );
}
