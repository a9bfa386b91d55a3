//! What must hold before a shard starts: kernel, io_uring, memory, CPUs, descriptors, the port.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::config::{Settings, usable_cpus};
use crate::limits;

/// What was found where everything needed is there.
#[derive(Debug, Default)]
pub struct Report {
    /// What works but should be known, one sentence each.
    pub warnings: Vec<String>,
}

/// Why the server cannot run here. The text is one line: the cause and the cure.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Older than [`limits::KERNEL`], or not to be read.
    #[error(
        "Linux {0} is too old: the server needs {major}.{minor} or newer; update the kernel",
        major = limits::KERNEL.0,
        minor = limits::KERNEL.1
    )]
    Kernel(String),
    /// The kernel was built without io_uring, or a filter pretends so.
    #[error(
        "io_uring is not there (ENOSYS): the kernel was built without it, or a container's seccomp profile \
         hides it; use a kernel with CONFIG_IO_URING and allow io_uring_setup, io_uring_enter and \
         io_uring_register in the profile"
    )]
    UringMissing,
    /// `kernel.io_uring_disabled` forbids it.
    #[error(
        "io_uring is switched off (kernel.io_uring_disabled = {0}); allow it with: \
         sysctl -w kernel.io_uring_disabled=0"
    )]
    UringDisabled(u8),
    /// Something else forbids it.
    #[error(
        "io_uring is not permitted (EPERM): a seccomp profile or security module forbids it; allow \
         io_uring_setup, io_uring_enter and io_uring_register (docker: --security-opt seccomp=PROFILE)"
    )]
    UringForbidden,
    /// No memory for a small ring.
    #[error(
        "no memory for io_uring (ENOMEM): raise the limit of locked memory (systemd: LimitMEMLOCK=64M) or \
         the memory limit of the container"
    )]
    UringMemory,
    /// Any other failure of io_uring.
    #[error("io_uring cannot be used: {0}; check with: dmesg, or strace -e io_uring_setup")]
    Uring(#[source] io::Error),
    /// RLIMIT_MEMLOCK is below [`limits::MEMLOCK_BYTES`].
    #[error(
        "the limit of locked memory is {have} KiB, and a shard needs {need} KiB; raise it (shell: ulimit -l \
         {need}, systemd: LimitMEMLOCK=64M, docker: --ulimit memlock=67108864)",
        have = .0 / 1024,
        need = limits::MEMLOCK_BYTES / 1024
    )]
    Memlock(u64),
    /// No CPU to run on.
    #[error(
        "no CPU is usable: sched_getaffinity names none; check taskset, cpuset or the container's --cpuset-cpus"
    )]
    NoCpu,
    /// More shards than a set of shards can name.
    #[error("SHARDS: {0} is out of range; allowed: 1 to {most}", most = limits::SHARDS)]
    Shards(usize),
    /// Another process listens there.
    #[error(
        "port {} on {} is in use by another process; stop that one (find it with: ss -ltnp 'sport = :{}') or \
         choose another port with WS_PORT or --ws-port",
        .0.port(),
        .0.ip(),
        .0.port()
    )]
    PortInUse(SocketAddr),
    /// A port below 1024, and no right to it.
    #[error(
        "port {} needs a privilege that this process does not have; choose one from 1024 up with WS_PORT or \
         --ws-port, or grant CAP_NET_BIND_SERVICE",
        .0.port()
    )]
    PortForbidden(SocketAddr),
    /// No interface of this machine has the address.
    #[error("{0} is not an address of this machine; choose one with WS_HOST or --ws-host (0.0.0.0 for all)")]
    AddressNotLocal(IpAddr),
    /// Any other failure of the port.
    #[error("cannot listen on {0}: {1}; choose another address with WS_HOST or port with WS_PORT")]
    Listen(SocketAddr, #[source] io::Error),
}

