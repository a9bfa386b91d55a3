//! One direction of a bounded queue between two threads, with a decision at the bound.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crossbeam_channel::{Receiver, Sender, TrySendError};

/// Wakes the thread that reads a queue, if it sleeps.
///
/// The reader calls [`Waker::prepare_to_sleep`], looks at its queues once more, sleeps until the
/// eventfd is readable or its time is up, and calls [`Waker::awake`].
#[derive(Debug)]
pub struct Waker {
    asleep: AtomicBool,
    eventfd: rustix::fd::OwnedFd,
}

impl Waker {
    /// A waker with an eventfd of its own.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> std::io::Result<Arc<Self>> {
        use rustix::event::EventfdFlags;
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { asleep: AtomicBool::new(false), eventfd }))
    }

    /// The reader is about to sleep: whoever sends from now on writes to the eventfd.
    pub fn prepare_to_sleep(&self) {
        self.asleep.store(true, SeqCst);
    }

    /// The reader is awake: senders need not wake it.
    pub fn awake(&self) {
        self.asleep.store(false, SeqCst);
    }

    /// Wakes the reader if it sleeps; costs one atomic operation if not.
    pub fn wake(&self) {
        if self.asleep.swap(false, SeqCst) {
            // The only failure is a full counter, and then the reader is being woken anyway.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }

    /// Empties the eventfd after it was readable.
    pub fn drain(&self) {
        let _ = rustix::io::read(&self.eventfd, &mut [0u8; 8]);
    }

    /// The eventfd, for a ring or a poll to watch.
    pub fn eventfd(&self) -> rustix::fd::BorrowedFd<'_> {
        use rustix::fd::AsFd;
        self.eventfd.as_fd()
    }
}

/// The sending end. [`Outlet::offer`] may refuse when the queue is full and the caller decides what
/// that means; [`Outlet::send`] is for control messages, which keep their order and are never lost:
/// what does not fit waits here, and the number of connections and memberships bounds it.
#[derive(Debug)]
pub struct Outlet<T> {
    queue: Sender<T>,
    waiting: VecDeque<T>,
    waker: Arc<Waker>,
    sent: bool,
}

impl<T> Outlet<T> {
    /// A queue of `capacity` messages whose reader is woken through `waker`.
    pub fn new(capacity: usize, waker: Arc<Waker>) -> (Self, Receiver<T>) {
        let (queue, receiver) = crossbeam_channel::bounded(capacity);
        (Self::to(queue, waker), receiver)
    }

    /// One more sending end of a queue that exists.
    pub fn to(queue: Sender<T>, waker: Arc<Waker>) -> Self {
        Self { queue, waiting: VecDeque::new(), waker, sent: false }
    }

    /// Sends `message` if the queue has room.
    ///
    /// # Errors
    /// Gives `message` back when the queue is full or its reader has gone.
    pub fn offer(&mut self, message: T) -> Result<(), T> {
        if !self.waiting.is_empty() {
            return Err(message);
        }
        match self.queue.try_send(message) {
            Ok(()) => {
                self.sent = true;
                Ok(())
            }
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => Err(message),
        }
    }

    /// Sends `message` now or, in order, once the queue has room.
    pub fn send(&mut self, message: T) {
        if let Err(message) = self.offer(message) {
            self.waiting.push_back(message);
        }
    }

    /// How many control messages wait for room.
    pub fn backlog(&self) -> usize {
        self.waiting.len()
    }

    /// Moves what waits into the queue as far as it fits, and wakes the reader if anything was sent
    /// since the last call. Call it once per turn.
    pub fn flush(&mut self) {
        while let Some(message) = self.waiting.pop_front() {
            match self.queue.try_send(message) {
                Ok(()) => self.sent = true,
                Err(TrySendError::Full(message)) => {
                    self.waiting.push_front(message);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
        if std::mem::take(&mut self.sent) {
            self.waker.wake();
        }
    }
}
