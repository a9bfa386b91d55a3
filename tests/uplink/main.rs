//! Instances and a real Redis: what one instance does, the shards of another one see.

mod harness;
mod history;
mod lanes;
mod process;
mod sessions;

use std::time::Duration;

use harness::*;
use tableforge::config::RedisSettings;
use tableforge::identity::{ConnectionId, ShardId};
use tableforge::shard::envelope::{Envelope, LinkState, Target, UplinkCommand};
use tableforge::uplink::batch::{self, Header, Origin, Sequence};
use tableforge::uplink::packing::{Packer, Readers};

fn subscribers(redis: &Redis, channel: &str) -> u64 {
    let answer: (String, u64) =
        redis::cmd("PUBSUB").arg("NUMSUB").arg(channel).query(&mut redis.client()).expect("PUBSUB works");
    answer.1
}

#[test]
fn a_join_is_answered_when_the_subscription_is_active() {
    let redis = Redis::start();
    let a = Instance::up("a", &settings(redis.port));
    let joined = a.join(&room("r"), "alice", true);
    assert_eq!(subscribers(&redis, "tf:rooms:r"), 1);
    assert_eq!((joined.member_count, joined.members), (1, Some(vec![member("alice")])));
    assert_eq!(joined.asker, asker("alice"));
    a.leave(&room("r"), "alice", true);
    a.settle();
    assert_eq!(subscribers(&redis, "tf:rooms:r"), 0);
}

