//! Tokens run out: the client is told before, and nothing reaches it from that moment on.
//!
//! The sweep sees each connection once a second, which is exact enough for the warning and not for the end. So it
//! notes who ends before it comes again, and that short list is looked at before anything else of a turn: one
//! comparison while nothing is due.

use super::session::Phase;
use super::{Now, Shard};
use crate::codec::close::CloseCode;
use crate::command::event;
use crate::identity::ConnectionId;
use crate::limits;

/// Milliseconds before its end from which a connection is on the list: more than a sweep takes on a busy machine.
const LOOK_AHEAD_MS: u64 = 3000;

/// Connections that end soon.
#[derive(Debug, Default)]
pub(super) struct Expiries {
    soon: Vec<ConnectionId>,
    /// When the first of them ends, in ms since 1970.
    next_ms: u64,
}

impl Shard {
    /// Tells the client if its token runs out soon, and sees to it that the connection ends in time.
    pub(super) fn watch_expiry(&mut self, id: ConnectionId, now: Now) {
        let Some(end_ms) = self.end_of(id) else { return };
        let left_ms = end_ms.saturating_sub(now.unix_ms);
        if left_ms > limits::EXPIRY_WARNING_MS {
            return;
        }
        let session = self.sessions[id.slot as usize].as_mut();
        let open = session.filter(|session| session.id == id && session.phase == Phase::Open);
        let Some(session) = open else { return };
        let tell = left_ms > 0 && !std::mem::replace(&mut session.expiry_told, true);
        if left_ms <= LOOK_AHEAD_MS {
            let Expiries { soon, next_ms } = &mut self.expiries;
            *next_ms = if soon.is_empty() { end_ms } else { end_ms.min(*next_ms) };
            if !std::mem::replace(&mut session.expiry_noted, true) {
                soon.push(id);
            }
        }
        if tell {
            self.outboxes.push(id.slot, &event::token_expiring(end_ms, left_ms));
        }
    }

    /// When the connection's token runs out, in ms since 1970.
    fn end_of(&mut self, id: ConnectionId) -> Option<u64> {
        let identity = self.session_of(id)?.identity.as_ref()?;
        Some(identity.expires_at?.saturating_mul(1000))
    }

    /// Closes the connections whose tokens have run out. Comes before everything else in a turn.
    pub fn close_expired(&mut self, now: Now) {
        if self.expiries.soon.is_empty() || now.unix_ms < self.expiries.next_ms {
            return;
        }
        for id in std::mem::take(&mut self.expiries.soon) {
            if let Some(session) = self.session_of(id) {
                session.expiry_noted = false;
            }
            match self.end_of(id) {
                Some(end_ms) if end_ms <= now.unix_ms => {
                    let reason = "the token has expired: connect with a new one";
                    self.close(id.slot, CloseCode::TokenExpired, reason, now);
                }
                // Renewed, or later than the first of the list: noted again if it is soon.
                _ => self.watch_expiry(id, now),
            }
        }
        self.step_local(now);
    }
}
