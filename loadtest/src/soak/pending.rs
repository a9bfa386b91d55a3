//! Who is not current yet after a fault.

use std::collections::HashSet;

use checker::record::{Member, Room};

use crate::Ms;

/// Members of rooms that have not yet got a message that was sent after the fault by way of another host.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    since: Ms,
    waiting: HashSet<(Member, Room)>,
    current_ms: Option<Ms>,
}

impl Pending {
    /// Nobody waits.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// All faults have ended: these have to become current.
    pub(crate) fn begin(&mut self, now: Ms, waiting: HashSet<(Member, Room)>) {
        *self = Self { since: now, waiting, current_ms: None };
    }

    /// A member got a message that was sent at `sent` by way of another host.
    pub(crate) fn heard(&mut self, member: Member, room: Room, sent: Ms) {
        if sent >= self.since {
            self.waiting.remove(&(member, room));
        }
    }

    /// Some have gone by their own choice, or those from whom they would have heard something.
    pub(crate) fn keep(&mut self, wanted: impl Fn(Member, Room) -> bool) {
        self.waiting.retain(|(member, room)| wanted(*member, *room));
    }

    /// Who waits, and how long it took until nobody did.
    pub(crate) fn look(&mut self, now: Ms) -> (Vec<(Member, Room)>, Option<Ms>) {
        if self.waiting.is_empty() && self.since > 0 && self.current_ms.is_none() {
            self.current_ms = Some(now - self.since);
        }
        (self.waiting.iter().copied().collect(), self.current_ms)
    }
}
