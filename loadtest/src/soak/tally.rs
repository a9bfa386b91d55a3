//! What is counted in a run.

use std::collections::BTreeMap;

use serde::Serialize;

/// Counts by name.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Counts of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// Messages sent for the first time.
    pub sent: u64,
    /// Messages sent again, because their outcome was not known.
    pub sent_again: u64,
    /// `message_ack`s.
    pub acked: u64,
    /// Refused messages, by code.
    pub failed: Counts,
    /// Messages whose outcome a sender was not told: `timeout`, or the connection ended first.
    pub unknown: u64,
    /// `room_message`s that came.
    pub deliveries: u64,
    /// Messages that came as missed ones.
    pub recovered_messages: u64,
    /// Connections opened.
    pub connections: u64,
    /// Connections that ended, by close code; `cut` without one.
    pub closes: Counts,
    /// Joins answered.
    pub joins: u64,
    /// Joins that asked for what was missed.
    pub resumes: u64,
    /// Of those, answered with all of it.
    pub recovered: u64,
    /// And those that were not, by reason.
    pub not_recovered: Counts,
    /// Refused joins, by code.
    pub joins_refused: Counts,
    /// `room_resync`s, by reason.
    pub resyncs: Counts,
}

/// One more of that name.
pub(crate) fn count(counts: &mut Counts, name: &str) {
    *counts.entry(name.to_owned()).or_default() += 1;
}
