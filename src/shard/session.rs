//! One connection's state, small enough to have a hundred thousand of them.

use std::collections::VecDeque;
use std::net::IpAddr;

use smallvec::SmallVec;

use super::Now;
use super::history::Awaited;
use super::resume::Resuming;
use crate::accept::api::Call;
use crate::codec::message::Decoder;
use crate::command::authorize::Identity;
use crate::identity::{ConnectionId, RoomId};
use crate::quota::Place;
use crate::room::directory::{Membership, Moved};
use crate::room::history::Position;
use crate::trace::OpenSpan;

/// Where a connection stands in its life. It only ever moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// The request head is not complete.
    Handshake,
    /// A request to `/api/`: its body is not complete, or its answer is awaited.
    Requesting,
    /// Upgraded; the user is being made reachable from everywhere. Nothing has been said yet.
    Attaching,
    /// Messages go both ways.
    Open,
    /// A close frame went out; the peer's is awaited.
    Closing,
    /// Nothing more is read; what waits goes out, then the peer's end of the connection is awaited.
    Finishing,
    /// The socket is being closed; the slot is not free yet.
    Gone,
}

/// A room that the connection has asked to join and is not in yet.
#[derive(Debug)]
pub(super) struct Joining {
    pub(super) room: RoomId,
    pub(super) message_id: Option<Box<str>>,
    pub(super) echo: bool,
    pub(super) want_members: bool,
    /// Where the client stopped reading, if it wants what it has missed.
    pub(super) since: Option<Position>,
    /// The number of the `resume` that it is one room of.
    pub(super) resume: Option<u32>,
    /// When the home shard was last asked, in ms.
    pub(super) asked_at: u32,
    /// Messages about this room that came meanwhile; they are handled once the join is answered.
    pub(super) parked: Vec<Box<str>>,
    /// The join's span, where it is followed.
    pub(super) span: Option<Box<OpenSpan>>,
}

/// Messages that may be parked for one pending join: what a client pipelines, not what it streams.
const PARKED: usize = 64;

/// Bytes of those messages: sixteen of the default largest size.
const PARKED_BYTES: usize = 1024 * 1024;

impl Joining {
    /// Keeps a message until the join is answered. Returns whether there was room.
    pub(super) fn park(&mut self, text: &str) -> bool {
        let bytes: usize = self.parked.iter().map(|parked| parked.len()).sum();
        let fits = self.parked.len() < PARKED && bytes + text.len() <= PARKED_BYTES;
        if fits {
            self.parked.push(text.into());
        }
        fits
    }
}

/// What a connection has only while something is unusual: kept apart, so that silence costs nothing.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// The request head so far; after the upgrade, frames that came before the first message went out.
    pub(super) early: Vec<u8>,
    pub(super) joining: Vec<Joining>,
    /// The room that the request to upgrade has named.
    pub(super) room: Option<Box<str>>,
    /// Who the peer is, where addresses matter: the client, or the last of its proxies.
    pub(super) peer: Option<IpAddr>,
    /// Whether a header of the PROXY protocol is still to come.
    pub(super) prefaced: bool,
    /// Each `resume` whose rooms are not all joined yet.
    pub(super) resumes: Vec<Resuming>,
    /// Messages that wait for their ack, oldest first.
    pub(super) awaited: VecDeque<Awaited>,
    /// The `authenticate` message that waits for the user to be attached.
    pub(super) authenticating: Option<Option<Box<str>>>,
    /// The request whose body is being read into `early`.
    pub(super) request: Option<Call>,
}

impl Unsettled {
    fn is_empty(&self) -> bool {
        // Who the peer is matters until the upgrade only.
        let Self { early, room, joining, authenticating, resumes, awaited, request, .. } = self;
        early.is_empty()
            && room.is_none()
            && joining.is_empty()
            && authenticating.is_none()
            && resumes.is_empty()
            && awaited.is_empty()
            && request.is_none()
    }
}

/// One connection.
pub(super) struct Session {
    pub(super) id: ConnectionId,
    pub(super) phase: Phase,
    /// Whether the connection counts among the open ones.
    pub(super) counted: bool,
    /// Whether the peer sends nothing more; what waits for it still goes out.
    pub(super) ended: bool,
    /// Bits of the window with which the client expands compressed frames; 0 when compression was not
    /// agreed on.
    pub(super) window: u8,
    /// Whether a ping is unanswered.
    pub(super) pinged: bool,
    /// Whether the client has been told that its token runs out soon.
    pub(super) expiry_told: bool,
    /// Whether the connection is on the list of those that end soon.
    pub(super) expiry_noted: bool,
    /// Messages in a row that were no valid JSON or no valid message.
    pub(super) invalid: u8,
    /// Messages in a row that came over the rate limit.
    pub(super) limited: u16,
    /// When the phase began, in ms.
    pub(super) since: u32,
    /// When anything was last heard, in ms.
    pub(super) heard_at: u32,
    pub(super) allowance: Allowance,
    /// The client's address among the instance's quotas, if that is counted.
    pub(super) address: Option<Place>,
    /// What else is metered, once there is something.
    pub(super) meter: Option<Box<Meter>>,
    pub(super) decoder: Decoder,
    pub(super) identity: Option<Box<Identity>>,
    pub(super) rooms: SmallVec<[Membership; 2]>,
    pub(super) unsettled: Option<Box<Unsettled>>,
}

