//! Several instances and a real Redis: docs/redis.md as its users see it.

mod crossing;
mod failures;
mod foreign;
pub mod limits;
mod membership;

use crate::harness::redis::RedisServer;
use crate::harness::server::Server;

/// Two instances, `a` and `b`, of one cluster, which know each other.
#[track_caller]
fn pair(redis: &RedisServer, settings: &[(&str, &str)]) -> [Server; 2] {
    let pair = ["a", "b"].map(|id| Server::in_cluster(redis, id, settings));
    pair.iter().for_each(|server| wait_for_instances(server, 2));
    pair
}

/// Waits until `server` counts that many instances.
#[track_caller]
fn wait_for_instances(server: &Server, count: u64) {
    crate::harness::eventually(&format!("{count} instances"), || {
        (server.get_json("/stats")["totalInstances"] == count).then_some(())
    });
}
