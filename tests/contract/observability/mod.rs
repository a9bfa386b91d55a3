//! What an operator sees (docs/observability.md): metrics, the files made from them, correlation ids, logs, traces.

mod collector;
mod correlation;
mod files;
mod metrics;
mod traces;

use crate::harness::http;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;

/// A server that exposes every metric there is: in a cluster, with an application to ask and a collector for traces,
/// neither of which needs to be there.
fn complete(redis: &RedisServer) -> Server {
    let settings = [
        ("AUTHORIZE_URL", "http://127.0.0.1:9/authorize"),
        ("OTLP_ENDPOINT", "http://127.0.0.1:9"),
        ("TRACE_SAMPLE", "0"),
    ];
    Server::in_cluster(redis, "north-1", &settings)
}

/// The sum of the samples called `name` whose labels contain all of `labels`.
fn sum(port: u16, name: &str, labels: &[&str]) -> f64 {
    let text = http::get(port, "/metrics").body;
    let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    let samples = samples.filter(|line| labels.iter().all(|label| line.contains(label)));
    samples.map(|line| line.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number")).sum()
}
