//! Submission and completion: one io_uring, driven by the thread that made it.

use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::buffers::{BUFFER_FOR_EACH, Filled, ReceiveBuffers};
use super::connections::{Connections, Key};
use super::listener;
use super::ring_settings::RingSettings;
use super::send_batch::{Armed, SendBatch};

/// Pieces of deferred work, sockets with input mostly, that the kernel does in one call at least, if there are so many
/// (IO_LOCAL_TW_DEFAULT_MAX).
const WORK_PER_CALL: usize = 20;

/// Completions from which on work is left for the next turn, if the ring has room for twice as many.
const COMPLETIONS_PER_WAIT: usize = 512;

/// What has happened.
#[derive(Debug)]
pub enum Completion {
    /// A client has connected. [`Ring::receive`] starts to read it.
    Accepted(Key),
    /// Accepting stopped, mostly for want of descriptors; [`Ring::accept`] starts it again.
    AcceptStopped(io::Error),
    /// Bytes came in. The token must be recycled.
    Received(Key, Filled),
    /// Nothing will come in any more: the peer has finished sending, or the connection broke.
    Ended(Key, Option<io::Error>),
    /// A send is over: every byte has been taken over by the kernel, or the connection broke.
    Sent(Key, Box<SendBatch>, io::Result<()>),
    /// The watched eventfd became readable; it is watched on.
    Woken,
    /// A closed connection's last operation is over, its slot is free.
    Closed(Key),
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Operation {
    Accept = 1,
    Receive,
    Send,
    Wake,
    Cancel,
}

/// The operation's number in the top byte, the generation (24 bits), the slot (32 bits).
fn tag(operation: Operation, key: Key) -> u64 {
    (operation as u64) << 56 | u64::from(key.generation) << 32 | u64::from(key.slot)
}

const NO_KEY: Key = Key { slot: 0, generation: 0 };

/// See the module's invariants.
pub struct Ring {
    // Dropped by hand in `drop`, before the memory that its registrations name.
    uring: ManuallyDrop<IoUring>,
    buffers: ManuallyDrop<ReceiveBuffers>,
    connections: ManuallyDrop<Connections>,
    listener: Option<OwnedFd>,
    /// Whether clients are to be accepted.
    accepting: bool,
    /// Whether the listener is watched for clients.
    watching: bool,
    /// Whether clients may wait to be accepted.
    acceptable: bool,
    wake: Option<OwnedFd>,
    /// Receives to be submitted again that found no buffer at all.
    starved: Vec<Key>,
    /// Receives to be submitted again that brought something: they stand behind the starved ones, or
    /// a client that never stops sending would take all buffers each time.
    interrupted: Vec<Key>,
    closed: Vec<Key>,
    /// Operations whose last completion has not been reaped.
    in_flight: usize,
    /// Whether the kernel can gather completions for a while (IORING_FEAT_MIN_TIMEOUT, Linux 6.12).
    gathers: bool,
    /// Whether the last wait left some of the kernel's share of the work undone (IORING_SQ_TASKRUN).
    left_work: bool,
    /// Whether the last wait did not enter the kernel, because completions were there.
    stays_out: bool,
}

impl Ring {
    /// Sets up a ring for the calling thread, which alone may use it (IORING_SETUP_SINGLE_ISSUER).
    ///
    /// # Errors
    /// As io_uring_setup(2); Linux 6.1 is needed for IORING_SETUP_DEFER_TASKRUN.
    pub fn new(settings: RingSettings) -> io::Result<Self> {
        let mut uring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(settings.completions)
            .build(settings.submissions)?;
        let gathers = uring.params().is_feature_min_timeout();
        let (submitter, _, _) = uring.split();
        let buffers = ReceiveBuffers::register(&submitter, settings.buffers, settings.buffer_bytes)?;
        Ok(Self {
            uring: ManuallyDrop::new(uring),
            buffers: ManuallyDrop::new(buffers),
            connections: ManuallyDrop::new(Connections::default()),
            listener: None,
            accepting: false,
            watching: false,
            acceptable: false,
            wake: None,
            starved: Vec::new(),
            interrupted: Vec::new(),
            closed: Vec::new(),
            in_flight: 0,
            gathers,
            left_work: false,
            stays_out: false,
        })
    }

