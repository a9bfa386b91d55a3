//! A thread of the uplink: pinned, and the end of the process if it panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crate::logging;

/// Starts the thread `name` on the CPU `cpu`, or on any.
///
/// # Errors
/// When the system refuses a thread.
pub(super) fn spawn(
    name: &str,
    cpu: Option<usize>,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let thread = std::thread::current();
        if let Some(cpu) = cpu.filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU) {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
                tracing::warn!(cpu, %error, "the uplink's thread cannot be pinned");
            }
        }
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            // The panic itself has been logged. Going on would mean members cut off from the others of
            // their room without being told; an instance that ends is noticed, replaced and cleared away.
            let name = thread.name().unwrap_or_default();
            tracing::error!("the uplink's thread {name} has panicked: ending the process");
            logging::finish();
            std::process::abort();
        }
    })
}
