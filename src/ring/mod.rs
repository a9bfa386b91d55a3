//! The shard's own io_uring: accept, receive and send for all client sockets of one thread.
//!
//! This is the only place with `unsafe`. Its interface is safe because of these invariants, each of
//! which has a test in `ring/tests.rs`:
//!
//! 1. **What the kernel may write or read stays put.** Memory named by a submission is owned by the
//!    [`Ring`] until the completion that ends the operation is reaped: receive buffers for the ring's
//!    whole life, a [`SendBatch`] from [`Ring::send`] to [`Completion::Sent`].
//! 2. **One owner per receive buffer.** A filled buffer is represented by one [`Filled`] token, which
//!    cannot be copied; the kernel gets the buffer back only when the token is given to
//!    [`Ring::recycle`].
//! 3. **No completion meets a stranger.** Every submission carries its connection's slot and
//!    generation. A slot is used again only when its socket has been closed *and* every operation on
//!    it has completed; a completion whose generation is not the slot's is dropped.
//! 4. **A ring that is dropped stops first.** Everything in flight is cancelled and reaped; if the
//!    kernel does not give an operation back, its memory is leaked rather than freed.
//! 5. **What a [`Stretch`] covers does not change**, however its [`FrameLog`] goes on, until the last one that does is dropped.

mod buffers;
mod connections;
mod frame_log;
mod listener;
mod ring_queue;
mod ring_settings;
mod send_batch;
#[cfg(test)]
mod tests;

pub use buffers::Filled;
pub use connections::Key;
pub use frame_log::{FrameLog, LogPlace, Stretch};
pub use ring_queue::{Completion, Ring};
pub use ring_settings::RingSettings;
pub use send_batch::{COPY_UP_TO, Segment, SendBatch};
