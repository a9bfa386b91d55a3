//! Memory that frames are appended to while sends refer to what stands there already.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Memory of one log. Never moves, and no byte is written to while a [`Stretch`] covers it.
struct Page(Box<[MaybeUninit<UnsafeCell<u8>>]>);

// SAFETY: bytes are written by the one `FrameLog` of the page only, which is not shared (`append` takes it by `&mut`),
// and never those that a `Stretch` covers; so no thread reads what another one writes.
unsafe impl Sync for Page {}

impl Page {
    /// The address of the byte at `at`, which is at most the length.
    fn address(&self, at: usize) -> *mut u8 {
        UnsafeCell::raw_get(self.0[at..].as_ptr().cast::<UnsafeCell<u8>>())
    }
}

/// Frames one behind the other. It begins anew only when nobody refers to any of them any more.
pub struct FrameLog {
    page: Arc<Page>,
    /// Bytes in use. Every stretch ends here or before.
    filled: usize,
}

impl Default for FrameLog {
    fn default() -> Self {
        Self { page: Arc::new(Page(Box::new_uninit_slice(FrameLog::BYTES))), filled: 0 }
    }
}

impl std::fmt::Debug for FrameLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameLog({} bytes)", self.filled)
    }
}

impl FrameLog {
    /// Bytes of all frames that it holds at most: a few dozen small ones, and not so many that a single one which is waited for
    /// keeps much memory.
    pub const BYTES: usize = 16 * 1024;

    /// Copies `frame` behind those before it; nothing if there is no room for it while others are referred to.
    pub fn append(&mut self, frame: &[u8]) -> Option<Stretch> {
        if self.filled + frame.len() > Self::BYTES {
            self.clear_unused();
        }
        let (start, end) = (self.filled, self.filled + frame.len());
        if end > Self::BYTES {
            return None;
        }
        // SAFETY: the bytes are within the page, behind all that a stretch covers, and only this log writes to it. `frame`
        // cannot be among them: whoever has it as a slice has it from a stretch or from other memory.
        unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), self.page.address(start), frame.len()) };
        self.filled = end;
        // A page is far below 4 GiB.
        Some(Stretch { page: self.page.clone(), start: start as u32, end: end as u32 })
    }

    /// Begins anew if no stretch of it is left. Returns whether it does.
    pub fn clear_unused(&mut self) -> bool {
        let is_unused = is_unshared(&mut self.page);
        if is_unused {
            self.filled = 0;
        }
        is_unused
    }
}

/// Whether nobody else has the page, so that all of it may be written to.
#[inline]
fn is_unshared(page: &mut Arc<Page>) -> bool {
    // The count alone is only a hint, but mostly it says no, and it is a plain read where the other locks.
    Arc::strong_count(page) == 1 && Arc::get_mut(page).is_some()
}

/// A place in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPlace {
    /// The page's address; of no page that is still there, perhaps.
    page: usize,
    at: u32,
}

/// One or more frames of a [`FrameLog`] that follow each other. Keeps their memory.
#[derive(Clone)]
pub struct Stretch {
    page: Arc<Page>,
    start: u32,
    end: u32,
}

impl std::fmt::Debug for Stretch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stretch({}..{})", self.start, self.end)
    }
}

impl Stretch {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `append` has written all of them before it made the first stretch that covers them, and nobody writes to them
        // again before the last such stretch is dropped: a log starts anew only when it alone has the page.
        unsafe { std::slice::from_raw_parts(self.page.address(self.start as usize), self.len()) }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Covers `next` as well, if that follows in the same log. Returns whether it does.
    #[inline]
    pub fn lengthen(&mut self, next: &Self) -> bool {
        let follows = self.end == next.start && Arc::ptr_eq(&self.page, &next.page);
        if follows {
            self.end = next.end;
        }
        follows
    }

    /// Where it begins.
    pub fn start(&self) -> LogPlace {
        LogPlace { page: Arc::as_ptr(&self.page).addr(), at: self.start }
    }

    /// Where it ends.
    pub fn end(&self) -> LogPlace {
        LogPlace { page: Arc::as_ptr(&self.page).addr(), at: self.end }
    }

    /// A log on the memory that the stretch was of, if nobody else refers to that any more.
    pub fn into_log(mut self) -> Option<FrameLog> {
        is_unshared(&mut self.page).then_some(FrameLog { page: self.page, filled: 0 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_that_follow_each_other_become_one_stretch() {
        let mut log = FrameLog::default();
        let mut first = log.append(b"one").unwrap();
        let second = log.append(b"two").unwrap();
        let third = log.append(b"three").unwrap();
        assert!(!first.lengthen(&third), "the second is between them");
        assert!(first.lengthen(&second));
        assert!(first.lengthen(&third));
        assert_eq!(first.as_slice(), b"onetwothree");
        assert_eq!(second.as_slice(), b"two");
        let elsewhere = FrameLog::default().append(b"four").unwrap();
        assert!(!first.lengthen(&elsewhere));
    }

    #[test]
    fn a_full_log_starts_anew_when_nobody_refers_to_it() {
        let mut log = FrameLog::default();
        let frame = [7; 1000];
        let mut all: Vec<_> = std::iter::from_fn(|| log.append(&frame)).collect();
        assert_eq!(all.len(), FrameLog::BYTES / 1000);
        all.truncate(1);
        assert!(log.append(&frame).is_none(), "one is still referred to");
        assert!(!log.clear_unused());
        all.clear();
        assert_eq!(log.append(&frame).unwrap().as_slice(), frame);
        assert!(log.append(&[7; FrameLog::BYTES + 1]).is_none());
    }

    #[test]
    fn the_last_stretch_gives_the_memory_back() {
        let mut log = FrameLog::default();
        let (first, second) = (log.append(b"one").unwrap(), log.append(b"two").unwrap());
        drop(log);
        assert!(first.into_log().is_none());
        assert_eq!(second.into_log().unwrap().append(b"three").unwrap().as_slice(), b"three");
    }

    proptest! {
        #[test]
        fn what_a_stretch_covers_never_changes(
            steps in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..4000), 0usize..6), 1..60),
        ) {
            let mut log = FrameLog::default();
            let mut kept: Vec<(Stretch, Vec<u8>)> = Vec::new();
            for (frame, dropped) in steps {
                if let Some(stretch) = log.append(&frame) {
                    let follows = kept.last_mut().is_some_and(|(last, _)| last.lengthen(&stretch));
                    match kept.last_mut() {
                        Some((_, bytes)) if follows => bytes.extend_from_slice(&frame),
                        _ => kept.push((stretch, frame)),
                    }
                }
                kept.drain(..dropped.min(kept.len()));
                for (stretch, bytes) in &kept {
                    prop_assert_eq!(stretch.as_slice(), bytes.as_slice());
                }
            }
        }
    }
}
