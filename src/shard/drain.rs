//! The instance goes away: each client is told when to come back, and its connection is closed then.
//!
//! The times are spread evenly over the drain, those of each shard between those of the others, so that whoever takes
//! the clients sees them come one by one: those that connect again when they were told to, and those that wait until
//! they are closed.

use std::collections::VecDeque;
use std::time::Duration;

use super::session::Phase;
use super::{Now, Shard};
use crate::codec::close::CloseCode;
use crate::command::event;
use crate::identity::ConnectionId;
use crate::steering::DrainPlan;

/// The connections that a draining shard still has to close, and when, in milliseconds since the process started.
#[derive(Debug)]
pub(super) struct Drain {
    plan: DrainPlan,
    due: VecDeque<(u64, ConnectionId)>,
    /// When the last one is due.
    end_ms: u64,
}

/// Where the `place`th of `count` stands on a span, with each shard's places between those of the others.
fn share(span: Duration, place: usize, count: usize, (shard, shards): (usize, usize)) -> u64 {
    let (parts, taken) = (count.max(1) * shards, place * shards + shard + 1);
    span.as_millis() as u64 * taken as u64 / parts as u64
}

impl Shard {
    /// The instance is going away: every client is told when to come back, each at another time.
    pub fn handle_drain(&mut self, now: Now) {
        let Some(plan) = self.instance.drain() else { return };
        let shards = (self.id.index(), self.mesh.shards());
        let open = self.sessions.iter().flatten();
        let open = open.filter(|session| matches!(session.phase, Phase::Attaching | Phase::Open));
        let open: Vec<_> = open.map(|session| (session.id, session.phase)).collect();
        let mut due = VecDeque::with_capacity(open.len());
        for (place, (id, phase)) in open.iter().enumerate() {
            if *phase == Phase::Open {
                let delay = share(plan.returns, place, open.len(), shards);
                self.outboxes.push(id.slot, &event::server_draining(delay));
            }
            let close = share(plan.closes, place, open.len(), shards) + plan.grace.as_millis() as u64;
            due.push_back((now.since_start_ms + close, *id));
        }
        let end_ms = now.since_start_ms + (plan.closes + plan.grace).as_millis() as u64;
        self.drain = Some(Drain { plan, due, end_ms });
    }

    /// A connection opens while the instance drains: it was let in just before.
    pub(super) fn announce_drain(&mut self, id: ConnectionId, now: Now) {
        let Some(drain) = &mut self.drain else { return };
        let due = match drain.due.iter().find(|(_, due)| *due == id) {
            Some((due, _)) => *due,
            None => {
                drain.due.push_back((drain.end_ms, id));
                drain.end_ms
            }
        };
        let delay = due.saturating_sub(now.since_start_ms + drain.plan.grace.as_millis() as u64);
        self.outboxes.push(id.slot, &event::server_draining(delay));
    }

    pub(super) fn drain_some(&mut self, now: Now) {
        while let Some(drain) = &mut self.drain
            && let Some((due, id)) = drain.due.front().copied()
            && due <= now.since_start_ms
        {
            drain.due.pop_front();
            if self.session_of(id).is_some() {
                self.close(id.slot, CloseCode::ServiceRestart, "the server is restarting: come back", now);
            }
        }
    }

    /// Every client has gone, on all shards: requests that have not come so far are not waited for.
    pub fn finish_drain(&mut self, now: Now) {
        let waiting = self.sessions.iter().flatten().filter(|session| session.phase == Phase::Handshake);
        for id in waiting.map(|session| session.id).collect::<Vec<_>>() {
            self.drop_connection(id, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_evenly_spread_over_all_shards() {
        let span = Duration::from_secs(10);
        let mut times: Vec<_> =
            (0..4).flat_map(|shard| (0..25).map(move |place| share(span, place, 25, (shard, 4)))).collect();
        times.sort_unstable();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 100), "{times:?}");
        assert_eq!(times.last(), Some(&10_000));
        assert_eq!(share(Duration::ZERO, 3, 4, (0, 1)), 0);
    }
}
