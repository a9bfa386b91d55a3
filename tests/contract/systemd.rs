//! What systemd hears from the server over its notification socket (sd_notify(3)).

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::harness::DEADLINE;
use crate::harness::server::Server;

/// The place of systemd: the socket that NOTIFY_SOCKET names.
struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Systemd {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("the socket's path is free");
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The next message.
    #[track_caller]
    fn hear(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("the server says something in time");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The next message that is not from the watchdog.
    #[track_caller]
    fn hear_state(&self) -> String {
        loop {
            let message = self.hear();
            if message.trim() != "WATCHDOG=1" {
                return message;
            }
        }
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn ready_reloading_and_stopping_are_told() {
    let systemd = Systemd::new("life");
    let mut server = Server::start(&[("NOTIFY_SOCKET", systemd.path())]);
    assert_eq!(systemd.hear().trim(), "READY=1");
    server.process.signal(Signal::HUP);
    let reloading = systemd.hear();
    assert!(reloading.contains("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(systemd.hear().trim(), "READY=1");
    assert_eq!(server.get_json("/health")["status"], "healthy", "a reload ends nothing");
    server.terminate();
    assert_eq!(systemd.hear().trim(), "STOPPING=1");
}

#[test]
fn the_watchdog_is_fed_while_all_shards_turn() {
    let systemd = Systemd::new("watchdog");
    let settings = [("NOTIFY_SOCKET", systemd.path()), ("WATCHDOG_USEC", "2000000"), ("SHARDS", "2")];
    let mut server = Server::start(&settings);
    assert_eq!(systemd.hear_state().trim(), "READY=1");
    for _ in 0..3 {
        assert_eq!(systemd.hear().trim(), "WATCHDOG=1");
    }
    server.terminate();
    assert_eq!(systemd.hear_state().trim(), "STOPPING=1");
}

#[test]
fn without_systemd_nothing_is_missing() {
    let mut server = Server::start(&[("NOTIFY_SOCKET", "/nonexistent/notify")]);
    assert_eq!(server.get_json("/health")["status"], "healthy");
    server.terminate();
    assert!(server.process.output().contains("NOTIFY_SOCKET"), "the log says so");
}