    /// Listens on `address`, shared with the other shards; returns the address bound. Clients wait
    /// until [`Ring::accept`] is called.
    ///
    /// # Errors
    /// As bind(2) and listen(2).
    pub fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let (socket, bound) = listener::listen(address)?;
        self.listener = Some(socket);
        Ok(bound)
    }

    /// Starts to accept, if the ring listens and accepting has stopped.
    pub fn accept(&mut self) {
        if self.listener.is_some() && !self.accepting {
            self.accepting = true;
            self.acceptable = true;
            self.watch_listener();
        }
    }

    /// Watched and not accepted by the kernel (IORING_ACCEPT_MULTISHOT), which for each client wakes who waits in the ring,
    /// however much else it waits for: the listener is one of those that wake a single waiter (EPOLLEXCLUSIVE).
    fn watch_listener(&mut self) {
        if let (Some(listener), false) = (&self.listener, self.watching) {
            let entry =
                opcode::PollAdd::new(Fd(listener.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
            self.watching = true;
            // SAFETY: the entry names no memory; the descriptor is open until `stop_listening`.
            unsafe { self.submit_operation(entry, Operation::Accept, NO_KEY) };
        }
    }

    /// Closes the listening socket; connections that wait in its backlog are reset.
    pub fn stop_listening(&mut self) {
        if self.listener.is_some() && self.watching {
            let cancel = opcode::AsyncCancel::new(tag(Operation::Accept, NO_KEY)).build();
            // SAFETY: the entry names no memory.
            unsafe { self.submit_operation(cancel, Operation::Cancel, NO_KEY) };
            self.submit();
        }
        self.listener = None;
    }

    /// Reports [`Completion::Woken`] whenever `eventfd` is readable. The watcher reads it.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn watch(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.wake = Some(eventfd.try_clone_to_owned()?);
        self.submit_watch();
        Ok(())
    }

    fn submit_watch(&mut self) {
        if let Some(wake) = &self.wake {
            let entry = opcode::PollAdd::new(Fd(wake.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
            // SAFETY: the entry names no memory; the descriptor is the ring's own.
            unsafe { self.submit_operation(entry, Operation::Wake, NO_KEY) };
        }
    }

    /// Starts to receive; goes on until the connection ends or is closed.
    pub fn receive(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(socket) = &connection.socket else { return };
        if connection.receiving || connection.closing || connection.deaf {
            return;
        }
        let entry = self.buffers.receive(Fd(socket.as_raw_fd()), key.slot);
        connection.receiving = true;
        connection.fed = false;
        // SAFETY: the kernel writes into receive buffers only, which live as long as the ring and for which nobody has a
        // token; the socket is closed only after the receive's last completion.
        unsafe { self.submit_operation(entry, Operation::Receive, key) };
    }

    /// Submits no more receives for the connection, so that what its peer has sent stays in the socket. One that is in
    /// flight may still bring something.
    pub fn stop_receiving(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.deaf = true;
        }
    }

    /// Sends the whole batch, waiting for the socket as often as it takes; at most one batch per
    /// connection at a time. Ends with [`Completion::Sent`].
    ///
    /// # Errors
    /// Gives the batch back when the connection has gone, is closing, or already sends.
    pub fn send(&mut self, key: Key, batch: Box<SendBatch>) -> Result<(), Box<SendBatch>> {
        let Some(connection) = self.connections.get_mut(key) else { return Err(batch) };
        if connection.sending.is_some() || connection.closing || batch.is_empty() {
            return Err(batch);
        }
        let Some(socket) = &connection.socket else { return Err(batch) };
        let fd = Fd(socket.as_raw_fd());
        // MSG_WAITALL: the kernel resumes a short send by itself when the socket is writable again.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = match connection.sending.insert(batch).arm() {
            Armed::One(start, len) => opcode::Send::new(fd, start, len).flags(flags).build(),
            Armed::Many(header) => opcode::SendMsg::new(fd, header).flags(flags as u32).build(),
        };
        // SAFETY: the addresses point into the batch, which stays boxed and unchanged in
        // `connection.sending` until the operation's completion is reaped.
        unsafe { self.submit_operation(entry, Operation::Send, key) };
        #[cfg(feature = "send-by-send")]
        Self::entered(self.uring.submit());
        Ok(())
    }

    /// Tells the peer that nothing more will be sent (shutdown(2) with SHUT_WR).
    pub fn finish_sending(&mut self, key: Key) {
        if let Some(socket) = self.connections.get(key).and_then(|connection| connection.socket.as_ref()) {
            // Failure means that the connection has ended already, which its receive reports.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
        }
    }

    /// Acknowledges what has come, for a peer that may hold back the rest of a request until then. Unasked, the kernel does so
    /// with what is sent next, or 40 ms later.
    pub fn acknowledge(&mut self, key: Key) {
        if let Some(socket) = self.connections.get(key).and_then(|connection| connection.socket.as_ref()) {
            listener::acknowledge_at_once(socket);
        }
    }

    /// Ends the connection: what is in flight is broken off, and [`Completion::Closed`] follows.
    pub fn close(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.closing {
            return;
        }
        connection.closing = true;
        if (connection.receiving || connection.sending.is_some())
            && let Some(socket) = &connection.socket
        {
            // Makes a pending receive end and a pending send fail. ENOTCONN: they have already.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        if self.connections.release_if_done(key) {
            self.closed.push(key);
        }
    }

    /// The connection that has the slot now.
    pub fn key(&self, slot: u32) -> Option<Key> {
        self.connections.key(slot)
    }

    /// The peer's address, unless the connection has broken.
    pub fn peer_address(&self, key: Key) -> Option<SocketAddr> {
        let socket = self.connections.get(key)?.socket.as_ref()?;
        rustix::net::getpeername(socket.as_fd()).ok()?.and_then(|address| SocketAddr::try_from(address).ok())
    }

    /// The bytes that were received into `filled`.
    pub fn bytes_mut<'a>(&'a mut self, filled: &'a mut Filled) -> &'a mut [u8] {
        self.buffers.bytes_mut(filled)
    }

    /// Whether the peer has sent at least as much as a buffer takes.
    pub fn is_full(&self, filled: &Filled) -> bool {
        filled.bytes() == self.buffers.size()
    }

    /// Gives a buffer back to the kernel.
    pub fn recycle(&mut self, filled: Filled) {
        self.buffers.recycle(filled);
    }

    /// Enters the kernel with all submissions; sends that the sockets take at once are done on return.
    pub fn submit(&mut self) {
        self.restart_starved();
        Self::entered(self.uring.submit());
    }

    /// Enters the kernel with all submissions and waits until there are `want` completions or the
    /// time is up.
    pub fn submit_and_wait(&mut self, want: usize, timeout: Duration) {
        self.submit_and_gather(want, timeout, timeout);
    }

    /// As [`Ring::submit_and_wait`], but once `pause` is over one completion is enough. Before Linux 6.12 it always is,
    /// if `pause` ends before the time is up.
    pub fn submit_and_gather(&mut self, want: usize, pause: Duration, timeout: Duration) {
        self.restart_starved();
        let submissions = self.uring.submission().len();
        let completions = self.uring.completion().len();
        // What is there may be reaped first. Not twice in a row: only a call that wants something has the kernel do its
        // share of the work (IORING_SETUP_DEFER_TASKRUN).
        self.stays_out = submissions == 0 && completions > 0 && !self.stays_out;
        if self.stays_out {
            return;
        }
        // What `close` has finished is there already, and who waits to be accepted.
        let there = !self.closed.is_empty() || self.may_accept();
        let timeout = if there { Duration::ZERO } else { timeout };
        let time = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
        let arguments = SubmitArgs::new().timespec(&time);
        let submitter = self.uring.submitter();
        Self::entered(if pause >= timeout {
            submitter.submit_with_args(want, &arguments)
        } else if pause.is_zero() || !self.gathers {
            submitter.submit_with_args(1, &arguments)
        } else {
            let pause = u32::try_from(pause.as_micros()).unwrap_or(u32::MAX);
            submitter.submit_with_args(want, &arguments.min_wait_usec(pause))
        });
        self.finish_work();
    }

    /// Has the kernel do the rest of its share of the work, where one call did not do it: newer kernels do no more in it than
    /// [`WORK_PER_CALL`] pieces, or as many as completions are wanted. Of a thousand sockets with input that would leave most
    /// for later turns.
    fn finish_work(&mut self) {
        self.left_work = false;
        let most = COMPLETIONS_PER_WAIT.min(self.uring.params().cq_entries() as usize / 2);
        let mut before = 0;
        while self.uring.submission().taskrun() {
            let completions = self.uring.completion().len();
            if completions >= most {
                self.left_work = true;
                return;
            }
            if completions < before + WORK_PER_CALL {
                // All was done, and the flag is about what has come meanwhile.
                return;
            }
            before = completions;
            Self::entered(self.uring.submit());
        }
    }

    fn entered(result: io::Result<usize>) {
        match result {
            Ok(_) => {}
            // Time is up, a signal, or completions are to be reaped first: the next turn goes on.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) => {}
            Err(error) => panic!("io_uring_enter failed: {error}"),
        }
    }

    /// Whether peers may have sent more than the last [`Ring::reap`] brought: connections wait for a buffer, or the kernel
    /// was not asked for more than it had found before.
    pub fn has_unread(&self) -> bool {
        self.stays_out
            || self.left_work
            || !self.starved.is_empty()
            || (!BUFFER_FOR_EACH && !self.interrupted.is_empty())
    }

    /// Whether the kernel has something to tell or to be told.
    pub fn has_work(&mut self) -> bool {
        let entries = self.uring.submission();
        let entered = !entries.is_empty() || entries.taskrun();
        drop(entries);
        let done = !self.uring.completion().is_empty() || !self.closed.is_empty();
        entered || done || self.has_unread() || self.may_accept()
    }

    /// The connections that wait for a buffer, with the bytes that wait in their sockets (FIONREAD, tcp(7)).
    pub fn unread(&self) -> Vec<(Key, u64)> {
        let waiting = self.starved.iter().chain(&self.interrupted);
        let unread = waiting.filter_map(|&key| {
            let socket = self.connections.get(key)?.socket.as_ref()?;
            Some((key, rustix::io::ioctl_fionread(socket).ok()?))
        });
        unread.collect()
    }

    fn restart_starved(&mut self) {
        let starved = std::mem::take(&mut self.starved);
        for key in starved.into_iter().chain(std::mem::take(&mut self.interrupted)) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.starved = false;
                self.receive(key);
            }
        }
    }

    /// Moves at most `limit` completions into `completions`, in the order they happened.
    pub fn reap(&mut self, limit: usize, completions: &mut Vec<Completion>) {
        completions.extend(self.closed.drain(..).map(Completion::Closed));
        // Whoever waits to be accepted gets a part for certain, or enough traffic would keep everybody out.
        let room = if self.may_accept() { limit - limit / 8 } else { limit };
        while completions.len() < room {
            let Some(entry) = self.uring.completion().next() else { break };
            if let Some(completion) = self.complete(&entry) {
                completions.push(completion);
            }
        }
        while self.may_accept() && completions.len() < limit {
            completions.extend(self.accept_one());
        }
    }

    /// Whether clients may wait whom the ring is to accept.
    fn may_accept(&self) -> bool {
        self.accepting && self.acceptable && self.listener.is_some()
    }

    fn accept_one(&mut self) -> Option<Completion> {
        match rustix::net::accept_with(self.listener.as_ref()?, SocketFlags::CLOEXEC) {
            Ok(socket) => Some(Completion::Accepted(self.connections.insert(socket))),
            Err(Errno::INTR | Errno::CONNABORTED) => None,
            Err(Errno::AGAIN) => {
                self.acceptable = false;
                None
            }
            Err(error) => {
                self.accepting = false;
                Some(Completion::AcceptStopped(error.into()))
            }
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let more = cqueue::more(entry.flags());
        if !more {
            self.in_flight -= 1;
        }
        let user_data = entry.user_data();
        let key = Key { slot: user_data as u32, generation: (user_data >> 32) as u32 & 0xff_ffff };
        let result = entry.result();
        match user_data >> 56 {
            operation if operation == Operation::Accept as u64 => {
                self.acceptable = true;
                self.watching = more;
                self.watch_listener();
                None
            }
            operation if operation == Operation::Receive as u64 => {
                self.complete_receive(key, result, cqueue::buffer_select(entry.flags()), more)
            }
            operation if operation == Operation::Send as u64 => self.complete_send(key, result),
            operation if operation == Operation::Wake as u64 => {
                if !more && result != -libc::ECANCELED {
                    self.submit_watch();
                }
                Some(Completion::Woken)
            }
            _ => None,
        }
    }

    fn complete_receive(
        &mut self,
        key: Key,
        result: i32,
        buffer: Option<u16>,
        more: bool,
    ) -> Option<Completion> {
        let own = (BUFFER_FOR_EACH && result > 0).then_some(key.slot as u16);
        let filled = buffer.or(own).map(|id| self.buffers.filled(id, result.max(0) as u32));
        let Some(connection) = self.connections.get_mut(key) else {
            // Invariant 3 keeps a slot until its operations are over, so only the buffer matters.
            filled.into_iter().for_each(|filled| self.buffers.recycle(filled));
            return None;
        };
        connection.receiving = more;
        if connection.closing {
            filled.into_iter().for_each(|filled| self.buffers.recycle(filled));
            return self.connections.release_if_done(key).then_some(Completion::Closed(key));
        }
        connection.fed |= result > 0;
        let starved = result == -libc::ENOBUFS;
        if !more && (result > 0 || starved) && !connection.starved {
            connection.starved = true;
            if connection.fed { self.interrupted.push(key) } else { self.starved.push(key) }
        }
        match filled {
            Some(filled) if result > 0 => Some(Completion::Received(key, filled)),
            filled => {
                filled.into_iter().for_each(|filled| self.buffers.recycle(filled));
                if starved {
                    return None;
                }
                let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
                Some(Completion::Ended(key, error))
            }
        }
    }

    fn complete_send(&mut self, key: Key, result: i32) -> Option<Completion> {
        let connection = self.connections.get_mut(key)?;
        let batch = connection.sending.take()?;
        if connection.closing {
            return self.connections.release_if_done(key).then_some(Completion::Closed(key));
        }
        let outcome = match usize::try_from(result) {
            Ok(sent) if sent == batch.bytes() => Ok(()),
            // MSG_WAITALL gives up early only when the connection breaks.
            Ok(_) => Err(io::ErrorKind::ConnectionReset.into()),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        Some(Completion::Sent(key, batch, outcome))
    }

    /// # Safety
    /// Memory and descriptors that `entry` names stay valid until its last completion is reaped.
    unsafe fn submit_operation(&mut self, entry: squeue::Entry, operation: Operation, key: Key) {
        let entry = entry.user_data(tag(operation, key));
        self.in_flight += 1;
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Full: hand over what is there. EBUSY cannot last, since the kernel keeps completions
            // that do not fit aside (IORING_FEAT_NODROP).
            if let Err(error) = self.uring.submit()
                && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
            {
                panic!("io_uring_enter failed: {error}");
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.wake = None;
        self.listener = None;
        for connection in self.connections.iter_mut() {
            connection.closing = true;
        }
        // Bounded: an operation that does not end in two seconds (40 times twice 25 ms) never will.
        let pause = Timespec::new().nsec(25_000_000);
        for _ in 0..40 {
            if self.in_flight == 0 {
                break;
            }
            let _ = self.uring.submit();
            let _ = self.uring.submitter().register_sync_cancel(Some(pause), CancelBuilder::any());
            let _ = self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&pause));
            let mut finished = Vec::new();
            self.reap(usize::MAX, &mut finished);
            for completion in finished {
                // A client accepted meanwhile has nothing in flight and is dropped with the table.
                if let Completion::Received(_, filled) = completion {
                    self.recycle(filled);
                }
            }
        }
        // SAFETY: the fields are dropped here and not used again.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            if self.in_flight == 0 {
                ManuallyDrop::drop(&mut self.buffers);
                ManuallyDrop::drop(&mut self.connections);
            }
        }
    }
}
