//! Rooms with history over a real Redis: one order, no gap, no message twice, whatever fails.

use std::time::Duration;

use tableforge::room::history::{Epoch, NotRecovered, Position};
use tableforge::shard::envelope::{Envelope, LinkState, StoreOutcome, UplinkCommand};

use crate::harness::*;

fn numbered(text: &str, offset: u64) -> String {
    format!("{{\"data\":\"{text}\",\"offset\":{offset}}}")
}

fn texts(frames: &[bytes::Bytes]) -> Vec<String> {
    frames.iter().map(|frame| text(frame)).collect()
}

fn run(redis: &Redis, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(word);
    });
    let () = command.query(&mut redis.client()).expect("Redis carries it out");
}

/// How often a command was called.
fn calls(redis: &Redis, command: &str) -> u64 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut redis.client()).unwrap();
    let start = format!("cmdstat_{command}:calls=");
    stats
        .lines()
        .find_map(|line| line.strip_prefix(&start))
        .map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[test]
fn offsets_are_contiguous_and_the_same_on_both_instances() {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, b) = (
        Instance::with_history("a", &settings, rules(1_000)),
        Instance::with_history("b", &settings, rules(1_000)),
    );
    let joined = a.join(&room("r"), "alice", true);
    let position = joined.history.expect("the room has history");
    assert_eq!(position.offset, 0);
    assert_eq!(b.join(&room("r"), "bob", true).history, Some(position));
    for n in 0..300 {
        a.ask_store(&room("r"), "alice", Some(&format!("a{n}")), &format!("a{n}"));
        b.ask_store(&room("r"), "bob", Some(&format!("b{n}")), &format!("b{n}"));
    }
    let mut acked = std::collections::HashMap::new();
    for instance in [&a, &b] {
        for n in 0..300 {
            let (id, StoreOutcome::Stored(offset)) = instance.outcome() else { panic!("not stored") };
            assert_eq!(id[1..], n.to_string(), "a sender's messages keep their order");
            acked.insert(id, offset);
        }
    }
    let (seen_a, seen_b): (Vec<_>, Vec<_>) = (0..600).map(|_| (a.room_text(), b.room_text())).unzip();
    assert_eq!(seen_a, seen_b);
    for (text, offset) in seen_a.iter().zip(1..) {
        let id = text.split('"').nth(3).unwrap();
        assert_eq!((text, acked[id]), (&numbered(id, offset), offset));
    }
}

#[test]
fn the_sender_is_named_on_its_own_instance_only() {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, b) = (
        Instance::with_history("a", &settings, rules(10)),
        Instance::with_history("b", &settings, rules(10)),
    );
    a.join(&room("r"), "alice", true);
    b.join(&room("r"), "bob", true);
    a.presence();
    a.ask_store(&room("r"), "alice", None, "x");
    assert!(matches!(a.next(0), Envelope::RoomFrame { sender: Some(sender), .. } if sender == connection()));
    assert!(matches!(b.next(0), Envelope::RoomFrame { sender: None, .. }));
}

#[test]
fn the_same_message_at_the_same_moment_from_two_instances_is_one() {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, b) = (
        Instance::with_history("a", &settings, rules(10)),
        Instance::with_history("b", &settings, rules(10)),
    );
    a.join(&room("r"), "watcher", true);
    for n in 1..=100 {
        let id = format!("m{n}");
        a.ask_store(&room("r"), "alice", Some(&id), &id);
        b.ask_store(&room("r"), "alice", Some(&id), &id);
        assert_eq!((a.outcome().1, b.outcome().1), (StoreOutcome::Stored(n), StoreOutcome::Stored(n)));
        assert_eq!(a.room_text(), numbered(&id, n));
    }
    assert_eq!(a.store(&room("r"), "bob", "m1", "other"), StoreOutcome::Stored(101), "another user's own");
    assert_eq!(a.room_text(), numbered("other", 101));
}

