//! What the script of faults tells the clients, and what it learns from them.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};

use checker::record::{Final, Member, Room};
use checker::violation::Violation;

use crate::Ms;
use crate::tally::Tally;

/// An order to the clients. Each is carried out before the next, and before [`Crowd::order`] returns.
///
/// [`Crowd::order`]: crate::control::Reins::order
#[derive(Debug)]
pub(crate) enum Order {
    /// Something is being broken from now on.
    FaultsBegin,
    /// Everything has been put right, now.
    FaultsEnd,
    /// The process of this host was killed: what it had acknowledged and not passed on is lost.
    HostKilled(usize),
    /// The process of this host has ended in order, and another will take its place.
    HostEnded(usize),
    /// Of so many clients one loses its connection.
    DropClients(u32),
    /// So many clients do not read for so long.
    StallReaders(u32, Ms),
    /// Nobody comes or goes any more, and who is away returns.
    Gather,
    /// Nobody sends any more.
    Hush,
    /// All ask how many are in their rooms.
    CountMembers,
    /// The run is over; the histories are these, or nothing if it was given up.
    Finish(Option<Vec<Final>>),
}

/// How the clients are.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) tally: Tally,
    /// Since the last faults ended, until all were current: milliseconds, once known.
    pub(crate) current_ms: Option<Ms>,
    /// Members of rooms that are not current yet.
    pub(crate) waiting: Vec<(Member, Room)>,
    pub(crate) open: usize,
    /// Broken promises so far.
    pub(crate) violations: usize,
}

/// What the clients say at the end.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) violations: Vec<Violation>,
    pub(crate) wrong_counts: Vec<String>,
    /// The last things that happened, for whoever looks into a violation.
    pub(crate) log: Vec<String>,
}

/// The script's end of the connection to the clients.
#[derive(Debug)]
pub(crate) struct Reins {
    orders: Sender<(Order, SyncSender<()>)>,
    pub(crate) state: Arc<Mutex<State>>,
}

/// The clients' end.
#[derive(Debug)]
pub(crate) struct Bit {
    pub(crate) orders: Receiver<(Order, SyncSender<()>)>,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Reins {
    /// Both ends.
    pub(crate) fn new() -> (Self, Bit) {
        let (sender, orders) = channel();
        let state = Arc::<Mutex<State>>::default();
        (Self { orders: sender, state: Arc::clone(&state) }, Bit { orders, state })
    }

    /// Has an order carried out.
    pub(crate) fn order(&self, order: Order) {
        let (done, wait) = sync_channel(1);
        if self.orders.send((order, done)).is_ok() {
            // An error says that the clients' thread has ended: its result says why.
            let _ = wait.recv();
        }
    }

    /// How the clients are.
    pub(crate) fn state(&self) -> State {
        self.state.lock().expect("nobody panics while holding it").clone()
    }
}
