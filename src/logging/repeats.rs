//! Lines of one kind are logged only so often: a fault that lasts must not fill the log, nor slow a shard.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracing::{Level, Metadata};

/// Kinds that are told apart: more places than the program logs from. Those beyond it are not limited.
const KINDS: usize = 512;

/// Milliseconds in which lines of one kind are counted.
pub const WINDOW_MS: u64 = 10_000;

/// One kind of line: a place in the program.
#[derive(Debug, Default)]
struct Kind {
    place: OnceLock<&'static Metadata<'static>>,
    /// The number of the window in the upper half, the lines in it in the lower one.
    window: AtomicU64,
    left_out: AtomicU64,
}

/// Counts lines by kind, without a lock.
#[derive(Debug)]
pub struct Repeats {
    most: u64,
    kinds: Box<[Kind]>,
    left_out: AtomicU64,
}

impl Repeats {
    /// Lets `most` lines of a kind through in each window; all of them when it is 0.
    pub fn new(most: u64) -> Self {
        Self { most, kinds: (0..KINDS).map(|_| Kind::default()).collect(), left_out: AtomicU64::new(0) }
    }

    /// Whether a line of that kind is logged at the time `now_ms`. Debug and trace lines are, always: someone has asked
    /// for them.
    pub fn admit(&self, place: &'static Metadata<'static>, now_ms: u64) -> bool {
        if self.most == 0 || *place.level() > Level::INFO {
            return true;
        }
        let Some(kind) = self.kind(place) else { return true };
        let current = (now_ms / WINDOW_MS + 1) << 32;
        let seen = kind.window.fetch_update(Relaxed, Relaxed, |window| {
            Some(if window >> 32 == current >> 32 { window.saturating_add(1) } else { current + 1 })
        });
        let before = seen.unwrap_or_default();
        let before = if before >> 32 == current >> 32 { before & u64::from(u32::MAX) } else { 0 };
        let admitted = before < self.most;
        if !admitted {
            kind.left_out.fetch_add(1, Relaxed);
            self.left_out.fetch_add(1, Relaxed);
        }
        admitted
    }

    fn kind(&self, place: &'static Metadata<'static>) -> Option<&Kind> {
        let start = std::ptr::from_ref(place) as usize / align_of::<Metadata<'static>>() % KINDS;
        let probes = self.kinds[start..].iter().chain(&self.kinds[..start]);
        probes.take(KINDS).find(|kind| std::ptr::eq(*kind.place.get_or_init(|| place), place))
    }

    /// Lines that were left out so far.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Relaxed)
    }

    /// The kinds of which lines were left out since this was last called, and how many.
    pub fn take_left_out(&self) -> Vec<(&'static Metadata<'static>, u64)> {
        let kinds = self.kinds.iter().filter_map(|kind| Some((*kind.place.get()?, kind)));
        let counts = kinds.map(|(place, kind)| (place, kind.left_out.swap(0, Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use tracing::subscriber::Interest;
    use tracing::{Event, Subscriber, span};

    use super::*;

    /// Puts every line before a [`Repeats`], at a time that the test sets.
    struct Gate(Arc<Repeats>, Arc<AtomicU64>, Arc<AtomicU64>);

    impl Subscriber for Gate {
        fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
            Interest::always()
        }
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Event<'_>) {
            let admitted = self.0.admit(event.metadata(), self.1.load(Relaxed));
            self.2.fetch_add(admitted.into(), Relaxed);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_kind_is_limited_by_itself_and_begins_anew_with_the_next_window() {
        let repeats = Arc::new(Repeats::new(3));
        let (now, passed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let gate = Gate(repeats.clone(), now.clone(), passed.clone());
        tracing::subscriber::with_default(gate, || {
            let often = || (0..10).for_each(|n| tracing::warn!(n, "the same"));
            often();
            assert_eq!(passed.swap(0, Relaxed), 3);
            tracing::warn!("another");
            assert_eq!(passed.swap(0, Relaxed), 1);
            (0..10).for_each(|_| tracing::debug!("asked for"));
            assert_eq!(passed.swap(0, Relaxed), 10);
            let left_out = repeats.take_left_out();
            assert_eq!(left_out.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [7]);
            assert!(left_out[0].0.file().is_some_and(|file| file.ends_with("repeats.rs")));
            assert!(repeats.take_left_out().is_empty() && repeats.left_out() == 7);
            now.store(WINDOW_MS, Relaxed);
            often();
            assert_eq!(passed.swap(0, Relaxed), 3);
        });
    }
}
