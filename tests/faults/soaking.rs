//! A short soak: all kinds of faults to three instances at random, judged by the checker.

use std::path::Path;

use soak::SoakArguments;

#[test]
fn a_short_soak_breaks_no_promise() {
    let arguments = SoakArguments {
        minutes: 0.2,
        server: Some(Path::new(env!("CARGO_BIN_EXE_tableforge")).to_owned()),
        seed: Some(4),
        clients: 30,
        rooms: 8,
        rate: 80,
        shards: 2,
        faults: Vec::new(),
        logs: None,
        json: false,
        html: None,
        svg: None,
        quiet: true,
    };
    let report = soak::run(&arguments).expect("the processes start");
    assert!(report.is_good(), "{report}\n{:#?}", report.script);
    assert!(report.counts.deliveries > 1_000, "{report}");
    let seconds: u64 = report.series.iter().map(|point| point.delivered).sum();
    assert!((1_000..=report.counts.deliveries).contains(&seconds), "{:?}", report.series);
}