#[test]
fn who_returns_gets_exactly_what_was_missed() {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, b) =
        (Instance::with_history("a", &settings, rules(5)), Instance::with_history("b", &settings, rules(5)));
    let epoch = a.join(&room("r"), "alice", true).history.unwrap().epoch;
    for n in 1..=8 {
        assert_eq!(a.store(&room("r"), "alice", &format!("m{n}"), &format!("m{n}")), StoreOutcome::Stored(n));
    }
    let at = |offset| Position { epoch, offset };
    // On the instance that followed the room, and on one that has to read it.
    for instance in [&a, &b] {
        for _ in 0..if std::ptr::eq(instance, &a) { 8 } else { 0 } {
            instance.room_text();
        }
        let edge = instance.resume(&room("r"), "carol", at(3));
        assert_eq!(edge.history, Some(at(8)));
        let missed: Vec<_> = (4..=8).map(|n| numbered(&format!("m{n}"), n)).collect();
        assert_eq!(texts(&edge.recovery.unwrap()), missed);
        let reason = |since| instance.resume(&room("r"), "carol", since).recovery.err();
        assert_eq!(reason(at(2)), Some(NotRecovered::Expired));
        assert_eq!(reason(at(9)), Some(NotRecovered::Future));
        assert_eq!(reason(at(8)), None);
        assert_eq!(reason(Position { epoch: Epoch(1), offset: 8 }), Some(NotRecovered::Epoch));
        let page = |since, limit, reverse| instance.page(&room("r"), since, limit, reverse).unwrap().1;
        assert_eq!(page(None, 2, true), [numbered("m8", 8), numbered("m7", 7)]);
        assert_eq!(page(Some(at(5)), 2, false), [numbered("m6", 6), numbered("m7", 7)]);
        assert_eq!(page(None, 1, false), [numbered("m4", 4)]);
        assert!(page(Some(Position { epoch: Epoch(1), offset: 0 }), 9, false).is_empty());
    }
    // On an instance without members of the room Redis gives the page.
    let c = Instance::with_history("c", &settings, rules(5));
    let (position, frames) = c.page(&room("r"), Some(at(6)), 9, false).unwrap();
    assert_eq!((position, frames), (at(8), vec![numbered("m7", 7), numbered("m8", 8)]));
    assert_eq!(c.page(&room("r"), Some(at(6)), 1, true).unwrap().1, [numbered("m5", 5)]);
}

#[test]
fn two_hundred_who_return_at_once_cost_one_read() {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, b) = (
        Instance::with_history("a", &settings, rules(100)),
        Instance::with_history("b", &settings, rules(100)),
    );
    let epoch = a.join(&room("r"), "alice", true).history.unwrap().epoch;
    for n in 1..=20 {
        a.store(&room("r"), "alice", &format!("m{n}"), "x");
    }
    let before = calls(&redis, "xrevrange");
    for n in 0..200 {
        b.ask_resume(&room("r"), &format!("u{n}"), true, Some(Position { epoch, offset: 5 }));
    }
    for _ in 0..200 {
        assert_eq!(b.joined().recovery.unwrap().len(), 15);
    }
    assert_eq!(calls(&redis, "xrevrange") - before, 1);
}

#[test]
fn what_a_killed_subscription_missed_is_given_without_a_resync() {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, b) = (
        Instance::with_history("a", &settings, rules(100)),
        Instance::with_history("b", &settings, rules(100)),
    );
    a.join(&room("r"), "alice", true);
    let route = b.join(&room("r"), "bob", true).route;
    a.store(&room("r"), "alice", "m1", "m1");
    assert_eq!(b.room_text(), numbered("m1", 1));
    redis.kill_connection("b", "ingress");
    b.expect_link(LinkState::Down);
    a.store(&room("r"), "alice", "m2", "m2");
    b.expect_link(LinkState::Restoring);
    a.store(&room("r"), "alice", "m3", "m3");
    b.restore(&room("r"), &route, &["bob"], &[]);
    b.restored();
    a.store(&room("r"), "alice", "m4", "m4");
    for n in 2..=4 {
        // The state of the link comes in between, and nothing else.
        let text = match b.next(0) {
            Envelope::Link(LinkState::Up) => b.room_text(),
            Envelope::RoomFrame { frame, .. } => text(&frame),
            other => panic!("unexpected {other:?}"),
        };
        assert_eq!(text, numbered(&format!("m{n}"), n));
    }
}

