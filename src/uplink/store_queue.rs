//! Messages to be stored: they gather, go to Redis many in a call, and each is answered once.
//!
//! Calls go out one behind the other without waiting for answers. Redis carries a call out only if it has carried
//! out the one before (`calls:` in `history.lua`), so when one fails, all that are under way behind it fail too, and
//! nothing of them has been done. If the script was merely forgotten (SCRIPT FLUSH), they are sent again, in order;
//! if Redis cannot store now, they are answered so. A message of one sender never overtakes another.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use redis::{ServerError, Value};

use super::history::{Epochs, HistoryCaller, StoredRoom, decode_offsets};
use super::link::{Link, LinkError, PASSING, words};
use super::publisher::Sent;
use crate::hashing::Hashing;
use crate::identity::RoomId;
use crate::shard::envelope::{Envelope, Store, StoreOutcome};
use crate::shard::outlet::Outlet;

/// Messages of one call: it blocks Redis for about a millisecond.
const CALL_MESSAGES: usize = 128;

/// Bytes of one call's events, unless a single one has more.
const CALL_BYTES: usize = 256 * 1024;

/// Pause after which Redis may have forgotten the number of the last call: half of the time for which it is kept.
const NUMBER_KEPT: Duration = Duration::from_secs(300);

/// One call: messages by room.
#[derive(Debug)]
pub struct StoreCall {
    rooms: Vec<StoredRoom>,
}

impl StoreCall {
    /// How many messages it has.
    pub fn messages(&self) -> usize {
        self.rooms.iter().map(|room| room.stores.len()).sum()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Calls go out.
    Open,
    /// A call was not carried out. Nothing goes out until the last one under way is answered; those that were
    /// refused are then sent again, or have been answered meanwhile.
    Draining { repeats: bool },
}

/// Gathers messages and keeps calls in order.
pub struct StoreQueue {
    caller: HistoryCaller,
    epochs: Epochs,
    shards: Vec<Outlet<Envelope>>,
    gathered: Vec<Store>,
    flow: Flow,
    in_flight: usize,
    again: Vec<StoreCall>,
    kept: Vec<StoreCall>,
    number: u64,
    /// Whether the next call may follow any other: it carries the script's text.
    begins: bool,
    last_sent: Option<Instant>,
}

impl StoreQueue {
    /// An empty queue whose answers go to `shards`.
    pub fn new(caller: HistoryCaller, epochs: Epochs, shards: Vec<Outlet<Envelope>>) -> Self {
        Self {
            caller,
            epochs,
            shards,
            gathered: Vec::new(),
            flow: Flow::Open,
            in_flight: 0,
            again: Vec::new(),
            kept: Vec::new(),
            number: 0,
            begins: true,
            last_sent: None,
        }
    }

    /// Takes a message for the next calls.
    pub fn add(&mut self, store: Store) {
        self.gathered.push(store);
    }

    /// Calls that wait for others to be answered.
    pub fn waiting(&self) -> usize {
        self.again.len() + self.kept.len()
    }

    /// Whether calls are under way, or answers wait for a shard's queue.
    pub fn is_storing(&self) -> bool {
        self.in_flight > 0 || self.shards.iter().any(|shard| shard.backlog() > 0)
    }

    /// Sends what has gathered; answers [`StoreOutcome::Unavailable`] when the link is not up.
    pub fn flush(&mut self, link: &mut Link<Sent>, now: Instant) {
        let gathered = std::mem::take(&mut self.gathered);
        if !link.is_up() {
            for store in gathered {
                self.answer(store, StoreOutcome::Unavailable);
            }
            return;
        }
        for call in calls(gathered) {
            match self.flow {
                Flow::Open => self.send(call, link, now),
                Flow::Draining { .. } => self.kept.push(call),
            }
        }
    }

    fn send(&mut self, call: StoreCall, link: &mut Link<Sent>, now: Instant) {
        let forgotten = self.last_sent.is_none_or(|last| now >= last + NUMBER_KEPT);
        let begins = std::mem::take(&mut self.begins) || (forgotten && self.in_flight == 0);
        self.number += 1;
        self.in_flight += 1;
        self.last_sent = Some(now);
        let command = self.caller.publish(&call.rooms, self.number, self.epochs.draw(), begins);
        link.send(&command, Sent::Stores(call), now);
    }

