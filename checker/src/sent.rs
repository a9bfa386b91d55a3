//! What was sent, and what the senders were told about it.

use std::collections::HashMap;

use crate::record::{Member, Message, Room};

/// One message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    /// When it was first sent, in ms.
    pub(crate) first_ms: u64,
    /// When it was last sent, in ms.
    pub(crate) last_ms: u64,
    /// The connection it was sent on first.
    pub(crate) session: u32,
    /// How often it was sent.
    pub(crate) attempts: u32,
    /// How often the sender was told that nothing was done.
    pub(crate) failed: u32,
    /// When the last ack came, and with what offset.
    pub(crate) acked: Option<(u64, Option<u64>)>,
    /// Whether anyone got it.
    pub(crate) seen: bool,
}

impl Sent {
    /// Whether every attempt was refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.acked.is_none() && self.attempts > 0 && self.failed >= self.attempts
    }
}

/// All messages.
#[derive(Default)]
pub(crate) struct SentMessages {
    by_sender: HashMap<(Room, Member), Vec<Sent>>,
}

impl SentMessages {
    pub(crate) fn sent(&mut self, at_ms: u64, room: Room, message: Message, session: u32) {
        let sent = self.get_mut(room, message);
        if sent.attempts == 0 {
            (sent.first_ms, sent.session) = (at_ms, session);
        }
        sent.last_ms = at_ms;
        sent.attempts += 1;
    }

    pub(crate) fn get(&self, room: Room, message: Message) -> Option<&Sent> {
        self.by_sender.get(&(room, message.sender))?.get(message.number as usize)
    }

    /// The message, which may be heard of by its receivers first.
    pub(crate) fn get_mut(&mut self, room: Room, message: Message) -> &mut Sent {
        let sent = self.by_sender.entry((room, message.sender)).or_default();
        let place = message.number as usize;
        if place >= sent.len() {
            sent.resize(place + 1, Sent::default());
        }
        &mut sent[place]
    }

    /// Whether `first` was sent before `second` on the same connection, each of them once: then nothing may turn
    /// their order.
    pub(crate) fn are_ordered(&self, room: Room, first: Message, second: Message) -> bool {
        let (Some(before), Some(after)) = (self.get(room, first), self.get(room, second)) else {
            return false;
        };
        first.sender == second.sender
            && first.number < second.number
            && before.session == after.session
            && before.attempts == 1
            && after.attempts == 1
    }

    /// Every message.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Room, Message, &Sent)> {
        self.by_sender.iter().flat_map(|(&(room, sender), all)| {
            let sent = all.iter().zip(0..).filter(|(sent, _)| sent.attempts > 0 || sent.seen);
            sent.map(move |(sent, number)| (room, Message { sender, number }, sent))
        })
    }

    /// The room's messages that were first sent at `from_ms` or later, sender by sender.
    pub(crate) fn of_room_from(&self, room: Room, from_ms: u64) -> impl Iterator<Item = (Message, &Sent)> {
        let of_room = self.by_sender.iter().filter(move |((sent_to, _), _)| *sent_to == room);
        of_room.flat_map(move |(&(_, sender), all)| {
            let from = all.partition_point(|sent| sent.first_ms < from_ms);
            let sent = all.iter().zip(0..).skip(from);
            sent.map(move |(sent, number)| (Message { sender, number }, sent))
        })
    }
}
