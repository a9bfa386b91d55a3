//! Runs many worlds over the machine's cores, each of them on one thread.

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Instant;

    use checker::record::Room;

    use crate::world::simulation::{Outcome, Plant, Simulation};

    /// Worlds in one run of the tests.
    const SEEDS: u64 = 1_000;

    /// Worlds with rushes in one run of the tests.
    const RUSHES: u64 = 100;

    /// More of them. In the first two, clients came into a room between the restoring of rooms and the sweep of
    /// deserted ones, which then passed over one whom a failover had brought back; in the third, one came while
    /// another's join waited for a room's history.
    const FOUND: [u64; 3] = [452, 689, 1_087];

    /// Names the one seed to run.
    const SEED: &str = "TABLEFORGE_SEED";

    /// Names a room of that world, whose members' lives are printed.
    const ROOM: &str = "TABLEFORGE_ROOM";

    /// Says how many seeds to run instead of [`SEEDS`].
    const COUNT: &str = "TABLEFORGE_SEEDS";

    fn number(variable: &str) -> Option<u64> {
        let text = std::env::var(variable).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
    }

    fn show(seed: u64, outcome: &Outcome) -> String {
        let mut text = format!("seed {seed}: replay it with {SEED}={seed}\n");
        for (at, fault) in &outcome.faults {
            text.push_str(&format!("  {at:>6} ms {fault:?}\n"));
        }
        outcome.violations.iter().take(10).for_each(|found| text.push_str(&format!("  {found}\n")));
        for (room, told, right) in outcome.wrong_counts.iter().take(10) {
            text.push_str(&format!("  {room}: told {told} members, there are {right}\n"));
        }
        let wrong = outcome.wrong_presence.iter().take(10).chain(outcome.wrong_sessions.iter().take(10));
        wrong.for_each(|found| text.push_str(&format!("  {found}\n")));
        text
    }

    #[test]
    fn worlds_end_well() {
        if let Some(seed) = number(SEED) {
            println!("replaying the world of {SEED}={seed} alone");
            let outcome = match number(ROOM) {
                Some(room) => Simulation::run_logged(seed, Instant::now(), Room(room as u32)),
                None => Simulation::run(seed, Instant::now(), None),
            };
            outcome.log.iter().for_each(|line| println!("{line}"));
            assert!(outcome.is_good(), "{}", show(seed, &outcome));
            return;
        }
        let (seeds, next) = (number(COUNT).unwrap_or(SEEDS), AtomicU64::new(0));
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let failed: Vec<String> = std::thread::scope(|scope| {
            let run = || {
                let mut failed = Vec::new();
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds {
                        return failed;
                    }
                    let outcome = std::panic::catch_unwind(|| Simulation::run(seed, Instant::now(), None));
                    match outcome {
                        Ok(outcome) if outcome.is_good() => {}
                        Ok(outcome) => failed.push(show(seed, &outcome)),
                        Err(_) => {
                            failed.push(format!("seed {seed}: a panic; replay it with {SEED}={seed}\n"))
                        }
                    }
                }
            };
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            running.into_iter().flat_map(|thread| thread.join().expect("panics are caught")).collect()
        });
        assert!(failed.is_empty(), "{} of {seeds} worlds end badly\n{}", failed.len(), failed.concat());
    }

    #[test]
    fn worlds_with_rushes_end_well() {
        let mut late = 0;
        let seeds = number(SEED).map_or((0..RUSHES).chain(FOUND).collect(), |seed| vec![seed]);
        for seed in seeds {
            let outcome = Simulation::run_with_rushes(seed, Instant::now());
            assert!(outcome.is_good(), "{}", show(seed, &outcome));
            late += outcome.late_sessions;
        }
        assert!(late > 50 || number(SEED).is_some(), "{late} calls that come too late are no test");
    }

    #[test]
    fn a_seed_gives_the_same_world_twice() {
        for seed in 0..5 {
            let first = Simulation::run(seed, Instant::now(), None);
            assert!(first.received > 500, "{} messages are no test", first.received);
            assert!(first.over_lanes > 50, "{} batches over lanes are no test", first.over_lanes);
            assert_eq!(first, Simulation::run(seed, Instant::now(), None));
        }
        let other = |seed| Simulation::run(seed, Instant::now(), None).trace;
        assert_ne!(other(1), other(2));
    }

    #[test]
    fn planted_faults_are_found() {
        for plant in [Plant::Drop, Plant::Duplicate, Plant::Swap, Plant::Fork] {
            for seed in 0..5 {
                let outcome = Simulation::run(seed, Instant::now(), Some(plant));
                assert!(!outcome.violations.is_empty(), "{plant:?} with seed {seed} is not found");
            }
        }
    }
}
