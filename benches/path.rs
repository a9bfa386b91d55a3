//! How long the operations on the path of a message take: `cargo bench --bench path`.

mod operations;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};

// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for entry in operations::all() {
        let (subject, variant) = entry.name.rsplit_once('/').expect("names are stage/what/variant");
        let mut operation = (entry.build)();
        let mut group = criterion.benchmark_group(subject);
        group.throughput(Throughput::Elements(entry.units));
        group.bench_function(variant, |bencher| {
            if operation.is_repeatable() {
                return bencher.iter(|| operation.run());
            }
            bencher.iter_custom(|runs| {
                let mut measured = Duration::ZERO;
                for _ in 0..runs {
                    operation.prepare();
                    let start = Instant::now();
                    operation.run();
                    measured += start.elapsed();
                }
                measured
            });
        });
        group.finish();
    }
    criterion.final_summary();
}
