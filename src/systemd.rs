//! What systemd is told (sd_notify(3)): ready, reloading, stopping, and that every shard turns.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use sd_notify::NotifyState;

use crate::instance::{Instance, Phase};

/// Parts of the watchdog's time between two looks: one that comes late is no alarm yet.
const LOOKS_PER_PERIOD: u32 = 4;

/// The server serves. Without systemd nothing happens, here and below.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The server ends: systemd waits for it, for at most TimeoutStopSec.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Runs `reload` between the two messages that `Type=notify-reload` waits for.
pub fn reloading(reload: impl FnOnce()) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd cannot be told of the reload"),
    }
    reload();
    ready();
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told how the server is: NOTIFY_SOCKET");
    }
}

/// The thread that feeds systemd's watchdog. It ends when this is dropped.
#[derive(Debug)]
pub struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts it, if systemd watches this process (`WatchdogSec=`). `started` is the zero of the shards' clock.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(instance: &Arc<Instance>, started: Instant) -> std::io::Result<Option<Self>> {
        let Some(period) = sd_notify::watchdog_enabled() else { return Ok(None) };
        let (stop, stopped) = bounded::<()>(0);
        let instance = instance.clone();
        let thread = std::thread::Builder::new().name("tf-watchdog".to_owned()).spawn(move || {
            while stopped.recv_timeout(period / LOOKS_PER_PERIOD) == Err(RecvTimeoutError::Timeout) {
                match stalled_shard(&instance, started.elapsed(), period / 2) {
                    None => tell(&[NotifyState::Watchdog]),
                    Some(shard) => {
                        tracing::error!(shard, "a shard stands still: systemd's watchdog is not fed");
                    }
                }
            }
        })?;
        Ok(Some(Self { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It has no code of its own that could panic.
            let _ = thread.join();
        }
    }
}

/// The first shard whose last turn began longer than `limit` before `now`. Shards turn ten times a second, whatever
/// there is to do. While the instance drains they end one after the other, and TimeoutStopSec watches instead.
fn stalled_shard(instance: &Instance, now: Duration, limit: Duration) -> Option<usize> {
    let stalled = |turn: u64| now.saturating_sub(Duration::from_millis(turn)) > limit;
    let serving = instance.phase() == Phase::Serving;
    instance.shards.iter().position(|cells| serving && stalled(cells.last_turn.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    const LIMIT: Duration = Duration::from_secs(5);

    fn instance() -> Instance {
        let instance = Instance::new(Settings { shards: 3, ..Settings::for_tests() }, 1);
        instance.enter(Phase::Serving);
        instance.shards.iter().for_each(|cells| cells.last_turn.set(60_000));
        instance
    }

    #[test]
    fn one_shard_that_stands_still_is_enough() {
        let instance = instance();
        let now = Duration::from_millis(65_000);
        assert_eq!(stalled_shard(&instance, now, LIMIT), None);
        instance.shards[1].last_turn.set(59_999);
        assert_eq!(stalled_shard(&instance, now, LIMIT), Some(1));
        instance.shards[1].last_turn.set(66_000);
        assert_eq!(
            stalled_shard(&instance, now, LIMIT),
            None,
            "a turn that began after the look at the clock"
        );
    }

    #[test]
    fn shards_that_have_drained_are_not_missed() {
        let instance = instance();
        instance.enter(Phase::Draining);
        assert_eq!(stalled_shard(&instance, Duration::from_secs(600), LIMIT), None);
    }
}
