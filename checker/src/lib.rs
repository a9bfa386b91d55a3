//! Says from the records of a run whether TableForge kept its promises (docs/guarantees.md).
//!
//! The caller gives every [`Record`] to a [`Checker`] in the order of time, each client's own in the order in
//! which they happened to it, and at the end the histories as they then are. What comes back is the list of
//! broken promises. Nothing here reads a clock, a socket or a file, so the same checker judges the simulation
//! and runs of real processes.
//!
//! Checked of rooms with history: one (room, epoch, offset) is one message everywhere; offsets rise by one for
//! every member, or it was told where the room goes on; what was recovered is exactly what was missed; what was
//! acknowledged is in the history; messages of one connection are stored in the order sent. Of rooms without:
//! every message at most once, in each sender's order, and an acknowledged one is not lost unless a
//! `room_resync` tells so. Of both: what was refused reaches nobody, nobody gets anything that was not sent, or
//! after the end of a membership; and without faults messages arrive in time and members are current.

mod finish;
mod membership;
pub mod record;
mod sent;
mod stored;
pub mod violation;

use std::collections::{HashMap, HashSet};

use membership::{Membership, Place};
use record::{Final, Member, Message, Position, Record, Recovery, Room};
use sent::SentMessages;
use stored::StoredRooms;
use violation::Violation;

/// Milliseconds within which a loss is noticed and made good: also in a room where nothing is said.
pub const CURRENT_WITHIN_MS: u64 = 10_000;

/// Violations that are kept: the first ones say enough.
const KEPT: usize = 100;

/// A gap in what a member without echo got: it may consist of the member's own messages only.
struct Skipped {
    room: Room,
    member: Member,
    epoch: u64,
    from: u64,
    to: u64,
    at_ms: u64,
}

/// Follows a run.
#[derive(Default)]
pub struct Checker {
    sent: SentMessages,
    stored: StoredRooms,
    inside: HashMap<(Member, Room), Membership>,
    /// Memberships that have ended, with who and where.
    ended: Vec<(Member, Room, Membership)>,
    /// Who wants to be where.
    wishes: HashSet<(Member, Room)>,
    skipped: Vec<Skipped>,
    /// When the last fault ended; nothing while there is one.
    calm_since: Option<u64>,
    violations: Vec<Violation>,
}

impl Checker {
    /// A checker of a run that begins, at 0 ms and without faults.
    pub fn new() -> Self {
        Self { calm_since: Some(0), ..Self::default() }
    }

    /// The violations so far; some show only at the end.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Something happened `at_ms` milliseconds after the run began.
    pub fn record(&mut self, at_ms: u64, record: Record) {
        match record {
            Record::Sent { room, message, session } => self.sent.sent(at_ms, room, message, session),
            Record::Acked { room, message, offset } => {
                self.sent.get_mut(room, message).acked = Some((at_ms, offset));
            }
            Record::Doubted { room, message } => self.sent.get_mut(room, message).acked = None,
            Record::Failed { room, message } => self.sent.get_mut(room, message).failed += 1,
            Record::Joined { member, room, echo, position, recovery } => {
                self.joined(at_ms, (member, room), echo, position, recovery);
            }
            Record::Received { member, room, offset, message } => {
                self.received(at_ms, (member, room), offset, message);
            }
            Record::Resynced { member, room, position } => {
                if let Some(membership) = self.inside.get_mut(&(member, room)) {
                    membership.resynced(at_ms, position);
                }
                if let Some(position) = position {
                    self.stored.seen_epoch(at_ms, room, position.epoch);
                }
            }
            Record::Left { member, room } => {
                self.wishes.remove(&(member, room));
                self.end(at_ms, (member, room));
            }
            Record::Closed { member } => self.end_all(at_ms, member),
            Record::Gone { member } => {
                self.wishes.retain(|(wisher, _)| *wisher != member);
                self.end_all(at_ms, member);
            }
            Record::FaultsBegin => self.calm_since = None,
            Record::FaultsEnd => self.calm_since = Some(at_ms),
        }
    }

    /// The run is over at `end_ms`, at least [`CURRENT_WITHIN_MS`] after the last message was sent and the
    /// last fault ended. `finals` has every room with history.
    pub fn finish(self, end_ms: u64, finals: &[Final]) -> Vec<Violation> {
        finish::finish(self, end_ms, finals)
    }

    fn broken(&mut self, violation: Violation) {
        if self.violations.len() < KEPT {
            self.violations.push(violation);
        }
    }

