//! One member's time in one room.

use std::collections::HashMap;

use crate::record::{Member, Message, Position};

/// What has been heard of each sender in a room without history.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    senders: HashMap<Member, HeardSender>,
}

#[derive(Debug)]
struct HeardSender {
    last: u64,
    /// The numbers below `last` that did not come, as ranges `from..to`; from the first that was heard on.
    gaps: Vec<(u64, u64)>,
    first: u64,
}

impl Heard {
    /// Takes a message.
    ///
    /// # Errors
    /// The number of a later message that came before; nothing if this one has come already.
    pub(crate) fn hear(&mut self, message: Message) -> Result<(), Option<u64>> {
        let number = message.number;
        let Some(heard) = self.senders.get_mut(&message.sender) else {
            let heard = HeardSender { last: number, gaps: Vec::new(), first: number };
            self.senders.insert(message.sender, heard);
            return Ok(());
        };
        if number > heard.last {
            if number > heard.last + 1 {
                heard.gaps.push((heard.last + 1, number));
            }
            heard.last = number;
            return Ok(());
        }
        if number < heard.first {
            if heard.first > number + 1 {
                heard.gaps.push((number + 1, heard.first));
            }
            heard.first = number;
            return Err(Some(heard.last));
        }
        let gap = heard.gaps.iter().position(|(from, to)| (*from..*to).contains(&number)).ok_or(None)?;
        let (from, to) = heard.gaps.swap_remove(gap);
        heard.gaps.extend([(from, number), (number + 1, to)].into_iter().filter(|(from, to)| from < to));
        Err(Some(heard.last))
    }

    /// Whether nothing has come.
    pub(crate) fn is_empty(&self) -> bool {
        self.senders.is_empty()
    }

    /// Whether the message has come.
    pub(crate) fn has(&self, message: Message) -> bool {
        self.senders.get(&message.sender).is_some_and(|heard| {
            (heard.first..=heard.last).contains(&message.number)
                && !heard.gaps.iter().any(|(from, to)| (*from..*to).contains(&message.number))
        })
    }
}

/// How far a member has come.
#[derive(Debug)]
pub(crate) enum Place {
    /// In a room without history.
    Plain(Heard),
    /// In a room with history.
    Numbered {
        /// The numbering, if it is known.
        epoch: Option<u64>,
        /// The offset that is to come, if it is known.
        next: Option<u64>,
    },
}

/// One member's time in one room.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) since_ms: u64,
    pub(crate) until_ms: u64,
    /// When the last fault before the end had ended; nothing before the end, and `u64::MAX` within a fault.
    pub(crate) calm_ms: Option<u64>,
    pub(crate) echo: bool,
    pub(crate) place: Place,
    /// When the member was last told that it may have missed something.
    pub(crate) resynced_ms: Option<u64>,
}

impl Membership {
    pub(crate) fn new(at_ms: u64, echo: bool, position: Option<Position>) -> Self {
        let place = match position {
            Some(Position { epoch, offset }) => {
                Place::Numbered { epoch: Some(epoch), next: Some(offset + 1) }
            }
            None => Place::Plain(Heard::default()),
        };
        Self { since_ms: at_ms, until_ms: u64::MAX, calm_ms: None, echo, place, resynced_ms: None }
    }

    pub(crate) fn resynced(&mut self, at_ms: u64, position: Option<Position>) {
        self.resynced_ms = Some(at_ms);
        let numbered = matches!(self.place, Place::Numbered { .. });
        if numbered || position.is_some() {
            let epoch = position.map(|position| position.epoch);
            self.place = Place::Numbered { epoch, next: position.map(|position| position.offset + 1) };
        }
    }
}
