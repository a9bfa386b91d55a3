//! A run in which all promises are kept passes; each planted fault makes it fail, and says how.

use checker::Checker;
use checker::record::{Final, Member, Message, Position, Record, Recovery, Room};
use checker::violation::Violation;

const ROOM: Room = Room(1);
const EPOCH: u64 = 7;
const SENDERS: u32 = 3;
const RECEIVERS: u32 = 4;
const MESSAGES: u64 = 10;
const END_MS: u64 = 60_000;

fn message(sender: u32, number: u64) -> Message {
    Message { sender: Member(sender), number }
}

fn at(offset: u64) -> Position {
    Position { epoch: EPOCH, offset }
}

/// All messages in the order of the room.
fn order() -> Vec<Message> {
    (0..MESSAGES).flat_map(|number| (0..SENDERS).map(move |sender| message(sender, number))).collect()
}

fn joined(member: u32, position: Option<Position>, recovery: Recovery) -> Record {
    Record::Joined { member: Member(member), room: ROOM, echo: true, position, recovery }
}

/// What happened in a run without faults, and what the room's history is at its end.
fn good_run(history: bool) -> (Vec<Record>, Vec<Final>) {
    let mut records = Vec::new();
    for member in 0..SENDERS + RECEIVERS {
        records.push(joined(member, history.then_some(at(0)), Recovery::None));
    }
    let mut stored = Vec::new();
    for (place, message) in order().into_iter().enumerate() {
        let offset = history.then_some(place as u64 + 1);
        records.push(Record::Sent { room: ROOM, message, session: 0 });
        for member in 0..SENDERS + RECEIVERS {
            records.push(Record::Received { member: Member(member), room: ROOM, offset, message });
        }
        records.push(Record::Acked { room: ROOM, message, offset });
        stored.push((place as u64 + 1, message));
    }
    let last = Final { room: ROOM, position: at(stored.len() as u64), messages: stored };
    (records, if history { vec![last] } else { Vec::new() })
}

fn check(records: &[Record], finals: &[Final]) -> Vec<Violation> {
    let mut checker = Checker::new();
    for (step, record) in records.iter().enumerate() {
        checker.record(step as u64, record.clone());
    }
    checker.finish(END_MS, finals)
}

/// Where the last member is in the list of records with the message of this place.
fn receipt(records: &[Record], place: usize) -> usize {
    let wanted = order()[place];
    let receiver = Member(SENDERS + RECEIVERS - 1);
    let is_it = |record: &Record| matches!(record, Record::Received { member, message, .. } if *member == receiver && *message == wanted);
    records.iter().position(is_it).expect("everyone gets everything")
}

fn planted(history: bool, plant: impl Fn(&mut Vec<Record>)) -> Vec<Violation> {
    let (mut records, finals) = good_run(history);
    plant(&mut records);
    check(&records, &finals)
}

#[test]
fn a_good_run_passes() {
    for history in [true, false] {
        assert_eq!(planted(history, |_| ()), []);
    }
}

#[test]
fn a_drop_is_found() {
    let drop = |place| move |records: &mut Vec<Record>| drop_receipt(records, place);
    let numbered = planted(true, drop(4));
    assert!(matches!(numbered[..], [Violation::Gap { expected: 5, got: 6, .. }]), "{numbered:?}");
    let plain = planted(false, drop(4));
    assert!(matches!(plain[..], [Violation::Lost { .. }]), "{plain:?}");
}

#[test]
fn a_drop_of_the_last_message_is_found() {
    let last = order().len() - 1;
    let numbered = planted(true, |records| drop_receipt(records, last));
    assert!(matches!(numbered[..], [Violation::NotCurrent { at: Some(29), should: 30, .. }]), "{numbered:?}");
    let plain = planted(false, |records| drop_receipt(records, last));
    assert!(matches!(plain[..], [Violation::Lost { .. }]), "{plain:?}");
}

fn drop_receipt(records: &mut Vec<Record>, place: usize) {
    let receipt = receipt(records, place);
    records.remove(receipt);
}

#[test]
fn a_duplicate_is_found() {
    for history in [true, false] {
        let found = planted(history, |records| {
            let receipt = receipt(records, 4);
            records.insert(receipt, records[receipt].clone());
        });
        assert!(matches!(found[..], [Violation::Duplicate { member: Some(_), .. }]), "{found:?}");
    }
}

#[test]
fn a_swap_is_found() {
    for history in [true, false] {
        let found = planted(history, |records| {
            // Two messages of one sender.
            let (first, second) = (receipt(records, 4), receipt(records, 4 + SENDERS as usize));
            records.swap(first, second);
        });
        let wanted = |violation: &Violation| match violation {
            Violation::Gap { .. } => history,
            Violation::OutOfOrder { member: Some(_), .. } => !history,
            _ => false,
        };
        assert!(found.iter().any(wanted), "{found:?}");
    }
}

