//! The sizes of a ring.

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingSettings {
    /// Submissions that fit before the ring must enter the kernel; a flush larger than this takes
    /// several system calls.
    pub submissions: u32,
    /// Completions that fit before the kernel has to keep some aside.
    pub completions: u32,
    /// Receive buffers, a power of two. When they run out, receives pause and start again by themselves.
    pub buffers: u16,
    /// Bytes of a receive buffer.
    pub buffer_bytes: u32,
}

impl Default for RingSettings {
    /// 1 MiB of receive buffers: room for 512 small messages per turn, and little enough to be
    /// resident from the start.
    fn default() -> Self {
        Self { submissions: 1024, completions: 8192, buffers: 512, buffer_bytes: 2048 }
    }
}
