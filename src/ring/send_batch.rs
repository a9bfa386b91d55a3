//! What one send carries: a list of byte segments whose memory stays where it is.

use bytes::Bytes;

use super::frame_log::Stretch;

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
}

/// Bytes up to which a frame that does not go out alone is copied rather than referred to: below this,
/// copying costs less than one more address in sendmsg(2).
pub const COPY_UP_TO: usize = 1024;

/// The segments of one send operation, in order. Lives in a box of its own, because the kernel reads
/// the vector of addresses inside it while the operation is in flight.
#[derive(Default)]
pub struct SendBatch {
    segments: Vec<Segment>,
    bytes: usize,
    addresses: Vec<libc::iovec>,
    header: Option<libc::msghdr>,
}

// SAFETY: the raw pointers in `addresses` and `header` point into the batch's own segments and are
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

    /// Adds a segment at the end.
    ///
    /// # Panics
    /// When the batch already has [`Self::SEGMENTS`].
    #[inline]
    pub fn push(&mut self, segment: Segment) {
        assert!(self.segments.len() < Self::SEGMENTS, "a send batch takes {} segments", Self::SEGMENTS);
        self.bytes += segment.as_slice().len();
        self.segments.push(segment);
    }

    /// Adds a stretch by having the last segment cover it too, if it follows that in the same log. Returns whether it does.
    #[inline]
    pub fn lengthen(&mut self, stretch: &Stretch) -> bool {
        let Some(Segment::Logged(last)) = self.segments.last_mut() else { return false };
        let lengthened = last.lengthen(stretch);
        if lengthened {
            self.bytes += stretch.len();
        }
        lengthened
    }

    /// Bytes of the last segment.
    #[inline]
    pub fn last_bytes(&self) -> usize {
        self.segments.last().map_or(0, |last| last.as_slice().len())
    }

    /// Adds `bytes` by copying them behind the last segment, which becomes a copied one if it is a
    /// small shared one; `chunk` provides memory for that or for a new segment.
    #[inline]
    pub fn push_copied(&mut self, bytes: &[u8], chunk: impl FnOnce() -> Vec<u8>) {
        self.bytes += bytes.len();
        let full = self.segments.len() == Self::SEGMENTS;
        match self.segments.last_mut() {
            Some(Segment::Copied(last)) => last.extend_from_slice(bytes),
            Some(last) if full || last.as_slice().len() <= COPY_UP_TO => {
                let mut copied = chunk();
                copied.extend_from_slice(last.as_slice());
                copied.extend_from_slice(bytes);
                *last = Segment::Copied(copied);
            }
            _ => {
                let mut copied = chunk();
                copied.extend_from_slice(bytes);
                self.segments.push(Segment::Copied(copied));
            }
        }
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
