//! The rows of faults that docs/guarantees.md lists: real instances, a real Redis, and what exactly their clients see.
//!
//! One test binary with the harness of the contract tests. Each module is one group of rows; `soak` does all kinds of
//! faults to a cluster at random and has the checker judge it.

#[path = "../contract/harness/mod.rs"]
#[macro_use]
#[allow(dead_code, unused_macros, reason = "the harness has more than these tests need")]
mod harness;

mod network;
mod order;
mod process;
mod redis;
mod soaking;
mod stalling;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use soak::proxy::Proxy;

use crate::harness::client::{Client, Event};
use crate::harness::eventually;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;

/// What every instance is started with: history, and a Redis that counts as lost soon.
const SETTINGS: [(&str, &str); 2] = [("HISTORY_ROOMS", "h*"), ("REDIS_TIMEOUT", "1000")];

/// An instance of the cluster of `redis`.
#[track_caller]
fn instance(redis: &RedisServer, id: &str, more: &[(&str, &str)]) -> Server {
    Server::in_cluster(redis, id, &[&SETTINGS[..], more].concat())
}

/// An instance that reaches Redis by way of `network`.
#[track_caller]
fn instance_behind(network: &Proxy, redis: &RedisServer, id: &str, more: &[(&str, &str)]) -> Server {
    let port = network.port.to_string();
    instance(redis, id, &[&[("REDIS_PORT", port.as_str())], more].concat())
}

/// A network in front of `redis`.
#[track_caller]
fn network_to(redis: &RedisServer) -> Proxy {
    Proxy::start(redis.port).expect("a port is free")
}

/// Instances `a` and `b` that know each other.
#[track_caller]
fn pair(redis: &RedisServer, more: &[(&str, &str)]) -> [Server; 2] {
    let pair = ["a", "b"].map(|id| instance(redis, id, more));
    wait_for_instances(&pair, 2);
    pair
}

/// Waits until each of `servers` counts that many instances.
#[track_caller]
fn wait_for_instances(servers: &[Server], count: u64) {
    for server in servers {
        eventually(&format!("{count} instances"), || {
            (server.get_json("/stats")["totalInstances"] == count).then_some(())
        });
    }
}

/// A message to a room.
fn message(room: &str, data: impl Into<Value>) -> Value {
    json!({"type": "room_message", "roomId": room, "data": data.into()})
}

/// Publishes and waits for the ack; the message's number.
#[track_caller]
fn publish(client: &mut Client, room: &str, data: impl Into<Value>) -> u64 {
    let ack = client.request(message(room, data));
    assert_eq!(ack["type"], "message_ack", "{}", ack.text);
    ack["offset"].as_u64().unwrap_or_else(|| panic!("an ack has an offset: {}", ack.text))
}

/// Publishes with a `messageId` of its own until that is acknowledged, as a client does that wants to know; the number.
#[track_caller]
fn insist(client: &mut Client, room: &str, data: &str) -> u64 {
    let mut wanted = message(room, data);
    wanted["messageId"] = format!("id-{data}").into();
    eventually(&format!("{data} is acknowledged"), || {
        client.send(&wanted);
        let reply = client.reply_to(&format!("id-{data}"));
        match reply["type"].as_str() {
            Some("message_ack") => Some(reply["offset"].as_u64().expect("an ack has an offset")),
            _ => {
                let code = reply["code"].as_str().unwrap_or_default();
                assert!(["unavailable", "timeout"].contains(&code), "{}", reply.text);
                None
            }
        }
    })
}

/// Joins with `since`; the reply.
#[track_caller]
fn join_since(client: &mut Client, room: &str, epoch: &Value, offset: u64) -> Event {
    client
        .join_with(json!({"type": "join_room", "roomId": room, "since": {"epoch": epoch, "offset": offset}}))
}

/// Checks that a join was answered with `recovered: false` and that reason.
#[track_caller]
fn assert_not_recovered(joined: &Event, reason: &str) {
    assert_eq!((&joined["recovered"], &joined["reason"]), (&json!(false), &json!(reason)), "{}", joined.text);
    assert!(joined.get("messages").is_none(), "never in part: {}", joined.text);
}

/// The messages of a reply: number and data.
#[track_caller]
fn messages_of(reply: &Event) -> Vec<(u64, Value)> {
    let all = reply["messages"].as_array().unwrap_or_else(|| panic!("messages: {}", reply.text));
    all.iter().map(|one| (one["offset"].as_u64().expect("an offset"), one["data"].clone())).collect()
}

/// Waits for the next `count` messages of a room with history: number and data.
#[track_caller]
fn hear(client: &mut Client, count: usize) -> Vec<(u64, Value)> {
    (0..count)
        .map(|_| {
            let event = client.expect("room_message");
            (event["offset"].as_u64().expect("an offset"), event["data"].clone())
        })
        .collect()
}

/// A room's whole history as an instance gives it: by number, the data.
#[track_caller]
fn history(client: &mut Client, room: &str) -> BTreeMap<u64, Value> {
    history_unless_unavailable(client, room).expect("the history can be read")
}

/// As [`history`]; nothing when the instance cannot reach it now.
#[track_caller]
fn history_unless_unavailable(client: &mut Client, room: &str) -> Option<BTreeMap<u64, Value>> {
    let (mut all, mut since) = (BTreeMap::new(), None::<Value>);
    loop {
        let mut request = json!({"type": "room_history", "roomId": room, "limit": 300});
        if let Some(since) = &since {
            request["since"] = since.clone();
        }
        let page = client.request(request);
        if page["code"] == "unavailable" {
            return None;
        }
        let got = messages_of(&page);
        let Some((last, _)) = got.last().cloned() else { return Some(all) };
        since = Some(json!({"epoch": page["epoch"], "offset": last}));
        all.extend(got);
    }
}

/// Waits until the link of all of these clients' instances is in that state.
#[track_caller]
fn expect_status(clients: &mut [&mut Client], status: &str) {
    for client in clients {
        client.expect_that(status, |event| event["type"] == "cluster_status" && event["status"] == status);
    }
}

/// Ends one of an instance's connections from Redis's side.
#[track_caller]
fn kill_connection(redis: &RedisServer, instance: &str, role: &str) {
    let name = format!("name=tableforge-{instance}-{role} ");
    let list: String = redis.command(&["CLIENT", "LIST"]);
    let line = list.lines().find(|line| line.contains(&name)).expect("the connection is there");
    let id = line.split(' ').next().and_then(|word| word.strip_prefix("id=")).expect("an id comes first");
    let killed: i64 = redis.command(&["CLIENT", "KILL", "ID", id]);
    assert_eq!(killed, 1);
}
