//! Does the faults to the cluster, and puts right what they broke.

use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::{Cluster, PREFIX};
use crate::control::{Order, Reins};
use crate::fault::{Fault, Hit};

/// Longest time for a replica to have what its primary has, before it can be promoted.
const SYNC: Duration = Duration::from_secs(15);

/// Between two looks at the replica.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What fills an instance's output buffer in Redis: payloads that instances drop.
const FILLING: (usize, usize) = (24, 512 * 1024);

/// The output limit meanwhile, and the one that Redis has by default.
const OUTPUT_LIMITS: [&str; 2] = ["pubsub 1048576 0 0", "pubsub 33554432 8388608 60"];

/// Begins a fault; whether it could be.
pub(crate) fn begin(
    fault: Fault,
    cluster: &mut Cluster,
    reins: &Reins,
    with: &[Fault],
) -> Result<bool, String> {
    match fault {
        Fault::PubsubKilled => {
            cluster.primary().tell(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        Fault::LinkKilled { host } => kill_connections(cluster, host),
        Fault::OutputLimit { host, .. } => fill_output(cluster, host),
        Fault::RedisEmpty { .. } => cluster.kill_primary(),
        Fault::RedisStopped { .. } => signal_primary(cluster, Signal::STOP),
        Fault::Failover { lost, readonly } => return fail_over(cluster, lost, readonly),
        Fault::RedisFull { .. } => {
            cluster.primary().tell(&["CONFIG", "SET", "maxmemory", "1"]);
        }
        Fault::ScriptsForgotten => {
            cluster.primary().tell(&["SCRIPT", "FLUSH"]);
        }
        Fault::KeysDeleted { every } => delete_keys(cluster, every),
        Fault::RedisSlow { host, by, .. } => set_delay(cluster, host, by),
        Fault::Lossy { host, percent, .. } => set_loss(cluster, host, percent),
        Fault::CutOff { host, .. } => cluster.proxies[host].set_silent(true),
        Fault::Refused { host, .. } => cluster.proxies[host].set_refusing(true),
        Fault::HostKilled { host, .. } => {
            cluster.kill_host(host);
            reins.order(Order::HostKilled(host));
        }
        Fault::HostStopped { host, .. } => signal_host(cluster, host, Signal::STOP),
        Fault::HostDrained { host } => {
            let drained = cluster.drain_host(host);
            // An instance that cannot reach Redis takes with it what it could not pass on.
            let cut_off = with.iter().any(|other| matches!(other.hits(), Hit::Redis | Hit::Network));
            reins.order(if cut_off { Order::HostKilled(host) } else { Order::HostEnded(host) });
            drained?;
        }
        Fault::ClientsDropped { every } => reins.order(Order::DropClients(every)),
        Fault::ReadersStalled { number, lasts } => reins.order(Order::StallReaders(number, lasts)),
    }
    Ok(true)
}

/// Puts right what a fault broke.
pub(crate) fn end(fault: Fault, cluster: &mut Cluster) -> Result<(), String> {
    match fault {
        Fault::RedisEmpty { .. } => cluster.restart_primary()?,
        Fault::RedisStopped { .. } => signal_primary(cluster, Signal::CONT),
        Fault::Failover { .. } => cluster.restart_replica()?,
        Fault::RedisFull { .. } => {
            cluster.primary().tell(&["CONFIG", "SET", "maxmemory", "0"]);
        }
        Fault::OutputLimit { host, .. } => {
            cluster.primary().tell(&["CONFIG", "SET", "client-output-buffer-limit", OUTPUT_LIMITS[1]]);
            cluster.proxies[host].set_silent(false);
        }
        Fault::RedisSlow { host, .. } => set_delay(cluster, host, 0),
        Fault::Lossy { host, .. } => set_loss(cluster, host, 0),
        Fault::CutOff { host, .. } => cluster.proxies[host].set_silent(false),
        Fault::Refused { host, .. } => cluster.proxies[host].set_refusing(false),
        Fault::HostKilled { host, .. } | Fault::HostDrained { host } => cluster.start_host(host)?,
        Fault::HostStopped { host, .. } => signal_host(cluster, host, Signal::CONT),
        Fault::PubsubKilled
        | Fault::LinkKilled { .. }
        | Fault::ScriptsForgotten
        | Fault::KeysDeleted { .. }
        | Fault::ClientsDropped { .. }
        | Fault::ReadersStalled { .. } => {}
    }
    Ok(())
}

fn kill_connections(cluster: &Cluster, host: usize) {
    let redis = cluster.primary();
    let list: String = redis.ask(&["CLIENT", "LIST"]).unwrap_or_default();
    let name = format!("name=tableforge-i{host}-");
    for line in list.lines().filter(|line| line.contains(&name)) {
        if let Some(id) = line.split(' ').next().and_then(|word| word.strip_prefix("id=")) {
            redis.tell(&["CLIENT", "KILL", "ID", id]);
        }
    }
}

fn fill_output(cluster: &Cluster, host: usize) {
    let redis = cluster.primary();
    redis.tell(&["CONFIG", "SET", "client-output-buffer-limit", OUTPUT_LIMITS[0]]);
    cluster.proxies[host].set_silent(true);
    let (times, bytes) = FILLING;
    for _ in 0..times {
        redis.publish(&format!("{PREFIX}global"), &vec![b'x'; bytes]);
        // The others have time to read.
        sleep(Duration::from_millis(20));
    }
}

fn delete_keys(cluster: &Cluster, every: usize) {
    let redis = cluster.primary();
    for pattern in ["history:*", "position:*"] {
        let keys: Vec<String> = redis.ask(&["KEYS", &format!("{PREFIX}{pattern}")]).unwrap_or_default();
        // Of the positions half as many: without one a room begins anew.
        let step = if pattern == "history:*" { every } else { 2 * every };
        for key in keys.iter().step_by(step) {
            redis.tell(&["DEL", key]);
        }
    }
}

/// The replica takes over: `lost` milliseconds long both take writes, then instances find the other one.
fn fail_over(cluster: &mut Cluster, lost: u64, readonly: u64) -> Result<bool, String> {
    let looks = SYNC.as_millis() / LOOK_EVERY.as_millis();
    if !(0..looks).any(|_| cluster.replica().is_synced_replica() || (sleep(LOOK_EVERY), false).1) {
        return Ok(false);
    }
    if lost > 0 {
        cluster.replica().tell(&["REPLICAOF", "NO", "ONE"]);
        sleep(Duration::from_millis(lost));
    }
    cluster.kill_primary();
    cluster.lead_to_replica();
    if lost == 0 {
        sleep(Duration::from_millis(readonly));
        cluster.primary().tell(&["REPLICAOF", "NO", "ONE"]);
    }
    Ok(true)
}

fn set_delay(cluster: &Cluster, host: Option<usize>, by: u64) {
    for_each_network(cluster, host, |proxy| proxy.set_delay(Duration::from_millis(by)));
}

fn set_loss(cluster: &Cluster, host: Option<usize>, percent: u32) {
    for_each_network(cluster, host, |proxy| proxy.set_loss(percent));
}

fn for_each_network(cluster: &Cluster, host: Option<usize>, change: impl Fn(&crate::proxy::Proxy)) {
    match host {
        Some(host) => change(&cluster.proxies[host]),
        None => cluster.proxies.iter().for_each(change),
    }
}

fn signal_primary(cluster: &Cluster, signal: Signal) {
    if let Some(process) = cluster.primary().process() {
        process.signal(signal);
    }
}

fn signal_host(cluster: &Cluster, host: usize, signal: Signal) {
    if let Some(process) = cluster.host(host) {
        process.signal(signal);
    }
}