    fn joined(
        &mut self,
        at_ms: u64,
        (member, room): (Member, Room),
        echo: bool,
        position: Option<Position>,
        recovery: Recovery,
    ) {
        if let Some(position) = position {
            self.stored.seen_epoch(at_ms, room, position.epoch);
        }
        if let Recovery::Full { since, messages } = recovery {
            let exact = position.is_some_and(|position| {
                since.epoch == position.epoch
                    && messages.len() as u64 == position.offset.wrapping_sub(since.offset)
                    && messages.iter().zip(since.offset + 1..).all(|((offset, _), due)| *offset == due)
            });
            if !exact {
                self.broken(Violation::WrongRecovery { room, member, at_ms });
            }
            for (offset, message) in messages {
                self.sent.get_mut(room, message).seen = true;
                self.place(at_ms, room, since.epoch, offset, message);
            }
        }
        self.end(at_ms, (member, room));
        self.wishes.insert((member, room));
        self.inside.insert((member, room), Membership::new(at_ms, echo, position));
    }

    fn received(
        &mut self,
        at_ms: u64,
        (member, room): (Member, Room),
        offset: Option<u64>,
        message: Message,
    ) {
        let sent = self.sent.get_mut(room, message);
        sent.seen = true;
        let waited = at_ms.saturating_sub(sent.last_ms);
        let Some(membership) = self.inside.get_mut(&(member, room)) else {
            return self.broken(Violation::Uninvited { room, member, message, at_ms });
        };
        let since = membership.since_ms.max(self.calm_since.unwrap_or(u64::MAX));
        let late = at_ms.saturating_sub(since) > CURRENT_WITHIN_MS && waited > CURRENT_WITHIN_MS;
        if late && sent.attempts > 0 {
            self.broken(Violation::Late { room, member, message, ms: waited });
        }
        let Some(membership) = self.inside.get_mut(&(member, room)) else { return };
        // It came in while the history could not be reached, and was not told where that stands.
        if offset.is_some() && matches!(&membership.place, Place::Plain(heard) if heard.is_empty()) {
            membership.place = Place::Numbered { epoch: None, next: None };
        }
        match (&mut membership.place, offset) {
            (Place::Plain(heard), None) => {
                if let Err(later) = heard.hear(message) {
                    self.not_in_order((member, room), message, later);
                }
            }
            (Place::Numbered { epoch, next }, Some(offset)) => {
                let (epoch, due, echo) = (*epoch, next.replace(offset + 1), membership.echo);
                if let Some(due) = due.filter(|due| *due != offset) {
                    self.not_due((member, room), (echo, epoch), (due, offset), message, at_ms);
                }
                if let Some(epoch) = epoch {
                    self.place(at_ms, room, epoch, offset, message);
                }
            }
            _ => self.broken(Violation::Unnumbered { room, member, message }),
        }
    }

    /// A message of a room without history is not later than the latest one of its sender.
    fn not_in_order(&mut self, (member, room): (Member, Room), message: Message, later: Option<u64>) {
        match later {
            None => self.broken(Violation::Duplicate { room, message, member: Some(member) }),
            Some(number) => {
                let second = Message { number, ..message };
                if self.sent.are_ordered(room, message, second) {
                    self.broken(Violation::OutOfOrder { room, first: message, second, member: Some(member) });
                }
            }
        }
    }

    /// Another offset came than was to come. A member without echo does not get its own messages.
    fn not_due(
        &mut self,
        (member, room): (Member, Room),
        (echo, epoch): (bool, Option<u64>),
        (due, got): (u64, u64),
        message: Message,
        at_ms: u64,
    ) {
        match epoch {
            // Which numbering it is in is not known, so neither is whose messages these are.
            None if got > due && !echo => {}
            Some(epoch) if got > due && !echo => {
                self.skipped.push(Skipped { room, member, epoch, from: due, to: got, at_ms });
            }
            _ if got < due => self.broken(Violation::Duplicate { room, message, member: Some(member) }),
            _ => self.broken(Violation::Gap { room, member, expected: due, got, at_ms }),
        }
    }

    /// The message is seen at its place in the history.
    fn place(&mut self, at_ms: u64, room: Room, epoch: u64, offset: u64, message: Message) {
        if let Err(violation) = self.stored.place(at_ms, room, epoch, offset, message) {
            self.broken(violation);
        }
    }

    fn end(&mut self, at_ms: u64, (member, room): (Member, Room)) {
        if let Some(mut membership) = self.inside.remove(&(member, room)) {
            membership.until_ms = at_ms;
            membership.calm_ms = Some(self.calm_since.unwrap_or(u64::MAX));
            // A membership of a room with history has been checked message by message.
            if matches!(membership.place, Place::Plain(_)) {
                self.ended.push((member, room, membership));
            }
        }
    }

    fn end_all(&mut self, at_ms: u64, member: Member) {
        let rooms: Vec<_> = self.inside.keys().filter(|(who, _)| *who == member).copied().collect();
        for key in rooms {
            self.end(at_ms, key);
        }
    }
}
