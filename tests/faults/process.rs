//! Processes that may not start, die under load, and end in order.

use std::collections::HashSet;
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::redis::RedisServer;
use crate::harness::server::{Server, command};
use crate::harness::{eventually, free_port, http, token};
use crate::stalling::by_way_of;
use crate::{hear, history, instance, join_since, message, messages_of, publish, wait_for_instances};

#[test]
fn forbidden_io_uring_ends_the_start_with_cause_and_cure() {
    let mut command = by_way_of("without_io_uring.py", &command("serve", free_port(), &[]));
    let mut process = Process::start("the server without io_uring", &mut command);
    let status = process.wait();
    let said = process.output();
    assert_eq!(status.code(), Some(1), "{said}");
    let refusal: Vec<_> = said.lines().filter(|line| line.starts_with("tableforge: ")).collect();
    assert_eq!(refusal.len(), 1, "{said}");
    assert!(refusal[0].contains("io_uring is not permitted") && refusal[0].contains("seccomp"), "{said}");
}

#[test]
fn kill_9_under_load_loses_nothing_acknowledged_and_leaves_no_ghosts() {
    const EACH: usize = 150;
    let redis = RedisServer::start();
    let [a, mut b, c] = ["a", "b", "c"].map(|id| {
        instance(
            &redis,
            id,
            &[&token::REQUIRED[..], &[("SHARDS", "2"), ("INACTIVE_THRESHOLD", "4000")]].concat(),
        )
    });
    let connect = |server: &Server, user: &str| Client::connect_as(server, &token::of(user));
    let mut speakers = [connect(&a, "ann"), connect(&b, "bob"), connect(&c, "cid")];
    speakers.iter_mut().for_each(|speaker| drop(speaker.join("h")));
    let mut ghosts: Vec<_> = (0..3).map(|number| connect(&b, &format!("ghost-{number}"))).collect();
    ghosts.iter_mut().for_each(|ghost| drop(ghost.join("h")));
    let mut returning = connect(&b, "rita");
    let epoch = returning.join("h")["epoch"].clone();
    // All at once, so that the kill finds some under way at every stage.
    let ids: Vec<Vec<_>> = speakers
        .iter_mut()
        .map(|speaker| (0..EACH).map(|number| speaker.ask(message("h", number))).collect())
        .collect();
    let seen = hear(&mut returning, 20);
    b.process.kill();
    // Whoever comes back, to another instance, has exactly what it missed.
    let mut returned = connect(&c, "rita");
    let last = seen.last().expect("20").0;
    let joined = join_since(&mut returned, "h", &epoch, last);
    assert_eq!(joined["recovered"], true, "{}", joined.text);
    let mut acked = Vec::new();
    for place in [0, 2] {
        for (number, id) in ids[place].iter().enumerate() {
            let reply = speakers[place].reply_to(id);
            assert_eq!(reply["type"], "message_ack", "{}", reply.text);
            acked.push((reply["offset"].as_u64().expect("an offset"), json!(number)));
        }
    }
    speakers[1].has_received("message_ack");
    while let Some(ack) = speakers[1].take_pending("message_ack") {
        let id = ack["messageId"].as_str().expect("an id");
        let number = ids[1].iter().position(|asked| asked == id).expect("it was asked");
        acked.push((ack["offset"].as_u64().expect("an offset"), json!(number)));
    }
    let end = publish(&mut speakers[0], "h", "end");
    let mut all = seen;
    all.extend(messages_of(&joined));
    let from = all.len();
    all.extend(hear(&mut returned, end as usize - from));
    assert_eq!(all.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), (1..=end).collect::<Vec<_>>());
    let kept = history(&mut returned, "h");
    for (offset, data) in &acked {
        assert_eq!(kept.get(offset), Some(data), "what was acknowledged is there, at its place");
    }
    assert!(all.iter().all(|(offset, data)| kept.get(offset) == Some(data)));
    // The dead instance's members leave, once each.
    let mut gone: Vec<_> = (0..4).map(|_| speakers[0].expect("user_left_room")["userId"].clone()).collect();
    gone.sort_by_key(|user| user.to_string());
    assert_eq!(gone, ["bob", "ghost-0", "ghost-1", "ghost-2"]);
    [&a, &c].iter().for_each(|server| wait_for_instances(std::slice::from_ref(*server), 2));
    let listed = speakers[0].request(json!({"type": "room_members", "roomId": "h"}));
    assert_eq!(listed["memberCount"], 3, "{}", listed.text);
    speakers[0].drain();
    speakers[0].assert_none("user_left_room");
}

#[test]
fn sigterm_is_not_ready_takes_nobody_flushes_acks_and_ends_with_success() {
    let redis = RedisServer::start();
    let admin_port = free_port();
    let admin = admin_port.to_string();
    let mut server = instance(&redis, "a", &[("ADMIN_PORT", admin.as_str()), ("SHARDS", "2")]);
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&server)).collect();
    clients.iter_mut().for_each(|client| drop(client.join("h")));
    let ids: Vec<_> = (0..200).map(|number| clients[0].ask(message("h", number))).collect();
    // The first reply says that the messages have come.
    assert_eq!(clients[0].reply_to(&ids[0])["type"], "message_ack");
    server.process.signal(Signal::TERM);
    eventually("it takes nobody", || TcpStream::connect(("127.0.0.1", server.port)).is_err().then_some(()));
    if let Some(answer) = http::try_get(admin_port, "/ready") {
        assert_eq!((answer.status, answer.body.contains("draining")), (503, true), "{}", answer.body);
    }
    for (offset, id) in (2..).zip(&ids[1..]) {
        let reply = clients[0].reply_to(id);
        assert_eq!(
            (&reply["type"], &reply["offset"]),
            (&json!("message_ack"), &json!(offset)),
            "{}",
            reply.text
        );
    }
    let mut delays = HashSet::new();
    for client in &mut clients {
        let event = client.expect("server_draining");
        delays.insert(event["reconnectAfterMs"].as_u64().expect("a delay in ms"));
        assert_eq!(client.expect_close(), 1012);
    }
    assert!(delays.len() > 10, "each connection has its own delay: {delays:?}");
    assert!(server.process.wait().success());
    let kept: i64 = redis.command(&["XLEN", "tableforge:history:h"]);
    assert_eq!(kept, 200);
}
