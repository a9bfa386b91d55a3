//! What the system says of this process.

use std::os::linux::fs::MetadataExt;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Resident bytes of this process, and bytes of memory the machine has; 0 where /proc does not tell.
pub fn memory() -> (u64, u64) {
    let page = rustix::param::page_size() as u64;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    (statm(1) * page, total * 1024)
}

/// Bytes of address space.
pub fn virtual_memory() -> u64 {
    statm(0) * rustix::param::page_size() as u64
}

/// One of the numbers of pages in /proc/self/statm.
fn statm(place: usize) -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(place).and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

/// Seconds of CPU time that all threads have used.
pub fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Descriptors that may be open; nothing where there is no limit.
pub fn most_descriptors() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Descriptors that are open. Before Linux 6.2 they have to be listed, which takes a while with many: this is not for a
/// shard's thread.
pub fn open_descriptors() -> u64 {
    let directory = "/proc/self/fd";
    match std::fs::metadata(directory).map(|about| about.st_size()) {
        Ok(count) if count > 0 => count,
        _ => std::fs::read_dir(directory).map_or(0, |entries| entries.count().saturating_sub(1) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells() {
        let (resident, total) = memory();
        assert!(resident > 0 && total > resident && virtual_memory() >= resident);
        assert!(cpu_seconds() >= 0.0 && most_descriptors().is_none_or(|most| most > 0));
    }

    #[test]
    fn an_open_file_is_counted() {
        // Other tests of this process open and close files meanwhile: a hundred stand out.
        let before = open_descriptors();
        let files: Vec<_> = (0..100).map(|_| std::fs::File::open("/proc/self/statm").unwrap()).collect();
        assert!(open_descriptors() > before + 50, "{} files", files.len());
    }
}
