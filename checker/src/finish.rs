//! What can be judged only when the run is over.

use std::collections::HashMap;

use crate::membership::{Membership, Place};
use crate::record::{Final, Member, Message, Room};
use crate::stored::Numbering;
use crate::violation::Violation;
use crate::{CURRENT_WITHIN_MS, Checker};

/// All violations of the run.
pub(crate) fn finish(mut checker: Checker, end_ms: u64, finals: &[Final]) -> Vec<Violation> {
    for history in finals {
        let (room, epoch) = (history.room, history.position.epoch);
        for (offset, message) in &history.messages {
            checker.sent.get_mut(room, *message).seen = true;
            checker.place(end_ms, room, epoch, *offset, *message);
        }
    }
    let mut found = Vec::new();
    own_messages_only(&checker, &mut found);
    refused_or_invented(&checker, &mut found);
    senders_order(&checker, &mut found);
    acked_is_stored(&checker, finals, &mut found);
    nothing_lost(&checker, end_ms, &mut found);
    all_current(&checker, finals, &mut found);
    for violation in found {
        checker.broken(violation);
    }
    checker.violations
}

/// What members without echo skipped must be their own messages.
fn own_messages_only(checker: &Checker, found: &mut Vec<Violation>) {
    for skipped in &checker.skipped {
        let (room, member) = (skipped.room, skipped.member);
        let numbering = checker.stored.numbering(room, skipped.epoch);
        let strange =
            (skipped.from..skipped.to).find(|offset| !is_own(checker, room, member, numbering, *offset));
        if let Some(expected) = strange {
            found.push(Violation::Gap { room, member, expected, got: skipped.to, at_ms: skipped.at_ms });
        }
    }
}

/// Whether the message at the place is the member's own, as someone saw it or as its ack says.
fn is_own(checker: &Checker, room: Room, member: Member, numbering: Option<&Numbering>, offset: u64) -> bool {
    match numbering.and_then(|numbering| numbering.messages.get(&offset)) {
        Some(message) => message.sender == member,
        None => checker.sent.of_room_from(room, 0).any(|(message, sent)| {
            message.sender == member && matches!(sent.acked, Some((_, Some(acked))) if acked == offset)
        }),
    }
}

fn refused_or_invented(checker: &Checker, found: &mut Vec<Violation>) {
    for (room, message, sent) in checker.sent.iter().filter(|(_, _, sent)| sent.seen) {
        if sent.attempts == 0 {
            found.push(Violation::Invented { room, message });
        } else if sent.is_refused() {
            found.push(Violation::Refused { room, message });
        }
    }
}

/// The history has each connection's messages in the order sent.
fn senders_order(checker: &Checker, found: &mut Vec<Violation>) {
    for (room, numbering) in checker.stored.iter() {
        let mut last: HashMap<(Member, u32), Message> = HashMap::new();
        for message in numbering.messages.values() {
            let Some(sent) = checker.sent.get(room, *message).filter(|sent| sent.attempts == 1) else {
                continue;
            };
            if let Some(before) = last.insert((message.sender, sent.session), *message)
                && before.number > message.number
            {
                found.push(Violation::OutOfOrder { room, first: *message, second: before, member: None });
            }
        }
    }
}

fn acked_is_stored(checker: &Checker, finals: &[Final], found: &mut Vec<Violation>) {
    let by_room: HashMap<_, _> = finals.iter().map(|history| (history.room, history)).collect();
    for (room, message, sent) in checker.sent.iter() {
        let (Some((acked_ms, Some(acked))), Some(history)) = (sent.acked, by_room.get(&room)) else {
            continue;
        };
        let places: Vec<_> = checker
            .stored
            .numberings(room)
            .filter_map(|(_, numbering)| numbering.places.get(&message).copied())
            .collect();
        if !places.is_empty() {
            if !places.contains(&acked) {
                found.push(Violation::NotStored { room, message, acked, found: places.first().copied() });
            }
            continue;
        }
        let first = history.messages.first().map_or(history.position.offset + 1, |(offset, _)| *offset);
        let numberings = checker.stored.numberings(room).count();
        let last = checker.stored.numbering(room, history.position.epoch);
        let begun = last.map_or(0, |numbering| numbering.seen_ms);
        // An acknowledgement of an earlier epoch says nothing about what this one has.
        let of_last = numberings <= 1 || acked_ms > begun + CURRENT_WITHIN_MS;
        if of_last && acked >= first {
            found.push(Violation::NotStored { room, message, acked, found: None });
        }
    }
}

/// Members of rooms without history got every acknowledged message, or were told.
fn nothing_lost(checker: &Checker, end_ms: u64, found: &mut Vec<Violation>) {
    let ended = checker.ended.iter().map(|(member, room, membership)| (*member, *room, membership));
    let inside = checker.inside.iter().map(|(&(member, room), membership)| (member, room, membership));
    for (member, room, membership) in ended.chain(inside) {
        let Membership { since_ms, until_ms, calm_ms, echo, place, resynced_ms } = membership;
        let (Place::Plain(heard), Some(calm_ms)) = (place, calm_ms.or(checker.calm_since)) else { continue };
        let until_ms = (*until_ms).min(end_ms);
        for (message, sent) in checker.sent.of_room_from(room, *since_ms) {
            let own = message.sender == member && !echo;
            let told = resynced_ms.is_some_and(|told| told >= sent.first_ms);
            let young = until_ms < sent.last_ms.max(calm_ms).saturating_add(CURRENT_WITHIN_MS);
            if sent.acked.is_some() && !own && !told && !young && !heard.has(message) {
                found.push(Violation::Lost { room, member, message });
            }
        }
    }
}

/// Whoever wants to be in a room is in it, and knows all of its history.
fn all_current(checker: &Checker, finals: &[Final], found: &mut Vec<Violation>) {
    let by_room: HashMap<_, _> = finals.iter().map(|history| (history.room, history)).collect();
    for &(member, room) in &checker.wishes {
        let history = by_room.get(&room);
        let should = history.map_or(0, |history| history.position.offset);
        let Some(membership) = checker.inside.get(&(member, room)) else {
            found.push(Violation::NotCurrent { room, member, at: None, should });
            continue;
        };
        let (epoch, next, history) = match (&membership.place, history) {
            (Place::Numbered { epoch: Some(epoch), next: Some(next) }, Some(history)) => {
                (epoch, next, history)
            }
            // It was never told where the room's history stands.
            (Place::Plain(_), Some(_)) => {
                found.push(Violation::NotCurrent { room, member, at: None, should });
                continue;
            }
            _ => continue,
        };
        let numbering = checker.stored.numbering(room, *epoch);
        let quiet = |offset| !membership.echo && is_own(checker, room, member, numbering, offset);
        let missing = (*next..=should).find(|offset| !quiet(*offset));
        if *epoch != history.position.epoch || missing.is_some() || *next > should + 1 {
            found.push(Violation::NotCurrent { room, member, at: Some(*next - 1), should });
        }
    }
}
