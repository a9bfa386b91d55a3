//! How many instructions the operations on the path of a message take, compared with a budget.
//!
//! Each operation runs in a process of its own under valgrind's callgrind, which counts only within
//! [`counted_run`]. `.ci/instructions` runs this program; `benches/README.md` describes it.

#[path = "../../operations/mod.rs"]
mod operations;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use operations::{Entry, Operation};
use serde::Deserialize;

// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs before counting: pools fill, vectors grow, zstd sets up its tables.
const WARM_UP_RUNS: u64 = 32;

/// Runs that are counted; the budget has their mean.
const COUNTED_RUNS: u64 = 32;

/// Rise or fall of a count that needs nobody's attention: a change of unrelated code can move a
/// function into another unit of compilation, which changes a few instructions.
const TOLERANCE: f64 = 0.03;

const BUDGET_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../instructions.toml");

const BUDGET_HEAD: &str = "\
# Instructions per operation on the path of a message, counted under valgrind: see README.md here.
# Written by `.ci/instructions --update`; `.ci/instructions` fails when a count rises by more than 3 %.
#
# Counts repeat on one machine. They depend on what `counted_with` lists: the compiler, the C library
# (its memcpy) and the processor: simd-json, zstd and the C library choose their code at run time by
# the features that valgrind shows them, AVX2 and BMI2 but never AVX-512. On a machine that differs,
# write the file anew before the change that is to be judged.
";

#[derive(Deserialize)]
struct Budget {
    counted_with: Vec<String>,
    instructions: BTreeMap<String, f64>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["--run", name] => run_for_counting(name),
        [] => count_all().and_then(|counts| compare(&counts)),
        ["--update"] => count_all().and_then(|counts| update(&counts)),
        _ => Err(format!("unknown arguments {arguments:?}: use --update or nothing")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// What the process under valgrind does.
fn run_for_counting(name: &str) -> Result<(), String> {
    let entry = operations::all()
        .into_iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| format!("there is no operation {name}"))?;
    let mut operation = (entry.build)();
    for _ in 0..WARM_UP_RUNS {
        operation.prepare();
        operation.run();
    }
    for _ in 0..COUNTED_RUNS {
        operation.prepare();
        counted_run(&mut *operation);
    }
    Ok(())
}

/// The function within which callgrind counts, by this name.
#[inline(never)]
fn counted_run(operation: &mut dyn Operation) {
    operation.run();
}

/// Instructions per unit of every operation, in order.
fn count_all() -> Result<Vec<(String, f64)>, String> {
    let entries = operations::all();
    let names: Vec<(&str, u64)> = entries.iter().map(|Entry { name, units, .. }| (&**name, *units)).collect();
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let count_some = || {
        let mut counts = Vec::new();
        while let Some((name, units)) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let per_unit = count(name)? as f64 / (COUNTED_RUNS * units) as f64;
            counts.push((name.to_string(), (per_unit * 10.0).round() / 10.0));
        }
        Ok::<_, String>(counts)
    };
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(count_some)).collect();
        for thread in threads {
            counts.extend(thread.join().expect("a counting thread does not panic")?);
        }
        Ok::<_, String>(())
    })?;
    Ok(names.iter().map(|(name, _)| (name.to_string(), counts[*name])).collect())
}

/// Instructions of all counted runs of an operation.
fn count(name: &str) -> Result<u64, String> {
    let program = env::current_exe().map_err(|error| format!("the program has no path: {error}"))?;
    // Without the caller's environment, whose length would move the stack and with it alignments.
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*::counted_run"])
        .arg(program)
        .args(["--run", name])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .output()
        .map_err(|error| format!("valgrind cannot be started: {error}; install the package valgrind"))?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match collected {
        Some(count) if output.status.success() && count > 0 => Ok(count),
        _ => Err(format!("{name} was not counted:\n{report}")),
    }
}

/// Judges the counts by the budget.
fn compare(counts: &[(String, f64)]) -> Result<(), String> {
    let text = fs::read_to_string(BUDGET_FILE).map_err(|error| format!("{BUDGET_FILE}: {error}"))?;
    let budget: Budget = toml::from_str(&text).map_err(|error| format!("{BUDGET_FILE}: {error}"))?;
    let (mut problems, mut notes) = (String::new(), String::new());
    for (name, count) in counts {
        let Some(old) = budget.instructions.get(name) else {
            let _ = writeln!(problems, "{name}: {count:.1} instructions, but no budget");
            continue;
        };
        let change = count / old - 1.0;
        println!("{name:42} {count:10.1}  {:+6.1} %", change * 100.0);
        let line = format!("{name}: {old:.1} instructions before, {count:.1} now ({:+.1} %)", change * 100.0);
        if change > TOLERANCE {
            let _ = writeln!(problems, "{line}");
        } else if change < -TOLERANCE {
            let _ = writeln!(notes, "{line}");
        }
    }
    for name in budget.instructions.keys().filter(|name| counts.iter().all(|(known, _)| known != *name)) {
        let _ = writeln!(problems, "{name}: has a budget, but there is no such operation");
    }
    if !notes.is_empty() {
        println!("\nThe budget can be lowered with .ci/instructions --update:\n{notes}");
    }
    if problems.is_empty() {
        return Ok(());
    }
    let here = counted_with()?;
    if here != budget.counted_with {
        let _ = writeln!(
            problems,
            "The budget was counted with {:?}, these counts with {here:?}: that alone can be the reason.",
            budget.counted_with
        );
    }
    Err(format!(
        "\nInstructions over budget (more than {:.0} %). If it is worth it: .ci/instructions --update\n{problems}",
        TOLERANCE * 100.0
    ))
}

/// Writes the counts as the new budget.
fn update(counts: &[(String, f64)]) -> Result<(), String> {
    let mut text = format!("{BUDGET_HEAD}counted_with = {:?}\n\n[instructions]\n", counted_with()?);
    for (name, count) in counts {
        println!("{name:42} {count:10.1}");
        let _ = writeln!(text, "{name:?} = {count:.1}");
    }
    fs::write(BUDGET_FILE, text).map_err(|error| format!("{BUDGET_FILE}: {error}"))
}

/// What counts depend on, besides the code.
fn counted_with() -> Result<Vec<String>, String> {
    let version = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    Ok(vec![
        version("rustc", "--version")?,
        version("getconf", "GNU_LIBC_VERSION")?,
        version("valgrind", "--version")?,
        processor().to_owned(),
    ])
}

#[cfg(target_arch = "x86_64")]
fn processor() -> &'static str {
    if is_x86_feature_detected!("avx2") { "x86_64 with AVX2" } else { "x86_64 without AVX2" }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> &'static str {
    env::consts::ARCH
}
