//! The corpus of the fuzzers as an ordinary test: seeds, and inputs that once found something.

use std::fs;
use std::path::Path;

#[path = "../fuzz/targets.rs"]
mod targets;

/// Runs `target` on every input below `fuzz/corpus/name`, which must have some.
#[track_caller]
fn run(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let inputs = fs::read_dir(&directory).unwrap_or_else(|why| panic!("{}: {why}", directory.display()));
    let mut count = 0;
    for input in inputs {
        let path = input.expect("the directory is readable").path();
        // On a failure the captured output ends with the input's name.
        println!("{}", path.display());
        target(&fs::read(&path).expect("the input is readable"));
        count += 1;
    }
    assert!(count > 0, "no inputs in {}", directory.display());
}

#[test]
fn upgrades() {
    run("upgrade", targets::upgrade);
}

#[test]
fn frames() {
    run("frames", targets::frames);
}

#[test]
fn commands() {
    run("commands", targets::commands);
}

#[test]
fn batches() {
    run("batch", targets::batch);
}
