//! What outboxes hold, plan and give back.

use proptest::prelude::*;

use super::*;

fn outboxes(limit: usize) -> Outboxes {
    let mut outboxes = Outboxes::new(limit);
    outboxes.open(0);
    outboxes.open(1);
    outboxes
}

fn flushed(outboxes: &mut Outboxes) -> Vec<(u32, Vec<u8>, Box<SendBatch>)> {
    let mut sends = Vec::new();
    outboxes.flush(0, usize::MAX, |slot, mut batch| {
        let segments: Vec<_> = batch.drain().collect();
        let bytes = segments.iter().flat_map(|segment| segment.as_slice().to_vec()).collect();
        segments.into_iter().for_each(|segment| batch.push(segment));
        sends.push((slot, bytes, batch));
        Ok(())
    });
    sends
}

#[test]
fn a_connection_gets_one_batch_per_flush_in_order() {
    let mut outboxes = outboxes(10_000);
    let large = Bytes::from(vec![b'L'; COPY_UP_TO + 1]);
    for frame in [&Bytes::from_static(b"a"), &Bytes::from_static(b"b"), &large, &Bytes::from_static(b"c")] {
        outboxes.push(0, frame);
    }
    outboxes.push(1, &Bytes::from_static(b"z"));
    let sends = flushed(&mut outboxes);
    let expected = [b"ab".as_slice(), &large, b"c"].concat();
    assert_eq!(
        sends.iter().map(|(slot, bytes, _)| (*slot, bytes)).collect::<Vec<_>>(),
        [(0, &expected), (1, &b"z".to_vec())]
    );
    assert!(!outboxes.is_dirty(0));
}

#[test]
fn a_replay_may_be_beyond_the_limit_until_it_is_taken() {
    let mut outboxes = outboxes(200_000);
    let bytes = |count: usize| Bytes::from(vec![b'x'; count]);
    outboxes.push_replay(0, &bytes(350_000));
    outboxes.push(0, &bytes(100_000));
    assert!(outboxes.take_overflowed().is_empty(), "half an outbox of what is new fits behind it");
    for (slot, _, batch) in flushed(&mut outboxes) {
        outboxes.sent(slot, batch);
    }
    outboxes.push(0, &bytes(200_001));
    assert_eq!(outboxes.take_overflowed(), [0], "afterwards the limit holds as before");
}

#[test]
fn a_flush_serves_newcomers_first_and_keeps_half_for_those_who_wait() {
    let mut outboxes = Outboxes::new(100);
    (0..12).for_each(|slot| outboxes.open(slot));
    let mark = |outboxes: &mut Outboxes, slots: std::ops::Range<u32>| {
        slots.for_each(|slot| outboxes.push(slot, &Bytes::from_static(b"x")));
    };
    let flush = |outboxes: &mut Outboxes| {
        let mut slots = Vec::new();
        outboxes.flush(0, 4, |slot, batch| {
            slots.push(slot);
            drop(batch);
            Ok(())
        });
        slots
    };
    mark(&mut outboxes, 0..8);
    assert_eq!(flush(&mut outboxes), [0, 1, 2, 3]);
    mark(&mut outboxes, 8..9);
    assert_eq!(flush(&mut outboxes), [8, 4, 5, 6]);
    mark(&mut outboxes, 9..12);
    assert_eq!(flush(&mut outboxes), [9, 10, 11, 7]);
    assert!(!outboxes.is_dirty(0));
}

#[test]
fn newcomers_without_end_do_not_starve_those_who_wait() {
    let mut outboxes = Outboxes::new(100);
    (0..80).for_each(|slot| outboxes.open(slot));
    let mut served = Vec::new();
    for round in 0..10 {
        // Twice what a flush takes, each time.
        (round * 8..round * 8 + 8).for_each(|slot| outboxes.push(slot, &Bytes::from_static(b"x")));
        outboxes.flush(0, 4, |slot, _| {
            served.push(slot);
            Ok(())
        });
    }
    let late: Vec<u32> = served.iter().copied().filter(|slot| slot % 8 >= 4).collect();
    assert_eq!(served.len(), 40);
    assert_eq!(late[..4], [4, 5, 6, 7], "the oldest first");
}