/// What one look is for, and what is found: nothing, a warning, or why the server cannot run.
type Look = (&'static str, fn(&Settings) -> Result<Option<String>, PreflightError>);

/// In the order in which they are made: what comes later rests on what comes before.
const LOOKS: [Look; 6] = [
    ("kernel", |_| check_kernel(&rustix::system::uname().release().to_string_lossy()).map(|()| None)),
    ("locked memory", |_| check_memlock(raise(Resource::Memlock)).map(|()| None)),
    ("io_uring", |_| check_uring().map(|()| None)),
    ("CPUs", |settings| check_cpus(settings.shards, usable_cpus())),
    ("descriptors", |settings| Ok(check_descriptors(raise(Resource::Nofile), settings.ws_max_connections))),
    ("port", |settings| check_port(SocketAddr::new(settings.ws_host, settings.ws_port)).map(|()| None)),
];

/// Looks at this machine for what `settings` need, and raises the process's own limits as far as they go. Each look
/// has its name and its outcome: maybe a warning, or what is missing.
pub fn looks(
    settings: &Settings,
) -> impl Iterator<Item = (&'static str, Result<Option<String>, PreflightError>)> {
    LOOKS.iter().map(move |(name, look)| (*name, look(settings)))
}

/// Checks this machine for what `settings` need, and raises the process's own limits as far as they go.
///
/// # Errors
/// With the first thing that is missing.
pub fn check(settings: &Settings) -> Result<Report, PreflightError> {
    let mut report = Report::default();
    for (_, outcome) in looks(settings) {
        report.warnings.extend(outcome?);
    }
    Ok(report)
}

/// `release` is what `uname -r` prints, such as `6.1.0-13-amd64`.
fn check_kernel(release: &str) -> Result<(), PreflightError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < limits::KERNEL { Err(PreflightError::Kernel(release.into())) } else { Ok(()) }
}

fn check_uring() -> Result<(), PreflightError> {
    match io_uring::IoUring::new(2) {
        Ok(_) => Ok(()),
        Err(error) => {
            let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
            Err(uring_error(error, switch.as_deref()))
        }
    }
}

/// `switch` is the content of `/proc/sys/kernel/io_uring_disabled`, which came with Linux 6.6: 1 asks
/// for a privilege, 2 forbids all.
fn uring_error(error: io::Error, switch: Option<&str>) -> PreflightError {
    let switch: u8 = switch.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    match error.raw_os_error() {
        Some(libc::ENOSYS) => PreflightError::UringMissing,
        Some(libc::EPERM | libc::EACCES) if switch > 0 => PreflightError::UringDisabled(switch),
        Some(libc::EPERM | libc::EACCES) => PreflightError::UringForbidden,
        Some(libc::ENOMEM) => PreflightError::UringMemory,
        _ => PreflightError::Uring(error),
    }
}

/// The executor looks at the limit itself, so it holds for root too.
fn check_memlock(limit: Option<u64>) -> Result<(), PreflightError> {
    match limit {
        Some(limit) if limit < limits::MEMLOCK_BYTES => Err(PreflightError::Memlock(limit)),
        _ => Ok(()),
    }
}

fn check_cpus(shards: usize, cpus: usize) -> Result<Option<String>, PreflightError> {
    if cpus == 0 {
        return Err(PreflightError::NoCpu);
    }
    if !(1..=limits::SHARDS).contains(&shards) {
        return Err(PreflightError::Shards(shards));
    }
    let warning = || format!("{shards} shards share {cpus} CPUs: more shards than CPUs only cost time");
    Ok((shards > cpus).then(warning))
}

fn check_descriptors(limit: Option<u64>, connections: u32) -> Option<String> {
    let (limit, wanted) = (limit?, u64::from(connections) + limits::SPARE_DESCRIPTORS);
    (limit < wanted).then(|| {
        format!(
            "{limit} descriptors are allowed and WS_MAX_CONNECTIONS is {connections}: {} connections \
             fit; raise the limit to {wanted} (systemd: LimitNOFILE={wanted}) or lower WS_MAX_CONNECTIONS",
            fitting(limit)
        )
    })
}

/// What to know of the limit of descriptors when so many connections are taken, if anything.
pub fn descriptor_warning(connections: u32) -> Option<String> {
    check_descriptors(getrlimit(Resource::Nofile).current, connections)
}

/// How many of `most` connections the limit of descriptors allows.
pub fn fitting_connections(most: u32) -> u32 {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return most };
    most.min(u32::try_from(fitting(limit)).unwrap_or(u32::MAX))
}

