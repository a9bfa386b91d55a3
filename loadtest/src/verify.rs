//! Whether every expected delivery arrived once and in order.

use std::collections::HashMap;
use std::ops::Range;

/// What an arrival was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first time, and nothing later of that sender had come before.
    InOrder,
    /// The first time, but after a later message of the same sender.
    OutOfOrder,
    /// Had arrived before.
    Duplicate,
}

/// In place of a sequence: nothing of this sender has been seen yet, and anything may come first.
const UNKNOWN: u32 = u32::MAX;

/// What receivers have seen of each sender in their room: one number per pair as long as
/// nothing goes wrong, and the open gaps where something did.
#[derive(Debug, Default)]
pub struct Verifier {
    /// For each receiver, by the sender's place in the room: the sequence that comes next. Rows grow
    /// up to the last sender heard, so that a huge room with few senders stays cheap.
    expected_next: Vec<Vec<u32>>,
    gaps: HashMap<(u32, u32), Vec<Range<u32>>>,
    /// Deliveries that later ones of the same sender have overtaken, or that are lost.
    pub missing: u64,
    /// Deliveries that arrived, each counted once.
    pub received: u64,
    /// Deliveries that arrived once more.
    pub duplicated: u64,
    /// Deliveries that arrived after a later one of the same sender.
    pub out_of_order: u64,
}

impl Verifier {
    /// For `receivers` receivers, numbered from 0.
    pub fn new(receivers: usize) -> Self {
        Self { expected_next: vec![Vec::new(); receivers], ..Self::default() }
    }

    /// Forgets what `receiver` has seen, for it comes anew to a room of `members`: the first message of each
    /// sender is then the one to count from.
    pub fn begin_anew(&mut self, receiver: usize, members: usize) {
        let row = &mut self.expected_next[receiver];
        row.clear();
        row.resize(members, UNKNOWN);
        if !self.gaps.is_empty() {
            self.gaps.retain(|(of, _), _| *of as usize != receiver);
        }
    }

    /// Notes that `receiver` got message number `sequence` (from 0) of the sender at place
    /// `sender_position` of its room.
    pub fn record(&mut self, receiver: usize, sender_position: usize, sequence: u32) -> Arrival {
        let row = &mut self.expected_next[receiver];
        if row.len() <= sender_position {
            row.resize(sender_position + 1, 0);
        }
        let next = &mut row[sender_position];
        if *next == UNKNOWN {
            *next = sequence;
        }
        if sequence < *next {
            return self.record_late(receiver, sender_position, sequence);
        }
        if sequence > *next {
            let pair = (receiver as u32, sender_position as u32);
            self.missing += u64::from(sequence - *next);
            self.gaps.entry(pair).or_default().push(*next..sequence);
        }
        *next = sequence.saturating_add(1);
        self.received += 1;
        Arrival::InOrder
    }

    /// A sequence below the expected one: it fills a gap, or it was here before.
    fn record_late(&mut self, receiver: usize, sender_position: usize, sequence: u32) -> Arrival {
        let pair = (receiver as u32, sender_position as u32);
        let gaps = self.gaps.entry(pair).or_default();
        let Some(place) = gaps.iter().position(|gap| gap.contains(&sequence)) else {
            self.duplicated += 1;
            return Arrival::Duplicate;
        };
        let gap = gaps.swap_remove(place);
        let left_open = [gap.start..sequence, sequence + 1..gap.end];
        gaps.extend(left_open.into_iter().filter(|open| !open.is_empty()));
        self.missing -= 1;
        self.received += 1;
        self.out_of_order += 1;
        Arrival::OutOfOrder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 4;
    const MESSAGES: u32 = 20;

    /// What each member of one room gets of the other members' messages, sender by sender.
    fn perfect() -> Vec<(usize, usize, u32)> {
        let mut deliveries = Vec::new();
        for sequence in 0..MESSAGES {
            for sender in 0..ROOM {
                let others = (0..ROOM).filter(|receiver| *receiver != sender);
                deliveries.extend(others.map(|receiver| (receiver, sender, sequence)));
            }
        }
        deliveries
    }

    fn verify(deliveries: &[(usize, usize, u32)]) -> (u64, u64, u64) {
        let mut verifier = Verifier::new(ROOM);
        for &(receiver, sender, sequence) in deliveries {
            verifier.record(receiver, sender, sequence);
        }
        let expected = perfect().len() as u64;
        (expected - verifier.received, verifier.duplicated, verifier.out_of_order)
    }

    #[test]
    fn a_perfect_run_has_nothing_lost_duplicated_or_out_of_order() {
        assert_eq!(verify(&perfect()), (0, 0, 0));
    }

    #[test]
    fn each_planted_loss_is_noticed() {
        for place in 0..perfect().len() {
            let mut deliveries = perfect();
            deliveries.remove(place);
            assert_eq!(verify(&deliveries), (1, 0, 0), "lost {place}");
        }
    }

    #[test]
    fn each_planted_duplicate_is_noticed_at_once_or_late() {
        for place in 0..perfect().len() {
            let mut at_once = perfect();
            at_once.insert(place, at_once[place]);
            assert_eq!(verify(&at_once), (0, 1, 0), "duplicated {place}");
            let mut late = perfect();
            late.push(late[place]);
            assert_eq!(verify(&late), (0, 1, 0), "duplicated {place} at the end");
        }
    }

    #[test]
    fn each_planted_swap_is_noticed() {
        let round = ROOM * (ROOM - 1);
        for place in 0..perfect().len() - round {
            let mut deliveries = perfect();
            // The same pair's delivery of the next message.
            deliveries.swap(place, place + round);
            assert_eq!(verify(&deliveries), (0, 0, 1), "swapped {place}");
        }
    }

    #[test]
    fn who_comes_anew_counts_from_the_first_message_of_each_sender() {
        let mut verifier = Verifier::new(1);
        verifier.record(0, 1, 0);
        verifier.begin_anew(0, ROOM);
        for (sequence, arrival) in
            [(7, Arrival::InOrder), (9, Arrival::InOrder), (7, Arrival::Duplicate), (8, Arrival::OutOfOrder)]
        {
            assert_eq!(verifier.record(0, 1, sequence), arrival, "{sequence}");
        }
        assert_eq!(verifier.missing, 0);
        verifier.record(0, 2, 3);
        verifier.record(0, 2, 6);
        assert_eq!(verifier.missing, 2);
    }

    #[test]
    fn a_gap_may_be_filled_in_any_order_and_each_part_once() {
        let mut verifier = Verifier::new(1);
        assert_eq!(verifier.record(0, 3, 9), Arrival::InOrder);
        for sequence in [4, 0, 8, 5, 3] {
            assert_eq!(verifier.record(0, 3, sequence), Arrival::OutOfOrder, "{sequence}");
            assert_eq!(verifier.record(0, 3, sequence), Arrival::Duplicate, "{sequence}");
        }
        assert_eq!((verifier.received, verifier.out_of_order, verifier.duplicated), (6, 5, 5));
    }
}