impl Session {
    pub(super) fn new(id: ConnectionId, now: Now, burst: u32) -> Self {
        Self {
            id,
            phase: Phase::Handshake,
            counted: false,
            ended: false,
            window: 0,
            pinged: false,
            expiry_told: false,
            expiry_noted: false,
            invalid: 0,
            limited: 0,
            since: now.ms(),
            heard_at: now.ms(),
            allowance: Allowance::full(burst, now),
            address: None,
            meter: None,
            decoder: Decoder::default(),
            identity: None,
            rooms: SmallVec::new(),
            unsettled: Some(Box::default()),
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, now: Now) {
        self.phase = phase;
        self.since = now.ms();
    }

    pub(super) fn unsettled(&mut self) -> &mut Unsettled {
        self.unsettled.get_or_insert_default()
    }

    /// Whether a request is to come, or more of one.
    pub(super) fn awaits_rest(&self) -> bool {
        match self.phase {
            Phase::Handshake => true,
            Phase::Requesting => self.unsettled.as_ref().is_some_and(|unsettled| unsettled.request.is_some()),
            _ => false,
        }
    }

    /// Frees what is not needed any more.
    pub(super) fn settle(&mut self) {
        if self.unsettled.as_ref().is_some_and(|unsettled| unsettled.is_empty()) {
            self.unsettled = None;
        }
    }

    pub(super) fn joining(&mut self, room: &str) -> Option<&mut Joining> {
        self.unsettled.as_mut()?.joining.iter_mut().find(|joining| joining.room.as_str() == room)
    }

    pub(super) fn take_joining(&mut self, room: &RoomId) -> Option<Joining> {
        let unsettled = self.unsettled.as_mut()?;
        let place = unsettled.joining.iter().position(|joining| joining.room == *room)?;
        let joining = unsettled.joining.swap_remove(place);
        self.settle();
        Some(joining)
    }

    pub(super) fn membership(&self, slice: u32) -> Option<Membership> {
        self.rooms.iter().find(|membership| membership.slice == slice).copied()
    }

    pub(super) fn follow(&mut self, moved: Moved) {
        if let Some(membership) = self.rooms.iter_mut().find(|membership| **membership == moved.from) {
            *membership = moved.to;
        }
    }
}

/// What a connection has sent and joined, as [`crate::quota::Rate::take`] keeps it; only where there are limits for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    pub(super) bytes: u64,
    pub(super) joins: u64,
}

/// How many messages a connection may send now: a token bucket (rate per second, burst).
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// In thousandths of a message.
    available: u32,
    updated: u32,
}

impl Allowance {
    pub(super) fn full(burst: u32, now: Now) -> Self {
        Self { available: burst.saturating_mul(1000), updated: now.ms() }
    }

    /// Takes one message out.
    ///
    /// # Errors
    /// Milliseconds until there is one again.
    pub(super) fn take(&mut self, rate: u32, burst: u32, now: Now) -> Result<(), u64> {
        if rate == 0 || burst == 0 {
            return Ok(());
        }
        // `rate` messages per second are `rate` thousandths per millisecond.
        let earned = now.ms().wrapping_sub(self.updated).saturating_mul(rate);
        self.updated = now.ms();
        self.available = self.available.saturating_add(earned).min(burst.saturating_mul(1000));
        match self.available.checked_sub(1000) {
            Some(rest) => {
                self.available = rest;
                Ok(())
            }
            None => Err(u64::from((1000 - self.available).div_ceil(rate))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { since_start_ms: ms, unix_ms: 0 }
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut allowance = Allowance::full(2, at(0));
        assert_eq!(allowance.take(10, 2, at(0)), Ok(()));
        assert_eq!(allowance.take(10, 2, at(0)), Ok(()));
        assert_eq!(allowance.take(10, 2, at(0)), Err(100));
        assert_eq!(allowance.take(10, 2, at(99)), Err(1));
        assert_eq!(allowance.take(10, 2, at(100)), Ok(()));
        assert_eq!(allowance.take(10, 2, at(100)), Err(100));
        assert_eq!(allowance.take(10, 2, at(10_000)), Ok(()));
        assert_eq!(allowance.take(10, 2, at(10_000)), Ok(()));
        assert!(allowance.take(10, 2, at(10_000)).is_err(), "no more than a burst is saved up");
    }

    #[test]
    fn no_rate_means_no_limit() {
        let mut allowance = Allowance::full(0, at(0));
        assert!((0..1000).all(|_| allowance.take(0, 0, at(0)).is_ok()));
        assert!((0..1000).all(|_| allowance.take(1, 0, at(0)).is_ok()), "nor does no burst");
    }
}