#[test]
fn a_room_too_large_for_one_flush_waits_behind_others() {
    let mut outboxes = Outboxes::new(100);
    (0..20).for_each(|slot| outboxes.open(slot));
    (0..16).for_each(|slot| outboxes.push_in_bulk(slot, &Bytes::from_static(b"x")));
    (16..18).for_each(|slot| outboxes.push(slot, &Bytes::from_static(b"x")));
    assert!(outboxes.is_dirty(0));
    let mut slots = Vec::new();
    outboxes.flush(0, 4, |slot, _| {
        slots.push(slot);
        Ok(())
    });
    assert_eq!(slots, [16, 17, 0, 1]);
}

#[test]
fn what_is_in_no_hurry_gathers_or_goes_with_what_is() {
    let mut outboxes = outboxes(100);
    let sends = |outboxes: &mut Outboxes, now| {
        let mut sends = Vec::new();
        let dirty = outboxes.is_dirty(now);
        outboxes.flush(now, usize::MAX, |slot, batch| {
            sends.push((slot, batch.bytes()));
            Err(batch)
        });
        assert_eq!(dirty, !sends.is_empty());
        sends
    };
    let push = |outboxes: &mut Outboxes, slot| outboxes.push_patiently(slot, &Bytes::from_static(b"x"));
    push(&mut outboxes, 0);
    assert_eq!(sends(&mut outboxes, 100), [(0, 1)], "none has gone out for long");
    push(&mut outboxes, 0);
    push(&mut outboxes, 0);
    push(&mut outboxes, 1);
    assert_eq!(outboxes.patience(101), Some(PATIENCE_MS - 1));
    assert_eq!(sends(&mut outboxes, 101), []);
    outboxes.push(1, &Bytes::from_static(b"now"));
    assert_eq!(sends(&mut outboxes, 102), [(1, 4)], "in the order of the pushes, in one send");
    assert_eq!(sends(&mut outboxes, 100 + PATIENCE_MS), [(0, 2)]);
    assert_eq!(outboxes.patience(200), None);
}

#[test]
fn what_comes_while_a_batch_is_under_way_follows_it() {
    let mut outboxes = outboxes(100);
    outboxes.push(0, &Bytes::from_static(b"first"));
    let (_, _, batch) = flushed(&mut outboxes).remove(0);
    outboxes.push(0, &Bytes::from_static(b"second"));
    assert!(flushed(&mut outboxes).is_empty());
    outboxes.sent(0, batch);
    assert_eq!(flushed(&mut outboxes)[0].1, b"second");
}

#[test]
fn overflow_counts_what_waits_and_what_is_under_way_and_is_told_once() {
    let mut outboxes = outboxes(10);
    outboxes.push(0, &Bytes::from_static(b"123456"));
    let (_, _, batch) = flushed(&mut outboxes).remove(0);
    outboxes.push(0, &Bytes::from_static(b"1234"));
    assert!(outboxes.take_overflowed().is_empty());
    outboxes.push(0, &Bytes::from_static(b"5"));
    outboxes.push(0, &Bytes::from_static(b"6"));
    assert_eq!(outboxes.take_overflowed(), [0]);
    outboxes.sent(0, batch);
    assert_eq!(flushed(&mut outboxes)[0].1, b"1234", "what was accepted is still sent");
}

#[test]
fn the_last_frame_goes_out_over_the_bound_and_nothing_after_it() {
    let mut outboxes = outboxes(4);
    outboxes.push(0, &Bytes::from_static(b"1234"));
    outboxes.finish(0, &Bytes::from_static(b"bye"), true);
    outboxes.push(0, &Bytes::from_static(b"x"));
    assert_eq!(flushed(&mut outboxes)[0].1, b"bye");
}