/// What `b`'s members are told when its link is back, while which `meanwhile` happened elsewhere.
fn told_after_a_loss(meanwhile: impl FnOnce(&Instance), told_alone: bool) -> Vec<&'static str> {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, b) = (
        Instance::with_history("a", &settings, rules(100)),
        Instance::with_history("b", &settings, rules(100)),
    );
    a.join(&room("r"), "alice", true);
    let route = b.join(&room("r"), "bob", true).route;
    redis.kill_connection("b", "ingress");
    b.expect_link(LinkState::Down);
    b.expect_link(LinkState::Restoring);
    meanwhile(&a);
    a.settle();
    let (members, newcomers) = (vec![member("bob")], Vec::new());
    b.command(UplinkCommand::Restore { room: room("r"), route, members, newcomers, told: told_alone });
    b.restored();
    let mut reasons = Vec::new();
    loop {
        match b.next(0) {
            Envelope::RoomResync { room: of, reason, position } => {
                assert_eq!((of, position.map(|p| p.offset)), (Some(room("r")), Some(0)));
                reasons.push(reason);
            }
            Envelope::Link(LinkState::Up) => break,
            Envelope::Presence(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    // And what comes now is told as ever.
    a.join(&room("r"), "later", true);
    let presence = b.presence();
    assert_eq!((presence.joined, &presence.member), (true, &member("later")));
    reasons
}

#[test]
fn joins_and_leaves_that_the_loss_of_the_link_hid_are_announced_as_stale_presence() {
    let leave = |a: &Instance| a.leave(&room("r"), "alice", true);
    assert_eq!(told_after_a_loss(leave, false), ["presence"]);
    let join = |a: &Instance| drop(a.join(&room("r"), "anna", true));
    assert_eq!(told_after_a_loss(join, false), ["presence"]);
    assert_eq!(told_after_a_loss(|_| (), true), ["presence"], "members were told what b alone knew");
    assert_eq!(told_after_a_loss(|_| (), false), [""; 0], "nothing has changed");
}

#[test]
fn a_message_lost_on_the_way_is_filled_in() {
    let redis = Redis::start();
    let a = Instance::with_history("a", &settings(redis.port), rules(100));
    let epoch = a.join(&room("r"), "alice", true).history.unwrap().epoch;
    let stored = |n: u64| {
        redis::pipe()
            .cmd("XADD")
            .arg("tf:history:r")
            .arg(format!("{n}-0"))
            .arg("t")
            .arg(redis::cmd("TIME").query::<(u64, u64)>(&mut redis.client()).unwrap().0 * 1_000)
            .arg("s")
            .arg(&[0xFF_u8; 16][..])
            .arg("e")
            .arg(format!("{{\"data\":\"lost{n}\"}}"))
            .cmd("HSET")
            .arg("tf:position:r")
            .arg("o")
            .arg(n)
            .exec(&mut redis.client())
            .unwrap();
    };
    // In a busy room the next message shows it.
    stored(1);
    assert_eq!(a.store(&room("r"), "alice", "m", "m2"), StoreOutcome::Stored(2));
    assert_eq!([a.room_text(), a.room_text()], [numbered("lost1", 1), numbered("m2", 2)]);
    assert_eq!(a.cells.gaps.get(), 1);
    // In an idle room a look at the position does.
    stored(3);
    assert_eq!(a.room_text(), numbered("lost3", 3));
    let joined = a.resume(&room("r"), "bob", Position { epoch, offset: 0 });
    assert_eq!(joined.recovery.unwrap().len(), 3);
}

#[test]
fn a_redis_that_comes_back_empty_begins_a_new_epoch() {
    let mut redis = Redis::start();
    let port = redis.port;
    let a = Instance::with_history("a", &settings(port), rules(100));
    let joined = a.join(&room("r"), "alice", true);
    let (route, old) = (joined.route, joined.history.unwrap());
    a.store(&room("r"), "alice", "m1", "m1");
    assert_eq!(a.room_text(), numbered("m1", 1));
    redis.kill();
    a.expect_link(LinkState::Down);
    assert_eq!(a.store(&room("r"), "alice", "m2", "m2"), StoreOutcome::Unavailable);
    drop(redis);
    let _redis = Redis::on(port, &[]);
    a.expect_link(LinkState::Restoring);
    a.restore(&room("r"), &route, &["alice"], &[]);
    a.restored();
    let position = match a.next(0) {
        Envelope::RoomResync { reason: "new_epoch", position: Some(position), .. } => position,
        other => panic!("expected a resync, got {other:?}"),
    };
    assert_ne!(position.epoch, old.epoch);
    assert!(matches!(a.next(0), Envelope::Link(LinkState::Up)));
    assert_eq!(a.store(&room("r"), "alice", "m3", "m3"), StoreOutcome::Stored(position.offset + 1));
    assert_eq!(a.room_text(), numbered("m3", position.offset + 1));
    let resumed = a.resume(&room("r"), "bob", Position { offset: 1, ..old });
    assert_eq!(resumed.recovery.err(), Some(NotRecovered::Epoch));
}

#[test]
fn a_deleted_stream_begins_a_new_epoch() {
    let redis = Redis::start();
    let a = Instance::with_history("a", &settings(redis.port), rules(100));
    let old = a.join(&room("r"), "alice", true).history.unwrap();
    a.store(&room("r"), "alice", "m1", "m1");
    a.room_text();
    run(&redis, &["DEL", "tf:history:r"]);
    assert_eq!(a.store(&room("r"), "alice", "m2", "m2"), StoreOutcome::Stored(2));
    match a.next(0) {
        Envelope::RoomResync { reason: "new_epoch", position: Some(position), .. } => {
            assert_ne!(position.epoch, old.epoch);
            assert_eq!(position.offset, 1);
        }
        other => panic!("expected a resync, got {other:?}"),
    }
    assert_eq!(a.room_text(), numbered("m2", 2));
}

#[test]
fn without_memory_nothing_is_stored_and_nobody_receives() {
    let redis = Redis::start();
    let mut quiet = settings(redis.port);
    quiet.heartbeat_interval = Duration::from_secs(3_600);
    quiet.cleanup_interval = Duration::from_secs(3_600);
    let a = Instance::with_history("a", &quiet, rules(100));
    a.join(&room("r"), "alice", true);
    run(&redis, &["CONFIG", "SET", "maxmemory", "1"]);
    for n in 0..50 {
        a.ask_store(&room("r"), "alice", Some(&format!("m{n}")), "lost");
    }
    for _ in 0..50 {
        assert_eq!(a.outcome().1, StoreOutcome::Unavailable);
    }
    run(&redis, &["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(a.store(&room("r"), "alice", "m0", "kept"), StoreOutcome::Stored(1));
    assert_eq!(a.room_text(), numbered("kept", 1));
}

#[test]
fn forgotten_scripts_change_neither_order_nor_number() {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, b) =
        (Instance::with_history("a", &settings, rules(9)), Instance::with_history("b", &settings, rules(9)));
    a.join(&room("r"), "alice", true);
    let mut client = redis.client();
    for n in 0..500 {
        a.ask_store(&room("r"), "alice", None, &n.to_string());
        b.ask_store(&room("r"), "bob", None, "noise");
        if n % 5 == 0 {
            let () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut client).unwrap();
        }
    }
    let (mut next, mut offset) = (0, 0);
    while next < 500 || offset < 1_000 {
        let text = a.room_text();
        offset += 1;
        if text != numbered("noise", offset) {
            assert_eq!(text, numbered(&next.to_string(), offset));
            next += 1;
        }
    }
    assert_eq!((a.cells.link_losses.get(), a.cells.gaps.get()), (0, 0));
}

#[test]
fn a_slow_redis_is_a_timeout_and_the_repetition_no_second_message() {
    let redis = Redis::start();
    let mut impatient = settings(redis.port);
    impatient.timeout = Duration::from_secs(1);
    let a = Instance::with_history("a", &impatient, rules(100));
    let route = a.join(&room("r"), "alice", true).route;
    redis.signal("STOP");
    assert_eq!(a.store(&room("r"), "alice", "m1", "m1"), StoreOutcome::Timeout);
    a.expect_link(LinkState::Down);
    redis.signal("CONT");
    a.expect_link(LinkState::Restoring);
    a.restore(&room("r"), &route, &["alice"], &[]);
    a.restored();
    assert_eq!(a.store(&room("r"), "alice", "m1", "m1"), StoreOutcome::Stored(1));
    assert_eq!(a.store(&room("r"), "alice", "m2", "m2"), StoreOutcome::Stored(2));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match a.next(0) {
            Envelope::RoomFrame { frame, .. } => seen.push(text(&frame)),
            Envelope::Link(LinkState::Up) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(seen, [numbered("m1", 1), numbered("m2", 2)]);
}

#[test]
fn a_promoted_replica_begins_a_new_epoch_and_keeps_what_it_has() {
    let mut primary = Redis::start();
    let replica = Redis::start();
    let port = primary.port.to_string();
    run(&replica, &["REPLICAOF", "127.0.0.1", &port]);
    let old = {
        let a = Instance::with_history("a", &settings(primary.port), rules(100));
        let old = a.join(&room("r"), "alice", true).history.unwrap();
        assert_eq!(a.store(&room("r"), "alice", "m1", "m1"), StoreOutcome::Stored(1));
        old
    };
    // The replica has everything before the primary goes.
    let synced = || -> i64 { redis::cmd("EXISTS").arg("tf:history:r").query(&mut replica.client()).unwrap() };
    while synced() == 0 {
        std::thread::yield_now();
    }
    primary.kill();
    run(&replica, &["REPLICAOF", "NO", "ONE"]);
    let a = Instance::with_history("b", &settings(replica.port), rules(100));
    let resumed = a.resume(&room("r"), "bob", Position { offset: 1, ..old });
    assert_eq!(resumed.recovery.err(), Some(NotRecovered::Epoch));
    assert_ne!(resumed.history.unwrap().epoch, old.epoch);
    assert_eq!(a.page(&room("r"), None, 9, false).unwrap().1, [numbered("m1", 1)]);
    assert_eq!(
        a.store(&room("r"), "alice", "m1", "again"),
        StoreOutcome::Stored(1),
        "what is kept is no news"
    );
}