/// How many connections fit into so many descriptors: all but what else needs some, and half of a small number.
fn fitting(limit: u64) -> u64 {
    limit.saturating_sub(limits::SPARE_DESCRIPTORS).max(limit / 2)
}

/// Raises the soft limit to the hard one and gives the limit that holds now; `None` for no limit.
fn raise(resource: Resource) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(resource);
    match setrlimit(resource, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// Binds the port for a moment without SO_REUSEPORT. The shards' own listeners have it, and would
/// share the port with another server's without a word; half of the clients would end up there.
fn check_port(address: SocketAddr) -> Result<(), PreflightError> {
    let probe = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // Connections of a server that has just stopped (TIME_WAIT) are no obstacle.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    probe().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => PreflightError::PortInUse(address),
        io::ErrorKind::PermissionDenied => PreflightError::PortForbidden(address),
        io::ErrorKind::AddrNotAvailable => PreflightError::AddressNotLocal(address.ip()),
        _ => PreflightError::Listen(address, error),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn text<T>(result: Result<T, PreflightError>) -> String {
        let text = result.err().expect("must be refused").to_string();
        assert!(!text.contains('\n') && !text.contains("  "), "not one tidy line: {text:?}");
        text
    }

    #[test]
    fn kernels_from_6_1_on_are_new_enough() {
        for release in ["6.1.0-13-amd64", "6.1", "6.18.44-x", "7.0.0"] {
            assert!(check_kernel(release).is_ok(), "{release}");
        }
        for release in ["6.0.19", "5.15.167.4-microsoft-standard-WSL2", "4.18.0-553.el8", "unknown"] {
            assert!(text(check_kernel(release)).contains("6.1"), "{release}");
        }
    }

    #[test]
    fn a_blocked_io_uring_is_explained_by_what_blocks_it() {
        let error =
            |code, switch| text(Err::<(), _>(uring_error(io::Error::from_raw_os_error(code), switch)));
        assert!(error(libc::ENOSYS, None).contains("seccomp"));
        assert!(error(libc::EPERM, Some("2\n")).contains("kernel.io_uring_disabled = 2"));
        assert!(error(libc::EPERM, Some("0\n")).contains("seccomp"));
        assert!(error(libc::EPERM, None).contains("seccomp"));
        assert!(error(libc::ENOMEM, None).contains("LimitMEMLOCK"));
        assert!(error(libc::EMFILE, None).contains("io_uring cannot be used"));
    }

    #[test]
    fn too_little_locked_memory_is_refused_with_both_numbers() {
        let refused = text(check_memlock(Some(64 * 1024)));
        assert!(refused.contains("64 KiB") && refused.contains("512 KiB"), "{refused}");
        assert!(check_memlock(Some(512 * 1024)).is_ok() && check_memlock(None).is_ok());
    }

    #[test]
    fn shards_need_cpus() {
        assert!(text(check_cpus(1, 0)).contains("no CPU"));
        assert!(text(check_cpus(65, 128)).contains("1 to 64"));
        assert_eq!(check_cpus(2, 2).unwrap(), None);
        assert!(check_cpus(4, 2).unwrap().unwrap().contains("4 shards share 2 CPUs"));
    }

    #[test]
    fn a_limit_of_descriptors_below_the_connections_is_a_warning() {
        assert!(check_descriptors(Some(20_000), 100_000).unwrap().contains("LimitNOFILE="));
        assert!(check_descriptors(Some(300), 100_000).unwrap().contains("150 connections fit"));
        assert_eq!(check_descriptors(Some(200_000), 100_000), None);
        assert_eq!(check_descriptors(None, 100_000), None);
    }

    #[test]
    fn a_port_with_a_listener_is_refused_even_if_that_one_would_share_it() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        socket.listen(1).unwrap();
        let address = TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
        let refused = text(check_port(address));
        assert!(refused.contains(&address.port().to_string()) && refused.contains("--ws-port"), "{refused}");
        drop(socket);
        assert!(check_port(address).is_ok(), "free again");
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 0));
        assert!(text(check_port(elsewhere)).contains("WS_HOST"));
    }
}