#[test]
fn a_fork_is_found() {
    let found = planted(true, |records| {
        let (first, second) = (receipt(records, 4), receipt(records, 5));
        if let Record::Received { message, .. } = &mut records[first] {
            *message = order()[5];
        }
        if let Record::Received { message, .. } = &mut records[second] {
            *message = order()[4];
        }
    });
    assert!(matches!(found[0], Violation::Fork { offset: 5, .. }), "{found:?}");
}

#[test]
fn an_acknowledged_message_that_is_not_stored_is_found() {
    let (mut records, finals) = good_run(true);
    let lost = message(0, MESSAGES);
    records.push(Record::Sent { room: ROOM, message: lost, session: 0 });
    records.push(Record::Acked { room: ROOM, message: lost, offset: Some(31) });
    let found = check(&records, &finals);
    assert!(matches!(found[..], [Violation::NotStored { acked: 31, found: None, .. }]), "{found:?}");
}

#[test]
fn what_was_refused_reaches_nobody() {
    for history in [true, false] {
        let found = planted(history, |records| {
            for record in records {
                if let Record::Acked { room, message, .. } = *record
                    && message == order()[4]
                {
                    *record = Record::Failed { room, message };
                }
            }
        });
        assert!(matches!(found[..], [Violation::Refused { .. }]), "{found:?}");
    }
}

#[test]
fn nothing_comes_after_the_end_of_a_membership() {
    let last = Member(SENDERS + RECEIVERS - 1);
    for end in [
        Record::Left { member: last, room: ROOM },
        Record::Closed { member: last },
        Record::Gone { member: last },
    ] {
        let found = planted(true, |records| {
            let receipt = receipt(records, 29);
            records.insert(receipt, end.clone());
        });
        assert!(matches!(found[0], Violation::Uninvited { .. }), "{found:?}");
    }
}

#[test]
fn a_recovery_is_exactly_what_was_missed() {
    let last = SENDERS + RECEIVERS - 1;
    let since = at(20);
    let missed: Vec<_> = (21..).zip(order().into_iter().skip(20)).collect();
    let come_back = |messages: Vec<(u64, Message)>| {
        let (mut records, finals) = good_run(true);
        let (from, member) = (receipt(&records, 20), Member(last));
        records[from] = Record::Closed { member };
        let mut place = 0;
        records.retain(|record| {
            place += 1;
            place <= from + 1 || !matches!(record, Record::Received { member: who, .. } if *who == member)
        });
        records.push(joined(last, Some(at(30)), Recovery::Full { since, messages }));
        check(&records, &finals)
    };
    assert_eq!(come_back(missed.clone()), []);
    let short = come_back(missed[..9].to_vec());
    assert!(matches!(short[..], [Violation::WrongRecovery { .. }]), "{short:?}");
    let mut swapped = missed;
    swapped.swap(3, 4);
    let found = come_back(swapped);
    assert!(matches!(found[..], [Violation::WrongRecovery { .. }]), "{found:?}");
}

#[test]
fn what_is_told_is_no_loss() {
    for history in [true, false] {
        let found = planted(history, |records| {
            let receipt = receipt(records, 4);
            let (member, position) = (Member(SENDERS + RECEIVERS - 1), history.then_some(at(5)));
            records[receipt] = Record::Resynced { member, room: ROOM, position };
        });
        assert_eq!(found, []);
    }
}

#[test]
fn without_faults_messages_are_in_time_and_with_faults_they_may_be_late() {
    for (calm, violations) in [(true, 1), (false, 0)] {
        let mut checker = Checker::new();
        if !calm {
            checker.record(0, Record::FaultsBegin);
        }
        checker.record(0, joined(1, Some(at(0)), Recovery::None));
        let message = message(0, 0);
        checker.record(100, Record::Sent { room: ROOM, message, session: 0 });
        let received = Record::Received { member: Member(1), room: ROOM, offset: Some(1), message };
        checker.record(10_200, received);
        assert_eq!(checker.violations().len(), violations, "{:?}", checker.violations());
    }
}

#[test]
fn who_does_not_come_back_is_not_current() {
    let found = planted(true, |records| records.push(Record::Closed { member: Member(0) }));
    assert!(matches!(found[..], [Violation::NotCurrent { at: None, should: 30, .. }]), "{found:?}");
    assert_eq!(planted(true, |records| records.push(Record::Gone { member: Member(0) })), []);
}
