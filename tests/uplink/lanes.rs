//! Batches over an instance's lane: to all other instances at once.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tableforge::config::RedisSettings;
use tableforge::shard::envelope::{Envelope, LinkState, Publication, Target, UplinkCommand};

use super::harness::*;

/// Publishes to rooms that nobody is in until the instance uses its lane, or no longer.
fn await_lane(instance: &Instance, used: bool) {
    let (begin, cells) = (Instant::now(), &instance.cells);
    loop {
        let before = (cells.lane_batches_out.get(), cells.batches_out.get());
        for name in ["nobody-1", "nobody-2", "nobody-3", "nobody-4"] {
            instance.publish(Target::Room(room(name)), "{}");
        }
        let batches = || cells.batches_out.get() - before.1;
        let lane = || cells.lane_batches_out.get() - before.0;
        while batches() < 4 + lane() && lane() == 0 {
            std::thread::yield_now();
        }
        // The first of them may have gone alone.
        if (lane() > 0) == used {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "the lane is used: {}", !used);
    }
}

#[test]
fn what_is_sent_to_many_at_once_goes_over_the_lane_in_order() {
    let redis = Redis::start();
    let (a, b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    let rooms = ["r0", "r1", "r2", "r3"];
    rooms.iter().for_each(|name| drop(b.join(&room(name), "bob", true)));
    b.command(UplinkCommand::Attach { user: user("carol"), connection: connection(), counted: None });
    assert!(matches!(b.next(0), Envelope::Attached { .. }));
    await_lane(&a, true);
    let before = a.cells.batches_out.get();
    for n in 0..200 {
        a.publish(Target::Room(room(rooms[n % 4])), &format!("{{\"n\":{n}}}"));
    }
    a.publish(Target::User(user("carol")), "{\"to\":\"carol\"}");
    a.publish(Target::User(user("nobody")), "{\"to\":\"nobody\"}");
    a.publish(Target::Global, "{\"all\":1}");
    let (mut next, mut to_carol, mut to_all) = ([0, 1, 2, 3], 0, 0);
    let home = tableforge::shard::home::of_user("carol", 2).index();
    while to_all == 0 {
        match b.next(0) {
            Envelope::RoomFrame { room, frame, .. } => {
                let place = rooms.iter().position(|name| *name == room.as_str()).expect("a room of bob's");
                assert_eq!(text(&frame), format!("{{\"n\":{}}}", next[place]));
                next[place] += 4;
            }
            Envelope::ToUser { user: to, .. } => {
                assert_eq!(to, user("carol"));
                to_carol += 1;
            }
            Envelope::GlobalFrame { .. } => to_all += 1,
            other => panic!("unexpected {other:?}"),
        }
    }
    if home == 1 {
        assert!(matches!(b.next(1), Envelope::ToUser { .. }));
        to_carol += 1;
    }
    assert_eq!((next, to_carol), ([200, 201, 202, 203], 1));
    let batches = a.cells.batches_out.get() - before;
    assert!(batches < 60, "{batches} batches for 203 events of 7 targets");
    assert!(b.cells.lane_batches_in.get() > 0 && b.cells.gaps.get() == 0);
}

#[test]
fn an_instance_that_comes_while_lanes_are_used_misses_nothing_after_its_join() {
    let redis = Redis::start();
    let settings = settings(redis.port);
    let (a, _b) = (Instance::up("a", &settings), Instance::up("b", &settings));
    await_lane(&a, true);
    let (stop, used) = (AtomicBool::new(false), a.cells.lane_batches_out.get());
    let (publications, stopped) = (a.publications(), &stop);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut n = 0_u64;
            while !stopped.load(SeqCst) {
                for name in ["r0", "r1", "r2", "r3"] {
                    let event = format!("{{\"n\":{n}}}").into();
                    let target = Target::Room(room(name));
                    publications.send(Publication::Event { target, event }).expect("the publisher runs");
                }
                n += 1;
                // No more than what the readers below keep up with.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // Whatever the scope waits for must end also when an assertion fails.
        let outcome = std::panic::catch_unwind(|| {
            for round in 0..5 {
                let c = Instance::up(&format!("c{round}"), &settings);
                c.ask_join(&room("r1"), "carl", true);
                // The instance listens before the script answers, so messages may come first.
                while !matches!(c.next(0), Envelope::Joined(_)) {}
                let number = |text: String| text[5..text.len() - 1].parse::<u64>().expect("a number");
                let first = number(c.room_text());
                for n in first + 1..first + 300 {
                    assert_eq!(number(c.room_text()), n);
                }
            }
        });
        stop.store(true, SeqCst);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    await_lane(&a, true);
    assert!(a.cells.lane_batches_out.get() > used);
}

#[test]
fn the_lane_is_left_to_itself_as_long_as_someone_may_not_listen() {
    let redis = Redis::start();
    let (a, b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    b.join(&room("r"), "bob", true);
    await_lane(&a, true);
    // An instance of a version without lanes: registered, and it answers no question.
    let now: (u64, u64) = redis::cmd("TIME").query(&mut redis.client()).unwrap();
    redis::cmd("ZADD").arg("tf:registry").arg(now.0 * 1_000).arg("old").exec(&mut redis.client()).unwrap();
    await_lane(&a, false);
    a.publish(Target::Room(room("r")), "{\"n\":1}");
    assert_eq!(b.room_text(), "{\"n\":1}");
    redis::cmd("ZREM").arg("tf:registry").arg("old").exec(&mut redis.client()).unwrap();
    await_lane(&a, true);
    a.publish(Target::Room(room("r")), "{\"n\":2}");
    assert_eq!(b.room_text(), "{\"n\":2}");
    assert_eq!(b.cells.gaps.get(), 0);
}

#[test]
fn a_lane_opens_again_after_the_links_loss() {
    let redis = Redis::start();
    let (a, b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    await_lane(&a, true);
    for role in ["ingress", "publisher"] {
        redis.kill_connection("a", role);
        a.expect_link(LinkState::Down);
        a.expect_link(LinkState::Restoring);
        a.restored();
        for shard in 0..2 {
            assert!(matches!(a.next(shard), Envelope::RoomResync { .. }));
            assert!(matches!(a.next(shard), Envelope::Link(LinkState::Up)));
        }
        await_lane(&a, true);
    }
    b.join(&room("r"), "bob", true);
    a.publish(Target::Room(room("r")), "{\"n\":1}");
    assert_eq!(b.room_text(), "{\"n\":1}");
}

#[test]
fn with_lane_peers_0_everything_goes_over_the_channels() {
    let redis = Redis::start();
    let without = RedisSettings { lane_peers: 0, ..settings(redis.port) };
    let (a, b) = (Instance::up("a", &without), Instance::up("b", &settings(redis.port)));
    // b's own lane is used: a listens.
    await_lane(&b, true);
    await_lane(&a, false);
    assert_eq!(a.cells.lane_batches_out.get(), 0);
}