#[test]
fn room_messages_cross_unchanged_and_do_not_come_back() {
    let redis = Redis::start();
    let (a, b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    a.join(&room("r"), "alice", true);
    b.join(&room("r"), "bob", true);
    let texts: Vec<String> = (0..500).map(|n| format!("{{\"type\":\"room_message\", \"n\":{n}}}")).collect();
    for text in &texts {
        a.publish(Target::Room(room("r")), text);
    }
    for text in &texts {
        assert_eq!(&b.room_text(), text);
    }
    assert!(b.cells.batches_in.get() < 500, "events share batches");
    foreign(&redis, "tf:rooms:r", b"{\"data\":\"sentinel\"}");
    assert!(a.room_text().contains("sentinel"), "the own messages did not come back");
    assert_eq!(a.cells.published.get(), 500);
}

#[test]
fn a_large_batch_is_compressed_on_the_way() {
    let redis = Redis::start();
    let (a, b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    b.join(&room("r"), "bob", true);
    let long = format!("{{\"data\":\"{}\"}}", "ha".repeat(30_000));
    a.publish(Target::Room(room("r")), &long);
    assert_eq!(b.room_text(), long);
    assert!(a.cells.batch_bytes_out.get() < 6_000);
}

#[test]
fn presence_counts_users_over_all_instances() {
    let redis = Redis::start();
    let (a, b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    a.join(&room("r"), "alice", true);
    assert_eq!(b.join(&room("r"), "alice", true).member_count, 1);
    let joined = b.join(&room("r"), "bob", true);
    assert_eq!(joined.member_count, 2);
    let mut users: Vec<_> = joined.members.unwrap().into_iter().map(|m| m.user).collect();
    users.sort();
    assert_eq!(users, [user("alice"), user("bob")]);
    let presence = a.presence();
    assert_eq!((presence.joined, presence.member_count, &presence.member), (true, 2, &member("bob")));

    a.leave(&room("r"), "alice", false);
    a.settle();
    b.leave(&room("r"), "alice", false);
    let presence = a.presence();
    assert_eq!((presence.joined, presence.member_count, &presence.member.user), (false, 1, &user("alice")));
    assert_eq!(b.join(&room("r"), "bob", false).member_count, 1);
}

#[test]
fn presence_reaches_the_instance_that_caused_it() {
    let redis = Redis::start();
    let a = Instance::up("a", &settings(redis.port));
    a.ask_join(&room("r"), "alice", true);
    let two = [a.any(0), a.any(0)];
    assert!(two.iter().any(|e| matches!(e, Envelope::Joined(_))), "{two:?}");
    assert!(two.iter().any(|e| matches!(e, Envelope::Presence(p) if p.member == member("alice"))), "{two:?}");
}

#[test]
fn users_and_everyone_are_reached() {
    let redis = Redis::start();
    let (a, b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    b.command(UplinkCommand::Attach { user: user("carol:1"), connection: connection(), counted: None });
    assert!(matches!(b.next(0), Envelope::Attached { connection: c } if c == connection()));
    a.publish(Target::User(user("carol:1")), "{\"to\":\"carol\"}");
    let home = tableforge::shard::home::of_user("carol:1", 2);
    match b.next(home.index()) {
        Envelope::ToUser { user: to, frame } => {
            assert_eq!((to, text(&frame).as_str()), (user("carol:1"), "{\"to\":\"carol\"}"));
        }
        other => panic!("expected a message for a user, got {other:?}"),
    }
    a.publish(Target::Global, "{\"all\":1}");
    for shard in 0..2 {
        assert!(matches!(b.next(shard), Envelope::GlobalFrame { frame } if text(&frame) == "{\"all\":1}"));
    }
    b.command(UplinkCommand::Detach { user: user("carol:1"), counted: None, last: true });
    b.settle();
    assert_eq!(subscribers(&redis, "tf:users:carol:1"), 0);
}

#[test]
fn other_programs_reach_members_and_garbage_is_counted() {
    let redis = Redis::start();
    let a = Instance::up("a", &settings(redis.port));
    a.join(&room("r"), "alice", true);
    assert_eq!(foreign(&redis, "tf:rooms:r", b"hello"), 1);
    assert_eq!(foreign(&redis, "tf:rooms:r", b"\xf5TF\x09"), 1);
    assert_eq!(foreign(&redis, "tf:rooms:r", b"{\"data\": [1.0, \"\\u00e9\"] }"), 1);
    let text = a.room_text();
    assert!(
        text.starts_with(
            "{\"type\":\"room_message\",\"roomId\":\"r\",\"senderId\":\"server\",\"timestamp\":"
        )
    );
    assert!(text.ends_with(",\"data\":[1.0, \"\\u00e9\"]}"), "{text}");
    assert_eq!((a.cells.garbage_in.get(), a.cells.foreign_in.get()), (2, 1));
}

#[test]
fn a_lost_batch_is_noticed() {
    let redis = Redis::start();
    let a = Instance::up("a", &settings(redis.port));
    a.join(&room("r"), "alice", true);
    let mut packer = Packer::new(usize::MAX).unwrap();
    for number in [4, 5, 7] {
        let mut records = Vec::new();
        batch::push_event(&mut records, format!("{{\"n\":{number}}}").as_bytes());
        let head = Header { origin: Origin(99), sequence: Sequence::Follows(number), from_script: false };
        foreign(&redis, "tf:rooms:r", &packer.pack(head, &records, Readers::Anyone));
    }
    assert_eq!((a.room_text(), a.room_text()), ("{\"n\":4}".into(), "{\"n\":5}".into()));
    assert_eq!(a.resync(), (Some(room("r")), "gap"));
    assert_eq!(a.room_text(), "{\"n\":7}");
    assert_eq!(a.cells.gaps.get(), 1);
}

#[test]
fn a_shard_that_does_not_keep_up_is_told_what_it_missed() {
    let redis = Redis::start();
    let a = Instance::try_start("a", &settings(redis.port), 4).unwrap();
    a.expect_link(LinkState::Restoring);
    a.restored();
    a.expect_link(LinkState::Up);
    a.join(&room("r"), "alice", true);
    for _ in 0..20 {
        foreign(&redis, "tf:rooms:r", b"{\"data\":1}");
    }
    // The user's message comes behind the others and goes to the shard that has kept up.
    let other =
        (0..).map(|n| format!("u{n}")).find(|name| tableforge::shard::home::of_user(name, 2) == ShardId(1));
    let other = other.unwrap();
    a.command(UplinkCommand::Attach {
        user: user(&other),
        connection: ConnectionId { shard: ShardId(1), slot: 0, generation: 0 },
        counted: None,
    });
    assert!(matches!(a.next(1), Envelope::Attached { .. }));
    foreign(&redis, &format!("tf:users:{other}"), b"{\"data\":2}");
    assert!(matches!(a.next(1), Envelope::ToUser { .. }));
    let dropped = a.cells.deliveries_dropped.get();
    assert!(dropped >= 15, "{dropped}");
    let mut delivered = 0;
    let resync = loop {
        match a.next(0) {
            Envelope::RoomFrame { .. } => delivered += 1,
            Envelope::RoomResync { room, reason, .. } => break (room, reason),
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(resync, (Some(room("r")), "overflow"));
    assert_eq!(delivered + dropped, 20, "each message was delivered or is covered by the resync behind it");
    foreign(&redis, "tf:rooms:r", b"{\"data\":\"again\"}");
    assert!(a.room_text().contains("again"));
}

#[test]
fn a_lost_redis_is_told_and_everything_comes_back() {
    let mut redis = Redis::start();
    let port = redis.port;
    let (a, b) = (Instance::up("a", &settings(port)), Instance::up("b", &settings(port)));
    let route = a.join(&room("r"), "alice", true).route;
    assert_eq!(b.join(&room("r"), "bob", true).member_count, 2);
    assert_eq!(a.presence().member_count, 2);

    redis.kill();
    a.expect_link(LinkState::Down);
    b.expect_link(LinkState::Down);
    assert_eq!((a.cells.link_up.get(), a.cells.link_losses.get()), (0, 1));
    drop(redis);
    let redis = Redis::on(port, &[]);

    a.expect_link(LinkState::Restoring);
    b.expect_link(LinkState::Restoring);
    a.restore(&room("r"), &route, &["alice"], &[]);
    a.restored();
    assert_eq!(a.resync(), (None, "redis_link_lost"));
    assert!(matches!(a.next(0), Envelope::Link(LinkState::Up)));
    b.restore(&room("r"), &route, &["bob"], &["bert"]);
    b.command(UplinkCommand::PublishedAlone { rooms: vec![room("r")] });
    b.command(UplinkCommand::RestoreUsers { users: vec![(user("bob"), Vec::new())] });
    b.restored();
    let presence = a.presence();
    assert_eq!(
        (presence.member.user.clone(), presence.member_count),
        (user("bert"), 3),
        "bob has been there"
    );
    assert_eq!(a.resync(), (Some(room("r")), "peer_link_lost"));
    assert_eq!(b.presence(), presence);
    assert_eq!(b.resync(), (None, "redis_link_lost"));
    assert!(matches!(b.next(0), Envelope::Link(LinkState::Up)));
    assert_eq!(subscribers(&redis, "tf:rooms:r"), 2);
    assert_eq!(subscribers(&redis, "tf:users:bob"), 1);
    b.publish(Target::Room(room("r")), "{\"n\":1}");
    assert_eq!(a.room_text(), "{\"n\":1}");
}

#[test]
fn losing_either_connection_brings_both_back() {
    let redis = Redis::start();
    let a = Instance::up("a", &settings(redis.port));
    for (losses, role) in ["publisher", "ingress"].into_iter().enumerate() {
        redis.kill_connection("a", role);
        a.expect_link(LinkState::Down);
        a.expect_link(LinkState::Restoring);
        a.restored();
        for shard in 0..2 {
            assert!(matches!(a.next(shard), Envelope::RoomResync { room: None, .. }));
        }
        a.expect_link(LinkState::Up);
        assert_eq!(a.cells.link_losses.get(), losses as u64 + 1);
    }
}

#[test]
fn a_redis_that_hangs_counts_as_lost() {
    let redis = Redis::start();
    let mut impatient = settings(redis.port);
    impatient.timeout = Duration::from_secs(1);
    let a = Instance::up("a", &impatient);
    redis.signal("STOP");
    a.expect_link(LinkState::Down);
    redis.signal("CONT");
    a.expect_link(LinkState::Restoring);
}

#[test]
fn the_shortest_timeout_is_enough_for_a_redis_that_answers() {
    let redis = Redis::start();
    let settings = RedisSettings { timeout: Duration::from_millis(50), ..settings(redis.port) };
    let instance = Instance::try_start("a", &settings, 1_024).expect("the uplink starts");
    // A machine may stand still for longer than that: then one of the next attempts succeeds.
    loop {
        match instance.next(0) {
            Envelope::Link(LinkState::Restoring) => instance.restored(),
            Envelope::Link(LinkState::Up) => break,
            _ => {}
        }
    }
}

#[test]
fn a_redis_that_comes_later_is_found() {
    let port = free_port();
    let a = Instance::try_start("a", &settings(port), 64).expect("an absent Redis is no error");
    a.expect_link(LinkState::Down);
    let _redis = Redis::on(port, &[]);
    a.expect_link(LinkState::Restoring);
    a.restored();
    for shard in 0..2 {
        assert!(matches!(a.next(shard), Envelope::RoomResync { room: None, .. }));
    }
    a.expect_link(LinkState::Up);
    assert_eq!(a.join(&room("r"), "alice", true).member_count, 1);
}

#[test]
fn a_silent_instance_is_removed_and_each_member_leaves_once() {
    let redis = Redis::start();
    let mut watching = settings(redis.port);
    watching.inactive_threshold = Duration::from_secs(3);
    let mut silent = settings(redis.port);
    silent.heartbeat_interval = Duration::from_secs(3_600);
    silent.cleanup_interval = Duration::from_secs(3_600);
    // Two instances watch, so that the removal could happen twice.
    let (a, b) = (Instance::up("a", &watching), Instance::up("b", &watching));
    a.join(&room("r"), "alice", true);
    let c = Instance::up("c", &silent);
    for who in ["alice", "bob", "carol"] {
        c.join(&room("r"), who, true);
    }
    assert_eq!([a.presence(), a.presence()].map(|p| p.member_count), [2, 3]);
    let mut left = [a.presence(), a.presence()];
    assert!(left.iter().all(|p| !p.joined));
    assert_eq!([&left[0], &left[1]].map(|p| p.member_count), [2, 1]);
    left.sort_by(|x, y| x.member.user.cmp(&y.member.user));
    assert_eq!([&left[0], &left[1]].map(|p| p.member.user.clone()), [user("bob"), user("carol")]);
    let mut client = redis.client();
    let mut alive: Vec<String> =
        redis::cmd("ZRANGE").arg("tf:registry").arg(0).arg(-1).query(&mut client).unwrap();
    alive.sort();
    assert_eq!(alive, ["a", "b"]);
    foreign(&redis, "tf:rooms:r", b"{\"data\":\"sentinel\"}");
    match a.next(0) {
        Envelope::RoomFrame { frame, .. } => assert!(text(&frame).contains("sentinel")),
        other => panic!("nobody leaves twice, but: {other:?}"),
    }
    drop(b);
}

#[test]
fn an_instance_that_was_removed_registers_again() {
    let redis = Redis::start();
    let a = Instance::up("a", &settings(redis.port));
    let route = a.join(&room("r"), "alice", true).route;
    let () = redis::cmd("FLUSHALL").query(&mut redis.client()).unwrap();
    a.expect_link(LinkState::Restoring);
    a.restore(&room("r"), &route, &["alice"], &[]);
    a.restored();
    assert_eq!(a.resync(), (None, "redis_link_lost"), "leaves may have been lost");
    assert!(matches!(a.next(0), Envelope::Link(LinkState::Up)));
    assert_eq!(a.join(&room("r"), "bob", true).member_count, 2);
}

#[test]
fn who_was_told_of_a_room_without_its_members_hears_of_their_return() {
    let mut redis = Redis::start();
    let port = redis.port;
    let (a, b) = (Instance::up("a", &settings(port)), Instance::up("b", &settings(port)));
    let route = a.join(&room("r"), "alice", true).route;
    b.join(&room("r"), "bob", true);
    assert_eq!(a.presence().member.user, user("bob"));
    redis.kill();
    a.expect_link(LinkState::Down);
    b.expect_link(LinkState::Down);
    drop(redis);
    let _redis = Redis::on(port, &[]);
    a.expect_link(LinkState::Restoring);
    b.expect_link(LinkState::Restoring);
    b.restore(&room("r"), &route, &["bob"], &[]);
    b.restored();
    b.resync();
    assert!(matches!(b.next(0), Envelope::Link(LinkState::Up)));
    b.command(UplinkCommand::ListMembers { room: room("r"), asker: asker("reload") });
    assert!(matches!(b.next(0), Envelope::Members { member_count: 1, .. }));
    a.restore(&room("r"), &route, &["alice"], &[]);
    let presence = b.presence();
    assert_eq!((presence.joined, presence.member_count, &presence.member), (true, 2, &member("alice")));
}

#[test]
fn a_lost_connection_alone_is_no_presence() {
    let redis = Redis::start();
    let (a, b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    let route = a.join(&room("r"), "alice", true).route;
    a.join(&room("r"), "adam", true);
    b.join(&room("r"), "bob", true);
    assert_eq!(a.presence().member.user, user("bob"));
    redis.kill_connection("a", "ingress");
    a.expect_link(LinkState::Down);
    a.expect_link(LinkState::Restoring);
    a.restore(&room("r"), &route, &["alice"], &["anna"]);
    let changes = [b.presence(), b.presence()].map(|p| (p.joined, p.member.user, p.member_count));
    assert_eq!(changes, [(false, user("adam"), 2), (true, user("anna"), 3)], "alice was there all along");
}

#[test]
fn members_whose_leave_was_announced_are_announced_again() {
    let redis = Redis::start();
    let mut silent = settings(redis.port);
    silent.heartbeat_interval = Duration::from_secs(3_600);
    silent.cleanup_interval = Duration::from_secs(3_600);
    silent.inactive_threshold = Duration::from_secs(2);
    let watching = RedisSettings { inactive_threshold: Duration::from_secs(2), ..settings(redis.port) };
    let b = Instance::up("b", &watching);
    b.join(&room("r"), "bob", true);
    let a = Instance::up("a", &silent);
    let route = a.join(&room("r"), "alice", true).route;
    assert!(b.presence().joined);
    assert!(!b.presence().joined, "nothing was heard of a for two seconds");
    assert!(!a.presence().joined, "a's own members heard it too");
    redis.kill_connection("a", "ingress");
    a.expect_link(LinkState::Down);
    a.expect_link(LinkState::Restoring);
    a.restore(&room("r"), &route, &["alice"], &[]);
    let presence = b.presence();
    assert_eq!((presence.joined, presence.member_count, &presence.member), (true, 2, &member("alice")));
}

#[test]
fn script_flush_is_invisible() {
    let redis = Redis::start();
    let a = Instance::up("a", &settings(redis.port));
    let mut client = redis.client();
    for round in 0..20 {
        for n in 0..50 {
            a.ask_join(&room(&format!("r{n}")), &format!("u{round}"), true);
        }
        let () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut client).unwrap();
        for n in 0..50 {
            let joined = a.joined();
            assert_eq!((joined.room.as_str(), joined.member_count), (format!("r{n}").as_str(), round + 1));
        }
    }
    assert_eq!(a.cells.link_losses.get(), 0);
}

#[test]
fn a_second_process_with_the_same_name_is_refused() {
    let redis = Redis::start();
    let mut settings = settings(redis.port);
    settings.heartbeat_interval = Duration::from_secs(1);
    let _a = Instance::up("same", &settings);
    let error = Instance::try_start("same", &settings, 64).err().expect("the name is taken");
    assert!(error.to_string().contains("INSTANCE_ID"), "{error}");
}

#[test]
fn what_a_dead_process_of_the_same_name_left_is_removed() {
    let redis = Redis::start();
    let mut client = redis.client();
    let seen: (u64, u64) = redis::cmd("TIME").query(&mut client).unwrap();
    let entry = "{\"user\":\"ghost\",\"socket\":\"s\"}";
    redis::pipe()
        .cmd("HSET")
        .arg("tf:boots")
        .arg("a")
        .arg("00000000000000ff 100")
        .cmd("ZADD")
        .arg("tf:registry")
        .arg(seen.0 * 1_000)
        .arg("a")
        .cmd("SADD")
        .arg("tf:occupied:a")
        .arg("r")
        .cmd("HSET")
        .arg("tf:presence:r")
        .arg("a|ghost")
        .arg(entry)
        .cmd("HSET")
        .arg("tf:members:r")
        .arg("ghost")
        .arg(1)
        .exec(&mut client)
        .unwrap();
    let a = Instance::up("a", &settings(redis.port));
    assert_eq!(a.join(&room("r"), "alice", true).member_count, 1);
}

#[test]
fn a_wrong_password_and_a_missing_right_are_named() {
    // Exactly the rights that the documentation lists.
    let rights =
        include_str!("../../docs/redis.md").split("## Rights").nth(1).expect("the docs list the rights");
    let rights: Vec<&str> = rights.split_whitespace().filter(|word| word.starts_with('+')).collect();
    let mut options = vec!["--user", "tf", "on", ">secret", "~tf:*", "&tf:*"];
    options.extend(&rights);
    options.extend(["--user", "default", "on", ">top", "~*", "&*", "+@all"]);
    let redis = Redis::on(free_port(), &options);
    let mut settings = settings(redis.port);
    let refusal =
        |settings| Instance::try_start("a", &settings, 64).err().expect("the start is refused").to_string();
    let error = refusal(settings.clone());
    assert!(error.contains("NOAUTH") && error.contains("REDIS_PASSWORD"), "{error}");
    settings.password = Some("guess".into());
    let error = refusal(settings.clone());
    assert!(error.contains("WRONGPASS") && !error.contains("guess"), "{error}");

    (settings.username, settings.password) = (Some("tf".into()), Some("secret".into()));
    let a = Instance::up("a", &settings);
    a.join(&room("r"), "alice", true);
    drop(a);
    let mut client = redis.client_as("default", "top");
    for right in rights {
        let without = right.replacen('+', "-", 1);
        let () = redis::cmd("ACL").arg("SETUSER").arg("tf").arg(&without).query(&mut client).unwrap();
        let error = refusal(settings.clone()).to_lowercase();
        let command = right[1..].split('|').next().unwrap();
        assert!(error.contains(command), "without {command}: {error}");
        let () = redis::cmd("ACL").arg("SETUSER").arg("tf").arg(right).query(&mut client).unwrap();
    }
}

#[test]
fn a_stopping_instance_publishes_the_rest_and_takes_its_members_along() {
    let redis = Redis::start();
    let (a, mut b) = (Instance::up("a", &settings(redis.port)), Instance::up("b", &settings(redis.port)));
    a.join(&room("r"), "alice", true);
    b.join(&room("r"), "bob", true);
    assert_eq!(a.presence().member_count, 2);
    for n in 0..100 {
        b.publish(Target::Room(room("r")), &format!("{{\"n\":{n}}}"));
    }
    b.stop();
    let (mut messages, mut leaves) = (0, 0);
    while messages < 100 || leaves < 1 {
        match a.next(0) {
            Envelope::RoomFrame { .. } => messages += 1,
            Envelope::Presence(presence) => {
                assert_eq!((presence.joined, presence.member_count), (false, 1));
                leaves += 1;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    let mut client = redis.client();
    let keys: Vec<String> = redis::cmd("KEYS").arg("tf:occupied:b").query(&mut client).unwrap();
    assert!(keys.is_empty());
    assert_eq!(a.cells.instances.get(), 1);
}

#[test]
fn every_key_expires() {
    let redis = Redis::start();
    let a = Instance::up("a", &settings(redis.port));
    a.join(&room("r"), "alice", true);
    let mut client = redis.client();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut client).unwrap();
    assert_eq!(keys.len(), 7, "{keys:?}");
    for key in keys {
        let seconds: i64 = redis::cmd("TTL").arg(&key).query(&mut client).unwrap();
        let expected = if key == "tf:told" { 0..=30 } else { 86_000..=86_400 };
        assert!(expected.contains(&seconds), "{key} expires in {seconds} s");
    }
}
