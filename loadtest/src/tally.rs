//! What a worker counted; tallies of several workers add up.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Different names that one list of counts keeps apart; close reasons could otherwise grow without end.
const MAX_NAMES: usize = 64;

/// Longest time that a histogram tells apart from longer ones, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// How often each named thing happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Counts one more of `name`.
    pub fn add(&mut self, name: &str) {
        self.add_many(name, 1);
    }

    fn add_many(&mut self, name: &str, number: u64) {
        let known = self.0.contains_key(name) || self.0.len() < MAX_NAMES;
        *self.0.entry(if known { name } else { "other" }.to_owned()).or_default() += number;
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Name and number of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, number)| (name.as_str(), *number))
    }

    fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(name, number)| self.add_many(name, number));
    }
}

/// Everything counted in a run.
#[derive(Debug)]
pub struct Tally {
    /// Connections that did not get as far as being ready, by reason.
    pub connect_failures: Counts,
    /// Connections that were lost after they had been ready, by reason.
    pub closed: Counts,
    /// Sends that the server refused, by its error code: nobody is expected to get them.
    pub refused: Counts,
    /// Sends with an unknown outcome, by error code: still expected to arrive.
    pub uncertain: Counts,
    /// Other things the server said, by name.
    pub notices: Counts,
    /// Messages handed to the kernel or queued for it.
    pub sent: u64,
    /// Messages that were due but had no open connection to go out on, or one that was stuck.
    pub unsent: u64,
    /// Deliveries that open members of the senders' rooms should get; never below zero in the sum.
    pub expected: i64,
    /// Deliveries that arrived, each counted once.
    pub received: u64,
    /// Deliveries that arrived again.
    pub duplicated: u64,
    /// Deliveries that arrived after a later one of the same sender.
    pub out_of_order: u64,
    /// Deliveries to a connection that should not have got them.
    pub unexpected: u64,
    /// Messages that could not be understood, and sampled deliveries with a wrong field.
    pub malformed: u64,
    /// Acks that arrived.
    pub acks: u64,
    /// Acks that sends still wait for.
    pub acks_awaited: i64,
    /// Deliveries that arrived within the measured time.
    pub measured_deliveries: u64,
    /// Bytes of the text messages that deliveries came in, without WebSocket headers.
    pub delivery_bytes: u64,
    /// From intended send to arrival, of messages due in the measured time; microseconds.
    pub latency: Histogram<u64>,
    /// The same for acks.
    pub ack_latency: Histogram<u64>,
    /// How late the generator itself sent; microseconds.
    pub send_lag: Histogram<u64>,
    /// Pings of the server that were answered.
    pub pings_answered: u64,
    /// The same as `latency`, of deliveries within one server where there are several.
    pub latency_local: Histogram<u64>,
    /// The same as `latency`, of deliveries from one server to another.
    pub latency_cross: Histogram<u64>,
    /// About connections that came and went meanwhile.
    pub comings: Comings,
}

/// What was counted about connections that came and went.
#[derive(Debug)]
pub struct Comings {
    /// Connections that left because they were told to.
    pub left: u64,
    /// Connections that came back and were ready again.
    pub back: u64,
    /// Times that a connection should have left but was not there yet.
    pub skipped: u64,
    /// Refusals that a connection met on its way, by reason; it tried again.
    pub refused: Counts,
    /// From the time a connection was meant to come back until it was ready; microseconds.
    pub latency: Histogram<u64>,
    /// Answers to connections that came back with `since`: `recovered`, or the reason why not.
    pub recovered: Counts,
    /// Messages that came with those answers.
    pub recovered_messages: u64,
    /// Deliveries to members that come and go, each counted once.
    pub received: u64,
    /// Deliveries that such members should have got between two others of the same sender.
    pub lost: u64,
    /// Joins and leaves that members were told of, beside those of the beginning.
    pub presence_received: u64,
    /// Joins and leaves that members who stay should be told of in rooms that tell of each.
    pub presence_expected: u64,
}

