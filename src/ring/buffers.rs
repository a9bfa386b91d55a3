//! Receive buffers that the kernel picks from: a ring of provided buffers (io_uring_register_buf_ring(3)).

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{Submitter, opcode, squeue};

/// The group number that receive submissions name; a ring has one group.
const GROUP: u16 = 0;

/// For benches/choices: each connection has a buffer of its own, that of its slot (up to 32,768), instead of one that the
/// kernel picks. Tokens go back before the next receive there.
pub(super) const BUFFER_FOR_EACH: bool = cfg!(feature = "buffer-for-each");

/// A buffer that the kernel has filled and that nobody else has. Give it to
/// [`Ring::recycle`](super::Ring::recycle) when its bytes are dealt with; a token that is dropped
/// instead takes its buffer out of circulation until the ring ends.
#[must_use = "a buffer that is not recycled is lost to the ring"]
#[derive(Debug)]
pub struct Filled {
    /// Which `ReceiveBuffers` it belongs to: a token is no good to another ring. 64 bits never repeat.
    owner: u64,
    id: u16,
    len: u32,
}

impl Filled {
    /// How many bytes were received.
    pub fn bytes(&self) -> usize {
        self.len as usize
    }
}

/// Anonymous memory of our own, page-aligned, unmapped on drop.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let resident = if BUFFER_FOR_EACH { MapFlags::empty() } else { MapFlags::POPULATE };
        let flags = MapFlags::PRIVATE | resident;
        // SAFETY: a null hint lets the kernel choose an unused range, so no existing memory changes.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let start = NonNull::new(start.cast::<u8>()).expect("mmap without MAP_FIXED never maps page zero");
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped, and whoever held pointers into it borrowed
        // from the value that is being dropped.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// `count` buffers of `size` bytes, lent to the kernel, which fills one per receive completion.
pub(super) struct ReceiveBuffers {
    owner: u64,
    entries: Mapping,
    memory: Mapping,
    count: u16,
    size: u32,
    tail: u16,
    /// With [`BUFFER_FOR_EACH`] whether a token for the buffer exists; otherwise empty.
    out: Vec<bool>,
}

impl ReceiveBuffers {
    /// Allocates the buffers and registers them. `count` is a power of two, at most 32,768.
    pub(super) fn register(submitter: &Submitter<'_>, count: u16, size: u32) -> io::Result<Self> {
        static NEXT_OWNER: AtomicU64 = AtomicU64::new(0);
        let count = if BUFFER_FOR_EACH { 1 << 15 } else { count };
        assert!(count.is_power_of_two() && count <= 1 << 15 && size > 0);
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * size as usize)?;
        let owner = NEXT_OWNER.fetch_add(1, Ordering::Relaxed);
        let out = if BUFFER_FOR_EACH { vec![false; usize::from(count)] } else { Vec::new() };
        let mut buffers = Self { owner, entries, memory, count, size, tail: 0, out };
        if BUFFER_FOR_EACH {
            return Ok(buffers);
        }
        // SAFETY: `entries` is page-aligned, zeroed memory for `count` entries. It outlives the
        // registration: `Ring` drops its io_uring (which ends the registration) before the buffers.
        unsafe {
            submitter.register_buf_ring_with_flags(buffers.entries.start.as_ptr() as u64, count, GROUP, 0)?;
        }
        for id in 0..count {
            buffers.lend(id);
        }
        Ok(buffers)
    }

    /// Hands buffer `id` to the kernel. Callers make sure that the kernel does not have it.
    fn lend(&mut self, id: u16) {
        let base = self.entries.start.as_ptr().cast::<BufRingEntry>();
        let place = usize::from(self.tail & (self.count - 1));
        // SAFETY: `place` < `count`, so the entry lies in `entries`; the kernel reads entries only
        // below the tail that is published after the entry is complete. `id` < `count`, so the
        // address is that of a whole buffer inside `memory`.
        unsafe {
            let entry = &mut *base.add(place);
            entry.set_addr(self.memory.start.as_ptr().add(usize::from(id) * self.size as usize) as u64);
            entry.set_len(self.size);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail shares the first entry's reserved field, aligned for u16 and valid as long
        // as `entries`; the kernel reads it concurrently, hence the atomic store with release order.
        unsafe {
            let tail = BufRingEntry::tail(base).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// Bytes of a buffer.
    pub(super) fn size(&self) -> usize {
        self.size as usize
    }

    /// Receives for the connection in `slot` into buffers that nobody has a token for: as often as something comes, or
    /// once with [`BUFFER_FOR_EACH`].
    pub(super) fn receive(&self, socket: Fd, slot: u32) -> squeue::Entry {
        if !BUFFER_FOR_EACH {
            return opcode::RecvMulti::new(socket, GROUP).build();
        }
        let slot = slot as usize;
        assert!(!self.out[slot], "somebody has a token for the buffer");
        // SAFETY: `out` has an entry for each buffer, so the address is that of a whole one inside `memory`.
        let start = unsafe { self.memory.start.as_ptr().add(slot * self.size as usize) };
        opcode::Recv::new(socket, start, self.size).build()
    }

    /// The token for a completion that says the kernel has put `len` bytes into buffer `id`.
    pub(super) fn filled(&mut self, id: u16, len: u32) -> Filled {
        assert!(id < self.count && len <= self.size, "the kernel names a buffer that it was never given");
        if BUFFER_FOR_EACH {
            self.out[usize::from(id)] = true;
        }
        Filled { owner: self.owner, id, len }
    }

    /// The bytes received into `filled`.
    pub(super) fn bytes_mut(&mut self, filled: &mut Filled) -> &mut [u8] {
        assert_eq!(filled.owner, self.owner, "the buffer belongs to another ring");
        // SAFETY: the token proves that the kernel has finished with buffer `id` and has not got it
        // back; it exists once, and both it and `self` are borrowed exclusively, so nobody else
        // reads or writes these bytes. `id` and `len` were checked when the token was made.
        unsafe {
            let start = self.memory.start.as_ptr().add(usize::from(filled.id) * self.size as usize);
            std::slice::from_raw_parts_mut(start, filled.len as usize)
        }
    }

    /// Takes the token and lends its buffer to the kernel again.
    pub(super) fn recycle(&mut self, filled: Filled) {
        assert_eq!(filled.owner, self.owner, "the buffer belongs to another ring");
        if BUFFER_FOR_EACH {
            self.out[usize::from(filled.id)] = false;
        } else {
            self.lend(filled.id);
        }
    }
}
