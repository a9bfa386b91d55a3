//! What one send carries: a list of byte segments whose memory stays where it is.

use bytes::Bytes;

use super::frame_log::{LogPlace, Stretch};

/// A piece of outgoing bytes.
#[derive(Debug)]
pub enum Segment {
    /// An encoded frame that many connections share.
    Shared(Bytes),
    /// Frames in a row that many connections share.
    Logged(Stretch),
    /// Frames copied one behind the other for this connection.
    Copied(Vec<u8>),
}

impl Segment {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Logged(stretch) => stretch.as_slice(),
            Self::Copied(bytes) => bytes,
        }
    }

    /// How many bytes.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.len(),
            Self::Logged(stretch) => stretch.len(),
            Self::Copied(bytes) => bytes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes up to which what does not go out alone is copied rather than referred to: below this, copying costs less than one
/// more address in sendmsg(2). Frames of a log are no longer than that each, but in a row they are.
pub const COPY_UP_TO: usize = 1024;

/// The segments of one send operation, in order. Lives in a box of its own, because the kernel reads
/// the vector of addresses inside it while the operation is in flight.
#[derive(Default)]
pub struct SendBatch {
    segments: Vec<Segment>,
    bytes: usize,
    /// Where the last frame of a log that was copied ends there.
    copied_up_to: LogPlace,
    addresses: Vec<libc::iovec>,
    header: Option<libc::msghdr>,
}

// SAFETY: the raw pointers in `addresses` and `header` point to the memory that the batch's segments own or keep, and are
// used only between `arm` and the end of the operation; they are written anew by every `arm`.
unsafe impl Send for SendBatch {}

impl std::fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendBatch({} segments, {} bytes)", self.segments.len(), self.bytes)
    }
}

/// What to put into the submission: addresses that are valid while the batch is neither changed nor
/// dropped.
pub(super) enum Armed {
    /// One piece of memory: a plain send.
    One(*const u8, u32),
    /// Several: sendmsg(2).
    Many(*const libc::msghdr),
}

impl SendBatch {
    /// Most segments of one batch: IOV_MAX of sendmsg(2) is 1,024; fewer keep one turn short.
    pub const SEGMENTS: usize = 64;

    /// Segments from which on stretches are copied: each keeps the memory of a whole log, however short it is.
    const STRETCHES: usize = 8;

    /// Adds a segment at the end.
    ///
    /// # Panics
    /// When the batch already has [`Self::SEGMENTS`].
    #[inline]
    pub fn push(&mut self, segment: Segment) {
        assert!(self.segments.len() < Self::SEGMENTS, "a send batch takes {} segments", Self::SEGMENTS);
        self.bytes += segment.len();
        self.segments.push(segment);
    }

    /// Adds a frame of a log by having the last segment become longer, if the frame follows that there. Returns whether it does.
    #[inline]
    pub fn lengthen(&mut self, stretch: &Stretch) -> bool {
        let Some(Segment::Logged(last)) = self.segments.last_mut() else { return false };
        let is_longer = last.lengthen(stretch);
        if is_longer {
            self.bytes += stretch.len();
        }
        is_longer
    }

    /// Adds a frame of a log that does not follow the last segment there; `chunk` provides memory for a copy.
    ///
    /// It is referred to only where others are likely to follow it: behind a row of frames of a log, or where the one before it
    /// in its log was here too. And only if what stands before it is too long to be copied in front of it.
    pub fn push_stretch(&mut self, stretch: &Stretch, chunk: impl FnOnce() -> Vec<u8>) {
        let follows = stretch.start() == self.copied_up_to;
        let is_worth_it =
            |last: &Segment| last.len() > COPY_UP_TO && (follows || matches!(last, Segment::Logged(_)));
        if self.segments.len() < Self::STRETCHES && self.segments.last().is_none_or(is_worth_it) {
            self.push(Segment::Logged(stretch.clone()));
        } else {
            self.copied_up_to = stretch.end();
            self.push_copied(stretch.as_slice(), chunk);
        }
    }

    /// Adds `bytes` by copying them behind the last segment. If that is no copy itself and is small, or no segment may follow it,
    /// it is copied too, behind what was copied before it; `chunk` provides memory for a new segment.
    #[inline]
    pub fn push_copied(&mut self, bytes: &[u8], chunk: impl FnOnce() -> Vec<u8>) {
        self.bytes += bytes.len();
        if let Some(Segment::Copied(last)) = self.segments.last_mut() {
            return last.extend_from_slice(bytes);
        }
        let full = self.segments.len() == Self::SEGMENTS;
        let short = self.segments.pop_if(|last| full || last.len() <= COPY_UP_TO);
        let short = short.as_ref().map_or(&[][..], Segment::as_slice);
        if let (Some(Segment::Copied(last)), false) = (self.segments.last_mut(), short.is_empty()) {
            last.extend_from_slice(short);
            last.extend_from_slice(bytes);
        } else {
            let mut copied = chunk();
            copied.extend_from_slice(short);
            copied.extend_from_slice(bytes);
            self.segments.push(Segment::Copied(copied));
        }
    }

    /// The segments, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// How many segments there are.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes all segments out, in order; the batch can be filled again and keeps its memory.
    pub fn drain(&mut self) -> impl Iterator<Item = Segment> + '_ {
        self.bytes = 0;
        self.copied_up_to = LogPlace::default();
        self.header = None;
        self.segments.drain(..)
    }

    /// Prepares the addresses for a submission.
    pub(super) fn arm(&mut self) -> Armed {
        if let [segment] = self.segments.as_slice() {
            let bytes = segment.as_slice();
            let len = u32::try_from(bytes.len()).expect("an outbox is bounded far below 4 GiB");
            return Armed::One(bytes.as_ptr(), len);
        }
        self.addresses.clear();
        self.addresses.extend(self.segments.iter().map(|segment| {
            let bytes = segment.as_slice();
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
        }));
        let header = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: self.addresses.as_mut_ptr(),
            msg_iovlen: self.addresses.len(),
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        Armed::Many(std::ptr::from_ref(self.header.insert(header)))
    }
}
