//! The seats of the separate port: who has one, and who gives way when all are taken.
//!
//! Whoever connects gets a seat, so that a probe is answered whatever else is connected: what gives way is the connection
//! that can best do without, and calls of `/api/`, which are never cut off, may take only a part of all seats.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections at a time: probes, a scraper, some administrators.
pub const SEATS: usize = 64;

/// Calls at a time.
pub const CALLS: usize = 32;

/// Where a connection stands. Those first in this list give way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It has its answer, and what it still sends is thrown away.
    Leaving,
    /// Its request is not there yet.
    Asking,
    /// It is being answered.
    Answering,
    /// It is being answered, and more than an answer may depend on it.
    Calling,
}

struct Seat {
    number: u64,
    stream: Arc<TcpStream>,
    stage: Stage,
}

#[derive(Default)]
struct Taken {
    /// The one who has sat longest comes first.
    seats: Vec<Seat>,
    numbers: u64,
}

/// All seats.
#[derive(Clone, Default)]
pub struct Seats(Arc<Mutex<Taken>>);

/// One connection's seat, until it is dropped.
pub struct Place {
    seats: Seats,
    number: u64,
}

/// Why a call is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// There are as many as may be.
    TooMany,
    /// The connection has given way to another one.
    Gone,
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for `stream`, and whether another connection was told `refusal` and cut off for it before it had asked for
    /// anything.
    pub fn take(&self, stream: &Arc<TcpStream>, refusal: &str) -> (Place, bool) {
        let mut taken = self.lock();
        let mut refused = false;
        if taken.seats.len() >= SEATS
            && let Some(at) = (0..taken.seats.len()).min_by_key(|at| taken.seats[*at].stage)
            && taken.seats[at].stage < Stage::Calling
        {
            let Seat { stream, stage, .. } = taken.seats.remove(at);
            refused = stage == Stage::Asking;
            if refused {
                // Nothing was sent before, so there is room for it and nobody is waited for.
                let _ = (&*stream).write_all(refusal.as_bytes());
            }
            // Its thread is woken by this, and finds that it has no seat any more.
            let _ = stream.shutdown(Shutdown::Both);
        }
        taken.numbers += 1;
        let number = taken.numbers;
        taken.seats.push(Seat { number, stream: stream.clone(), stage: Stage::Asking });
        drop(taken);
        (Place { seats: self.clone(), number }, refused)
    }
}

impl Place {
    /// Changes the stage, if the connection has not given way.
    fn enter(&self, stage: impl FnOnce(Stage) -> Stage) -> bool {
        let mut taken = self.seats.lock();
        let own = taken.seats.iter_mut().find(|seat| seat.number == self.number);
        own.map(|seat| seat.stage = stage(seat.stage)).is_some()
    }

    /// A call begins, and will be answered whoever else comes.
    ///
    /// # Errors
    /// When it must not.
    pub fn call(&self) -> Result<(), Denied> {
        let mut taken = self.seats.lock();
        let calls = taken.seats.iter().filter(|seat| seat.stage == Stage::Calling).count();
        match taken.seats.iter_mut().find(|seat| seat.number == self.number) {
            None => Err(Denied::Gone),
            Some(_) if calls >= CALLS => Err(Denied::TooMany),
            Some(seat) => {
                seat.stage = Stage::Calling;
                Ok(())
            }
        }
    }

    /// The answer goes out now. False when the connection has given way, and must not be written to.
    pub fn answer(&self) -> bool {
        self.enter(|stage| stage.max(Stage::Answering))
    }

    /// The answer has gone out.
    pub fn leave(&self) {
        self.enter(|_| Stage::Leaving);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seats.lock().seats.retain(|seat| seat.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    struct Port {
        listener: TcpListener,
        seats: Seats,
    }

    impl Port {
        fn new() -> Self {
            Self { listener: TcpListener::bind("127.0.0.1:0").unwrap(), seats: Seats::default() }
        }

        /// A client, its place, and whether someone was refused for it.
        fn connect(&self) -> (TcpStream, Place, bool) {
            let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            let (place, refused) = self.seats.take(&Arc::new(self.listener.accept().unwrap().0), "full");
            (client, place, refused)
        }
    }

    fn heard(mut client: TcpStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_longest_silent_one_gives_way_and_is_told_so() {
        let port = Port::new();
        let mut open: Vec<_> = (0..SEATS).map(|_| port.connect()).collect();
        assert!(open[0].1.answer() && open[1].1.call().is_ok());
        assert!(open.iter().all(|(_, _, refused)| !refused), "there were seats for all");
        let (_client, place, refused) = port.connect();
        assert!(refused && place.answer());
        let (client, given_way, _) = open.remove(2);
        assert_eq!((given_way.answer(), given_way.call()), (false, Err(Denied::Gone)));
        drop(given_way);
        assert_eq!(heard(client), "full");
        assert!(open.iter().all(|(_, place, _)| place.answer()), "the others stay");
    }

    #[test]
    fn whoever_has_an_answer_gives_way_before_those_who_ask() {
        let port = Port::new();
        let mut open: Vec<_> = (0..SEATS).map(|_| port.connect()).collect();
        open[9].1.leave();
        let (_client, _place, refused) = port.connect();
        let (client, given_way, _) = open.remove(9);
        assert!(!refused && !given_way.answer());
        drop(given_way);
        assert_eq!(heard(client), "", "it has been answered already");
    }

    #[test]
    fn calls_take_a_part_of_the_seats_and_are_not_cut_off() {
        let port = Port::new();
        let mut open: Vec<_> = (0..SEATS).map(|_| port.connect()).collect();
        let called = open.iter().filter(|(_, place, _)| place.call() == Ok(())).count();
        assert_eq!((called, open[CALLS].1.call()), (CALLS, Err(Denied::TooMany)));
        let _more: Vec<_> = (0..2 * SEATS).map(|_| port.connect()).collect();
        assert!(open[..CALLS].iter().all(|(_, place, _)| place.answer()));
        open.clear();
        assert_eq!(port.connect().1.call(), Ok(()), "a call that is over makes room for the next");
    }
}
