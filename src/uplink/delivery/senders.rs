//! The numbers of batches: by them missing batches are noticed, and those that come too late.

use std::collections::VecDeque;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::hashing::Hashing;
use crate::identity::RoomId;
use crate::uplink::batch::Origin;

/// Senders whose numbering is followed per room: far more than a cluster has instances. The oldest is
/// forgotten first, and then merely not checked.
const ORIGINS_PER_ROOM: usize = 64;

/// Milliseconds for which is kept how far a room's senders were when its subscription ended: what they have sent over
/// a connection that they gave up has arrived by then, or is lost.
pub(super) const KEPT_MS: u64 = 60_000;

/// Rooms of which that is kept: a few MB. The oldest is forgotten first, and then merely not checked.
pub(super) const ROOMS_KEPT: usize = 32_768;

/// What a batch is to those who have got the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one, as far as is known.
    InOrder,
    /// Others before it are missing.
    BehindGap,
    /// Later ones have been delivered already.
    Late,
}

/// The last batch of one sender.
#[derive(Debug)]
struct Last {
    origin: Origin,
    number: u64,
    /// It came over an earlier subscription: what is missing behind it was lost with that, and members know.
    is_past: bool,
}

/// The last batch of each sender of a room.
#[derive(Debug, Default)]
pub(super) struct Senders(SmallVec<[Last; 2]>);

impl Senders {
    /// Takes note of a batch of this `number`. It `follows` the one before unless a numbering begins with it; a sender's
    /// numbers in a room only rise, even then. `repeats` says of one whose number is that of its sender's last batch
    /// whether that was certainly sent during this subscription.
    pub(super) fn note(
        &mut self,
        origin: Origin,
        (number, follows): (u64, bool),
        repeats: Option<bool>,
    ) -> Arrival {
        let Some(last) = self.0.iter_mut().find(|last| last.origin == origin) else {
            if self.0.len() == ORIGINS_PER_ROOM {
                self.0.remove(0);
            }
            self.0.push(Last { origin, number, is_past: false });
            return if repeats == Some(true) { Arrival::BehindGap } else { Arrival::InOrder };
        };
        if number < last.number || (number == last.number && repeats.is_none()) {
            return Arrival::Late;
        }
        let expected = if repeats.is_some() { last.number } else { last.number.wrapping_add(1) };
        let skips = number != expected;
        let gap = match std::mem::take(&mut last.is_past) {
            true => skips && repeats == Some(true),
            false => skips && follows,
        };
        last.number = number;
        if gap { Arrival::BehindGap } else { Arrival::InOrder }
    }
}

/// How far the senders of rooms were whose subscription has ended, for a while.
#[derive(Debug, Default)]
pub(super) struct PastSenders {
    rooms: HashMap<RoomId, (u64, Senders), Hashing>,
    /// When they were kept, oldest first; some have been taken since.
    order: VecDeque<(u64, RoomId)>,
}

impl PastSenders {
    /// The room's subscription ends at `now_ms`.
    pub(super) fn keep(&mut self, room: RoomId, mut senders: Senders, now_ms: u64) {
        while let Some((at, _)) = self.order.front()
            && (self.order.len() >= ROOMS_KEPT || *at + KEPT_MS <= now_ms)
            && let Some((at, oldest)) = self.order.pop_front()
        {
            if self.rooms.get(&oldest).is_some_and(|(kept_at, _)| *kept_at == at) {
                self.rooms.remove(&oldest);
            }
        }
        if !senders.0.is_empty() {
            senders.0.iter_mut().for_each(|last| last.is_past = true);
            self.order.push_back((now_ms, room.clone()));
            self.rooms.insert(room, (now_ms, senders));
        }
    }

    /// The room is subscribed again.
    pub(super) fn take(&mut self, room: &RoomId, now_ms: u64) -> Senders {
        let kept = self.rooms.remove(room).filter(|(at, _)| now_ms < *at + KEPT_MS);
        kept.map(|(_, senders)| senders).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(number: usize) -> RoomId {
        RoomId::parse(&format!("r{number}")).unwrap()
    }

    fn senders() -> Senders {
        let mut senders = Senders::default();
        assert_eq!(senders.note(Origin(2), (7, true), None), Arrival::InOrder);
        senders
    }

    #[test]
    fn what_is_kept_of_past_subscriptions_is_bounded_in_number_and_time() {
        let mut past = PastSenders::default();
        (0..ROOMS_KEPT + 5).for_each(|number| past.keep(room(number), senders(), 1));
        assert_eq!((past.rooms.len(), past.order.len()), (ROOMS_KEPT, ROOMS_KEPT));
        let late = |past: &mut PastSenders, number, now_ms| {
            past.take(&room(number), now_ms).note(Origin(2), (6, true), None) == Arrival::Late
        };
        assert!(!late(&mut past, 4, 1), "the oldest were forgotten");
        assert!(late(&mut past, 5, KEPT_MS));
        assert!(!late(&mut past, 6, 1 + KEPT_MS), "it was too long ago");
        past.keep(room(0), senders(), 1 + KEPT_MS);
        assert_eq!((past.rooms.len(), past.order.len()), (1, 1));
    }

    #[test]
    fn a_room_that_comes_and_goes_is_kept_from_its_last_end_on() {
        let mut past = PastSenders::default();
        past.keep(room(1), senders(), 1);
        let again = past.take(&room(1), 2);
        past.keep(room(1), again, 9);
        past.keep(room(2), senders(), 1 + KEPT_MS);
        let arrival = past.take(&room(1), 2 + KEPT_MS).note(Origin(2), (7, true), None);
        assert_eq!(arrival, Arrival::Late);
    }
}