    /// A call was answered.
    ///
    /// # Errors
    /// When Redis refuses what the uplink cannot do without: the driver closes the connection.
    pub fn answered(
        &mut self,
        call: StoreCall,
        answer: Result<Value, ServerError>,
        link: &mut Link<Sent>,
        now: Instant,
    ) -> Result<(), LinkError> {
        self.in_flight -= 1;
        match answer {
            Ok(value) => {
                let Some(offsets) = decode_offsets(&value) else {
                    self.answer_all(call, StoreOutcome::Timeout);
                    return Err(LinkError::Other("the history script gave an answer of the wrong shape"));
                };
                let stores = call.rooms.into_iter().flat_map(|room| room.stores);
                for (store, offset) in stores.zip(offsets) {
                    self.answer(store, StoreOutcome::Stored(offset));
                }
            }
            Err(error) => self.refused(call, &error)?,
        }
        if self.in_flight == 0 && self.flow != Flow::Open {
            self.flow = Flow::Open;
            self.begins = true;
            let again = std::mem::take(&mut self.again);
            for call in again.into_iter().chain(std::mem::take(&mut self.kept)) {
                self.send(call, link, now);
            }
        }
        Ok(())
    }

    fn refused(&mut self, call: StoreCall, error: &ServerError) -> Result<(), LinkError> {
        let code = error.code();
        let not_its_turn = matches!(code, "NOSCRIPT" | "OUTOFORDER");
        if !not_its_turn && !PASSING.contains(&code) {
            self.answer_all(call, StoreOutcome::Timeout);
            return Err(LinkError::Refused { step: "the history script", error: words(error) });
        }
        if self.flow == Flow::Open {
            self.flow = Flow::Draining { repeats: not_its_turn };
            tracing::debug!(error = %words(error), "messages were not stored");
        }
        if not_its_turn && self.flow == (Flow::Draining { repeats: true }) {
            self.again.push(call);
        } else {
            self.answer_all(call, StoreOutcome::Unavailable);
        }
        Ok(())
    }

    /// The connection is gone, and with it what became of the calls that were under way. Those that waited have
    /// not been carried out.
    pub fn link_lost(&mut self, unanswered: impl Iterator<Item = StoreCall>) {
        for call in unanswered {
            self.answer_all(call, StoreOutcome::Timeout);
        }
        let again = std::mem::take(&mut self.again);
        for call in again.into_iter().chain(std::mem::take(&mut self.kept)) {
            self.answer_all(call, StoreOutcome::Unavailable);
        }
        self.flow = Flow::Open;
        self.in_flight = 0;
        self.begins = true;
    }

    fn answer_all(&mut self, call: StoreCall, outcome: StoreOutcome) {
        for store in call.rooms.into_iter().flat_map(|room| room.stores) {
            self.answer(store, outcome);
        }
    }

    fn answer(&mut self, store: Store, outcome: StoreOutcome) {
        let Store { room, asker, trace, .. } = store;
        if let Some(trace) = trace {
            let error = match outcome {
                StoreOutcome::Stored(_) => None,
                StoreOutcome::Unavailable => Some("Redis could not store it"),
                StoreOutcome::Timeout => Some("whether it is stored is not known"),
            };
            trace.0.finish(error);
        }
        if let Some(shard) = self.shards.get_mut(asker.connection.shard.index()) {
            shard.send(Envelope::Stored { room, asker, outcome });
        }
    }

    /// Moves answers into the shards' queues and wakes them. True when some still wait.
    pub fn flush_answers(&mut self) -> bool {
        let mut waits = false;
        for shard in &mut self.shards {
            shard.flush();
            waits |= shard.backlog() > 0;
        }
        waits
    }
}

/// Messages by room, each room's in their order, in as few calls as the bounds allow.
fn calls(stores: Vec<Store>) -> Vec<StoreCall> {
    let mut places: HashMap<RoomId, usize, Hashing> = HashMap::default();
    let mut rooms: Vec<StoredRoom> = Vec::new();
    for store in stores {
        let place = *places.entry(store.room.clone()).or_insert(rooms.len());
        if place == rooms.len() {
            rooms.push(StoredRoom { room: store.room.clone(), stores: Vec::new() });
        }
        rooms[place].stores.push(store);
    }
    let (mut calls, mut call) = (Vec::new(), StoreCall { rooms: Vec::new() });
    let (mut messages, mut bytes) = (0, 0);
    for StoredRoom { room, stores } in rooms {
        let mut part = StoredRoom { room, stores: Vec::new() };
        for store in stores {
            let size = store.event.len();
            if messages > 0 && (messages == CALL_MESSAGES || bytes + size > CALL_BYTES) {
                let next = StoredRoom { room: part.room.clone(), stores: Vec::new() };
                let full = std::mem::replace(&mut part, next);
                if !full.stores.is_empty() {
                    call.rooms.push(full);
                }
                calls.push(std::mem::replace(&mut call, StoreCall { rooms: Vec::new() }));
                (messages, bytes) = (0, 0);
            }
            messages += 1;
            bytes += size;
            part.stores.push(store);
        }
        call.rooms.push(part);
    }
    if !call.rooms.is_empty() {
        calls.push(call);
    }
    calls
}