impl Comings {
    fn new() -> Self {
        Self {
            left: 0,
            back: 0,
            skipped: 0,
            refused: Counts::default(),
            latency: histogram(),
            recovered: Counts::default(),
            recovered_messages: 0,
            received: 0,
            lost: 0,
            presence_received: 0,
            presence_expected: 0,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.left += other.left;
        self.back += other.back;
        self.skipped += other.skipped;
        self.refused.merge(&other.refused);
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
        self.recovered.merge(&other.recovered);
        self.recovered_messages += other.recovered_messages;
        self.received += other.received;
        self.lost += other.lost;
        self.presence_received += other.presence_received;
        self.presence_expected += other.presence_expected;
    }
}

/// An empty histogram of microseconds, to 3 significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are valid")
}

impl Tally {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self {
            connect_failures: Counts::default(),
            closed: Counts::default(),
            refused: Counts::default(),
            uncertain: Counts::default(),
            notices: Counts::default(),
            sent: 0,
            unsent: 0,
            expected: 0,
            received: 0,
            duplicated: 0,
            out_of_order: 0,
            unexpected: 0,
            malformed: 0,
            acks: 0,
            acks_awaited: 0,
            measured_deliveries: 0,
            delivery_bytes: 0,
            latency: histogram(),
            ack_latency: histogram(),
            send_lag: histogram(),
            pings_answered: 0,
            latency_local: histogram(),
            latency_cross: histogram(),
            comings: Comings::new(),
        }
    }

    /// Adds what another worker counted.
    pub fn merge(&mut self, other: &Self) {
        self.connect_failures.merge(&other.connect_failures);
        self.closed.merge(&other.closed);
        self.refused.merge(&other.refused);
        self.uncertain.merge(&other.uncertain);
        self.notices.merge(&other.notices);
        self.sent += other.sent;
        self.unsent += other.unsent;
        self.expected += other.expected;
        self.received += other.received;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.unexpected += other.unexpected;
        self.malformed += other.malformed;
        self.acks += other.acks;
        self.acks_awaited += other.acks_awaited;
        self.measured_deliveries += other.measured_deliveries;
        self.delivery_bytes += other.delivery_bytes;
        self.pings_answered += other.pings_answered;
        self.comings.merge(&other.comings);
        let histograms = [
            (&mut self.latency, &other.latency),
            (&mut self.ack_latency, &other.ack_latency),
            (&mut self.send_lag, &other.send_lag),
            (&mut self.latency_local, &other.latency_local),
            (&mut self.latency_cross, &other.latency_cross),
        ];
        for (own, theirs) in histograms {
            own.add(theirs).expect("all histograms have the same bounds");
        }
    }

    /// Bytes of a delivery's text message, on average; `None` without deliveries.
    pub fn bytes_per_delivery(&self) -> Option<f64> {
        let deliveries = self.received + self.duplicated;
        (deliveries > 0).then(|| self.delivery_bytes as f64 / deliveries as f64)
    }

    /// Deliveries that never came.
    pub fn lost(&self) -> u64 {
        (self.expected - self.received as i64).max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up() {
        let mut first = Tally::new();
        first.closed.add("close 1012");
        (first.expected, first.received) = (10, 4);
        first.latency.record(1_000).unwrap();
        let mut second = Tally::new();
        second.closed.add("close 1012");
        second.closed.add("reset");
        (second.expected, second.received) = (-3, 1);
        second.latency.record(3_000).unwrap();
        first.merge(&second);
        assert_eq!(first.closed.iter().collect::<Vec<_>>(), [("close 1012", 2), ("reset", 1)]);
        assert_eq!(first.lost(), 2);
        assert_eq!(first.latency.len(), 2);
    }

    #[test]
    fn names_do_not_grow_without_end() {
        let mut counts = Counts::default();
        (0..1_000).for_each(|i| counts.add(&i.to_string()));
        assert_eq!(counts.iter().count(), MAX_NAMES + 1);
        assert_eq!(counts.total(), 1_000);
    }
}