#[test]
fn a_reused_slot_starts_empty() {
    let mut outboxes = outboxes(10);
    outboxes.push(0, &Bytes::from_static(b"old"));
    outboxes.open(0);
    assert!(flushed(&mut outboxes).is_empty());
    assert!(outboxes.is_empty(0));
}

/// What the next flush would send: for each slot whether each segment refers to a log, and its bytes.
fn planned(outboxes: &mut Outboxes) -> Vec<Vec<(bool, usize)>> {
    let mut planned = Vec::new();
    outboxes.flush(0, usize::MAX, |_, batch| {
        let segments = batch.segments().iter();
        planned.push(segments.map(|s| (matches!(s, Segment::Logged(_)), s.len())).collect());
        Err(batch)
    });
    planned
}

/// A room says 300 bytes to these slots.
fn say(outboxes: &mut Outboxes, room: u32, slots: &[u32]) {
    let stretch = outboxes.log(room, &[b'x'; 300]).expect("it is small");
    slots.iter().for_each(|slot| outboxes.push(*slot, Outgoing::Logged(&stretch)));
}

#[cfg(not(feature = "encode-for-each"))]
#[test]
fn those_who_get_the_same_frames_of_a_room_have_no_copies() {
    let mut outboxes = outboxes(10_000);
    (0..4).for_each(|_| say(&mut outboxes, 7, &[0, 1]));
    say(&mut outboxes, 7, &[0]);
    (0..5).for_each(|_| say(&mut outboxes, 7, &[0, 1]));
    assert_eq!(planned(&mut outboxes), [vec![(true, 3_000)], vec![(true, 1_200), (true, 1_500)]]);
}

#[cfg(not(feature = "encode-for-each"))]
#[test]
fn what_interrupts_a_row_is_copied_and_the_row_goes_on_where_it_is_long_enough() {
    let mut outboxes = outboxes(10_000);
    // Of two rooms by turns, two frames at a time.
    (0..12).for_each(|number| say(&mut outboxes, number / 2 % 2, &[0]));
    // A row behind a few frames that were too short to be referred to.
    (0..2).for_each(|room| say(&mut outboxes, room, &[1]));
    (0..10).for_each(|_| say(&mut outboxes, 1, &[1]));
    let expected = [vec![(false, 3_300), (true, 300)], vec![(false, 1_200), (true, 2_400)]];
    assert_eq!(planned(&mut outboxes), expected);
}

#[cfg(not(feature = "encode-for-each"))]
#[test]
fn a_batch_keeps_few_logs_however_often_its_rows_are_interrupted() {
    let mut outboxes = outboxes(usize::MAX);
    for room in 0..40 {
        (0..10).for_each(|_| say(&mut outboxes, room, &[0]));
    }
    let segments = planned(&mut outboxes).remove(0);
    assert_eq!(segments.iter().map(|(_, bytes)| bytes).sum::<usize>(), 40 * 10 * 300);
    assert!(segments.iter().filter(|(is_logged, _)| *is_logged).count() <= 8, "{segments:?}");
}

/// Something that happens to outboxes.
#[derive(Clone, Debug)]
enum Step {
    /// A room says so many bytes to those of its members whose bit is set.
    Say { room: u32, bytes: usize, to: u8 },
    /// One connection gets so many bytes by itself.
    Tell { slot: u32, bytes: usize },
    /// So many connections are sent to.
    Flush { most: usize },
    /// The ring has finished with so many batches.
    Finish { batches: usize },
    /// What waits for a connection is dropped.
    Discard { slot: u32 },
    /// A second is over.
    Trim,
}

const CONNECTIONS: u32 = 8;

/// The one whose batches are sealed.
const SEALED: u32 = 6;

/// The one that the ring does not take batches for.
const REFUSED: u32 = 7;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![1..400_usize, 900..1_200_usize, Just(COPY_UP_TO), 4_000..6_000_usize];
    let step = prop_oneof![
        12 => (0..3_u32, size.clone(), any::<u8>()).prop_map(|(room, bytes, to)| Step::Say { room, bytes, to }),
        2 => (0..CONNECTIONS, size).prop_map(|(slot, bytes)| Step::Tell { slot, bytes }),
        2 => (1..10_usize).prop_map(|most| Step::Flush { most }),
        2 => (1..10_usize).prop_map(|batches| Step::Finish { batches }),
        1 => (0..CONNECTIONS).prop_map(|slot| Step::Discard { slot }),
        1 => Just(Step::Trim),
    ];
    proptest::collection::vec(step, 1..200)
}

fn bytes_of(batch: &SendBatch) -> Vec<u8> {
    batch.segments().iter().flat_map(|segment| segment.as_slice().iter().copied()).collect()
}

proptest! {
    #[test]
    fn every_connection_gets_what_was_put_in_that_order(steps in steps()) {
        let mut outboxes = Outboxes::new(usize::MAX);
        (0..CONNECTIONS).for_each(|slot| outboxes.open(slot));
        let mut waiting = vec![Vec::new(); CONNECTIONS as usize];
        let mut in_flight: VecDeque<(u32, Box<SendBatch>, Vec<u8>)> = VecDeque::new();
        let end = std::iter::repeat_n([Step::Flush { most: 100 }, Step::Finish { batches: 100 }], 2).flatten();
        for (number, step) in steps.into_iter().chain(end).enumerate() {
            match step {
                Step::Say { room, bytes, to } => {
                    let frame = Bytes::from(vec![number as u8; bytes]);
                    let stretch = outboxes.log(room, &frame);
                    let outgoing = stretch.as_ref().map_or(Outgoing::Alone(&frame), Outgoing::Logged);
                    for slot in (0..CONNECTIONS).filter(|slot| to >> slot & 1 == 1) {
                        outboxes.push(slot, outgoing);
                        waiting[slot as usize].extend_from_slice(&frame);
                    }
                }
                Step::Tell { slot, bytes } => {
                    let frame = Bytes::from(vec![number as u8; bytes]);
                    outboxes.push(slot, &frame);
                    waiting[slot as usize].extend_from_slice(&frame);
                }
                Step::Flush { most } => {
                    let seal = |slot, batch: &SendBatch, chunk: &mut dyn FnMut() -> Vec<u8>| {
                        let mut sealed = chunk();
                        sealed.extend(bytes_of(batch).iter().map(|byte| !byte));
                        (slot == SEALED).then_some(sealed)
                    };
                    outboxes.flush_sealed(0, most, seal, |slot, batch| {
                        let mut expected = std::mem::take(&mut waiting[slot as usize]);
                        if slot == REFUSED {
                            return Err(batch);
                        }
                        if slot == SEALED {
                            expected.iter_mut().for_each(|byte| *byte = !*byte);
                        }
                        in_flight.push_back((slot, batch, expected));
                        Ok(())
                    });
                }
                Step::Finish { batches } => {
                    for (slot, batch, expected) in in_flight.drain(..batches.min(in_flight.len())) {
                        // Only now: it has to stay as it was while it was under way.
                        prop_assert_eq!(bytes_of(&batch), expected);
                        outboxes.sent(slot, batch);
                    }
                }
                Step::Discard { slot } => {
                    outboxes.discard(slot);
                    waiting[slot as usize].clear();
                }
                Step::Trim => outboxes.trim(),
            }
        }
        prop_assert!(waiting.iter().all(Vec::is_empty));
        prop_assert!((0..CONNECTIONS).all(|slot| outboxes.is_empty(slot)));
        outboxes.trim();
        prop_assert!(outboxes.logs.is_empty());
    }
}
