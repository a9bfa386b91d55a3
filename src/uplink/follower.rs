//! One room with history as this instance follows it: what members have been given, and what comes next.
//!
//! Reads go over the connection that the room's messages come over. So when a read is answered, every message up to
//! the answer's position has either been heard or was lost, and every later one comes behind.

use bytes::Bytes;

use super::batch::Origin;
use super::delivery::reason;
use super::history::{Extent, Kept};
use crate::identity::ConnectionId;
use crate::room::history::{Bounds, History, NotRecovered, Position};
use crate::shard::envelope::{Joined, Member};

/// A join that waits for a read.
#[derive(Debug)]
pub struct Waiting {
    /// The answer, but for the history.
    pub joined: Box<Joined>,
    /// Where the client stopped reading.
    pub since: Option<Position>,
}

/// What a stored message means for the room's members.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// They get it.
    Next(Bytes),
    /// They have it, or it comes with the read that is under way.
    Nothing,
    /// Messages before it were lost: read these.
    Gap(Extent),
    /// The room's numbering has ended: they resync at the position, and then get it.
    NewEpoch(Position, Bytes),
}

/// What a read shows that members have missed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Why they cannot be given it, and where the room goes on; then there are no messages.
    pub resync: Option<(&'static str, Position)>,
    /// What they get now: who sent it, and the frame.
    pub messages: Vec<(Origin, Option<ConnectionId>, Bytes)>,
}

/// The state of one followed room.
#[derive(Debug, Default)]
pub struct Follower {
    /// Nothing as long as the room's position is not known.
    history: Option<History>,
    /// Whether `history` has all that Redis keeps.
    whole: bool,
    /// Messages were lost: what is heard is left to the read that is under way.
    filling: bool,
    reading: Option<Extent>,
    waiting: Vec<Waiting>,
}

impl Follower {
    /// Where the room stands, as far as members have been given it.
    pub fn position(&self) -> Option<Position> {
        self.history.as_ref().map(History::position)
    }

    /// Bytes of the frames kept.
    pub fn bytes(&self) -> usize {
        self.history.as_ref().map_or(0, History::bytes)
    }

    /// Whether a read is under way.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// A stored message was heard.
    pub fn stored(
        &mut self,
        position: Position,
        frame: impl FnOnce() -> Bytes,
        now_ms: u64,
        bounds: &Bounds,
    ) -> Heard {
        if self.filling || (self.history.is_none() && self.is_reading()) {
            return Heard::Nothing;
        }
        let before = Position { offset: position.offset - 1, ..position };
        // Without a position known, reading has failed: the room is followed from here on.
        let history = self.history.get_or_insert_with(|| History::after(before));
        let last = history.position();
        if last.epoch != position.epoch {
            let frame = frame();
            *history = History::after(before);
            history.append(frame.clone(), now_ms, bounds);
            self.whole = before.offset == 0;
            Heard::NewEpoch(before, frame)
        } else if position.offset <= last.offset {
            Heard::Nothing
        } else if position.offset == last.offset + 1 {
            let frame = frame();
            history.append(frame.clone(), now_ms, bounds);
            Heard::Next(frame)
        } else {
            self.filling = true;
            // A read under way is answered behind this message, so it covers it.
            self.begin(Extent::After(last.offset)).map_or(Heard::Nothing, Heard::Gap)
        }
    }

    /// Notes that `extent` is to be read; nothing if a read is under way already.
    pub fn begin(&mut self, extent: Extent) -> Option<Extent> {
        if self.is_reading() {
            return None;
        }
        self.reading = Some(extent);
        self.reading
    }

    /// Begins to read what was missed since the room was last followed.
    pub fn catch_up(&mut self) -> Option<Extent> {
        let extent = self.position().map_or(Extent::Position, |last| Extent::After(last.offset));
        self.begin(extent)
    }

    /// What must be read before a join with `since` can be answered.
    pub fn wants(&self, since: Option<Position>, reply_bytes: usize) -> Option<Extent> {
        let Some(history) = &self.history else {
            return Some(if since.is_some() { Extent::Whole } else { Extent::Position });
        };
        let (since, last) = (since?, history.position());
        if since.epoch != last.epoch {
            return None;
        }
        let older = since.offset < history.first() - 1;
        // Whoever holds more than a reply may have need not read what lies before it.
        let unknown = older && !self.whole && history.bytes() <= reply_bytes;
        (unknown || since.offset > last.offset).then_some(Extent::Whole)
    }

    /// Whether a join must wait now, and what is to be read for it. Joins share reads.
    pub fn hold(&mut self, since: Option<Position>, reply_bytes: usize) -> (bool, Option<Extent>) {
        match self.wants(since, reply_bytes) {
            Some(extent) => (true, self.begin(extent)),
            None => (self.filling, None),
        }
    }

    /// Keeps a join until a read is answered.
    pub fn wait(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// Someone came or left, behind the answers of the joins that wait: these are brought up to date.
    pub fn presence(&mut self, joined: bool, member_count: u32, member: &Member) {
        for Waiting { joined: answer, .. } in &mut self.waiting {
            answer.member_count = member_count;
            let Some(members) = &mut answer.members else { continue };
            let place = members.iter().position(|present| present.user == member.user);
            match (joined, place) {
                (true, None) => members.push(member.clone()),
                (false, Some(place)) => {
                    members.remove(place);
                }
                _ => {}
            }
        }
    }

    /// The read of `extent` was answered: what members get, or are told, in front of everything later.
    pub fn answered(&mut self, kept: Kept, extent: Extent, now_ms: u64, bounds: &Bounds) -> Missed {
        (self.reading, self.filling) = (None, false);
        let before = self.position();
        let (position, have) = (kept.position, kept.messages.len() as u64);
        let reason = match before {
            Some(before) if before.epoch != position.epoch || before.offset > position.offset => {
                Some(reason::NEW_EPOCH)
            }
            Some(before) if position.offset - before.offset > have => Some(reason::GAP),
            _ => None,
        };
        let missed = match before {
            Some(before) if reason.is_none() => (position.offset - before.offset) as usize,
            _ => 0,
        };
        let skip = kept.messages.len() - missed;
        let messages = kept.messages[skip..].iter().map(|m| (m.origin, m.sender, m.frame.clone())).collect();
        let continues = before.is_some() && reason.is_none() && extent != Extent::Whole;
        let skip = if continues { skip } else { 0 };
        if !continues {
            self.history = Some(History::after(Position { offset: position.offset - have, ..position }));
            self.whole = (extent == Extent::Whole && !kept.cut) || position.offset == have;
        }
        if let Some(history) = &mut self.history {
            for message in kept.messages.into_iter().skip(skip) {
                history.append(message.frame, now_ms.saturating_sub(message.age_ms), bounds);
            }
            history.trim(now_ms, bounds);
        }
        Missed { resync: reason.map(|reason| (reason, position)), messages }
    }

    /// The read failed: the room goes on from what is heard next.
    pub fn failed(&mut self) {
        (self.reading, self.filling) = (None, false);
    }

    /// The joins that can be answered after a read of `extent`, and what is to be read for the others.
    pub fn released(&mut self, extent: Extent, reply_bytes: usize) -> (Vec<Waiting>, Option<Extent>) {
        let all = std::mem::take(&mut self.waiting);
        if extent == Extent::Whole {
            return (all, None);
        }
        let (kept, ready): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|waiting| self.wants(waiting.since, reply_bytes).is_some());
        self.waiting = kept;
        let extent = if self.waiting.is_empty() { None } else { self.begin(Extent::Whole) };
        (ready, extent)
    }

    /// All joins that wait, to be answered without history.
    pub fn give_up(&mut self) -> Vec<Waiting> {
        std::mem::take(&mut self.waiting)
    }

    /// The connection is gone, with reads and joins; what is kept stays.
    pub fn link_lost(&mut self) {
        self.failed();
        self.waiting.clear();
    }

    /// What a member gets that stopped reading at `since`.
    ///
    /// # Errors
    /// Why it cannot have all that it missed.
    pub fn recover(
        &mut self,
        since: Position,
        reply_bytes: usize,
        now_ms: u64,
        bounds: &Bounds,
    ) -> Result<Vec<Bytes>, NotRecovered> {
        let Some(history) = &mut self.history else { return Err(NotRecovered::Unavailable) };
        history.trim(now_ms, bounds);
        match history.recover(since, reply_bytes) {
            Ok(frames) => Ok(frames.cloned().collect()),
            // Redis keeps more, but not less than a reply can hold.
            Err(NotRecovered::Expired) if !self.whole => Err(NotRecovered::TooMuch),
            Err(reason) => Err(reason),
        }
    }

    /// A page out of memory; nothing if it may be more than what is kept here.
    pub fn page(
        &mut self,
        since: Option<Position>,
        (limit, reverse): (usize, bool),
        now_ms: u64,
        bounds: &Bounds,
    ) -> Option<Vec<Bytes>> {
        let history = self.history.as_mut().filter(|_| !self.filling)?;
        history.trim(now_ms, bounds);
        if since.is_some_and(|since| since.epoch != history.position().epoch) {
            return Some(Vec::new());
        }
        let from = since.map(|since| since.offset);
        let covered = self.whole || (!reverse && from.is_some_and(|from| from >= history.first() - 1));
        let frames = history.page(from, limit, reverse);
        (covered || (reverse && frames.len() == limit)).then_some(frames)
    }

    /// Forgets what is too old.
    pub fn trim(&mut self, now_ms: u64, bounds: &Bounds) {
        if let Some(history) = &mut self.history {
            history.trim(now_ms, bounds);
        }
    }

    /// Forgets the older half of what is kept: Redis still has it.
    pub fn halve(&mut self, now_ms: u64, bounds: &Bounds) {
        if let Some(history) = &mut self.history
            && !history.is_empty()
        {
            history.trim(now_ms, &Bounds { bytes: history.bytes() / 2, ..*bounds });
            self.whole = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::room::history::Epoch;
    use crate::uplink::history::KeptMessage;

    const BOUNDS: Bounds = Bounds { size: 6, bytes: 1_000, ttl_ms: 1_000 };
    const NOW: u64 = 1 << 40;

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch: Epoch(epoch), offset }
    }

    fn frame(offset: u64) -> Bytes {
        Bytes::from(offset.to_string())
    }

    /// What Redis answers when the room stands at `position` and the last `size` messages are kept.
    fn kept(position: Position, extent: Extent, size: u64) -> Kept {
        let after = match extent {
            Extent::Position => position.offset,
            Extent::After(offset) => offset,
            Extent::Whole => 0,
        };
        let first = after.max(position.offset.saturating_sub(size)) + 1;
        let message =
            |offset| KeptMessage { age_ms: 1, origin: Origin(1), sender: None, frame: frame(offset) };
        Kept { position, cut: false, messages: (first..=position.offset).map(message).collect() }
    }

    fn following(position: Position) -> Follower {
        let mut follower = Follower::default();
        assert_eq!(follower.begin(Extent::Position), Some(Extent::Position));
        let missed = follower.answered(kept(position, Extent::Position, 0), Extent::Position, NOW, &BOUNDS);
        assert_eq!(missed, Missed::default());
        follower
    }

    fn hear(follower: &mut Follower, position: Position) -> Heard {
        follower.stored(position, || frame(position.offset), NOW, &BOUNDS)
    }

    fn offsets(missed: &Missed) -> Vec<Bytes> {
        missed.messages.iter().map(|(_, _, frame)| frame.clone()).collect()
    }

    #[test]
    fn a_gap_is_read_once_and_given_in_order() {
        let mut follower = following(at(1, 2));
        assert_eq!(hear(&mut follower, at(1, 3)), Heard::Next(frame(3)));
        assert_eq!(hear(&mut follower, at(1, 3)), Heard::Nothing);
        assert_eq!(hear(&mut follower, at(1, 6)), Heard::Gap(Extent::After(3)));
        assert_eq!(hear(&mut follower, at(1, 7)), Heard::Nothing);
        let answer = kept(at(1, 7), Extent::After(3), 6);
        let missed = follower.answered(answer, Extent::After(3), NOW, &BOUNDS);
        assert_eq!((missed.resync, offsets(&missed)), (None, (4..=7).map(frame).collect()));
        assert_eq!(hear(&mut follower, at(1, 8)), Heard::Next(frame(8)));
    }

    #[test]
    fn what_is_not_kept_any_more_is_announced() {
        let mut follower = following(at(1, 0));
        assert_eq!(hear(&mut follower, at(1, 9)), Heard::Gap(Extent::After(0)));
        let missed = follower.answered(kept(at(1, 9), Extent::After(0), 6), Extent::After(0), NOW, &BOUNDS);
        assert_eq!((missed.resync, missed.messages.len()), (Some((reason::GAP, at(1, 9))), 0));
        assert_eq!(hear(&mut follower, at(1, 10)), Heard::Next(frame(10)));
    }

    #[test]
    fn another_epoch_is_announced_in_front_of_its_messages() {
        let mut follower = following(at(1, 2));
        assert_eq!(hear(&mut follower, at(2, 3)), Heard::NewEpoch(at(2, 2), frame(3)));
        assert_eq!(hear(&mut follower, at(2, 4)), Heard::Next(frame(4)));
        for there in [at(3, 9), at(2, 3)] {
            let extent = follower.catch_up().unwrap();
            let missed = follower.answered(kept(there, extent, 6), extent, NOW, &BOUNDS);
            assert_eq!((missed.resync, missed.messages.len()), (Some((reason::NEW_EPOCH, there)), 0));
        }
    }

    #[test]
    fn joins_read_only_what_memory_cannot_tell() {
        let mut follower = following(at(1, 4));
        hear(&mut follower, at(1, 5));
        for (since, extent) in [
            (None, None),
            (Some(at(1, 4)), None),
            (Some(at(9, 1)), None),
            (Some(at(1, 3)), Some(Extent::Whole)),
            (Some(at(1, 6)), Some(Extent::Whole)),
        ] {
            assert_eq!(follower.wants(since, 100), extent, "{since:?}");
        }
        assert_eq!(follower.hold(Some(at(1, 3)), 100), (true, Some(Extent::Whole)));
        assert_eq!(follower.hold(Some(at(1, 2)), 100), (true, None), "joins share the read");
        follower.answered(kept(at(1, 5), Extent::Whole, 3), Extent::Whole, NOW, &BOUNDS);
        assert_eq!(follower.wants(Some(at(1, 1)), 100), None, "all that Redis keeps is known");
        assert_eq!(follower.recover(at(1, 1), 100, NOW, &BOUNDS), Err(NotRecovered::Expired));
        assert_eq!(follower.recover(at(1, 2), 100, NOW, &BOUNDS).unwrap(), [frame(3), frame(4), frame(5)]);
        follower.halve(NOW, &BOUNDS);
        assert_eq!(
            follower.wants(Some(at(1, 2)), 100),
            Some(Extent::Whole),
            "what was forgotten is read again"
        );
    }

    proptest! {
        /// Messages are lost, epochs change, reads come late: members see an unbroken rise, or are told.
        #[test]
        fn members_see_every_message_or_are_told(
            steps in proptest::collection::vec((0_u8..12, any::<bool>()), 1..60),
        ) {
            let mut redis = at(1, 3);
            let mut follower = following(redis);
            let (mut seen, mut reading) = (redis, None);
            for (kind, lost) in steps {
                match kind {
                    0 => redis.epoch = Epoch(redis.epoch.0 + 1),
                    1..=3 => {
                        if let Some(extent) = reading.take().or_else(|| follower.catch_up()) {
                            let missed = follower.answered(kept(redis, extent, 6), extent, NOW, &BOUNDS);
                            if let Some((_, position)) = missed.resync {
                                seen = position;
                            }
                            for (_, _, got) in missed.messages {
                                seen.offset += 1;
                                prop_assert_eq!(got, frame(seen.offset));
                            }
                            prop_assert_eq!(seen, redis, "a read leaves nothing behind");
                        }
                    }
                    _ => {
                        redis.offset += 1;
                        if lost {
                            continue;
                        }
                        match hear(&mut follower, redis) {
                            Heard::Next(got) => {
                                seen.offset += 1;
                                prop_assert_eq!((got, seen), (frame(seen.offset), redis));
                            }
                            Heard::NewEpoch(before, got) => {
                                prop_assert_ne!(before.epoch, seen.epoch);
                                seen = redis;
                                prop_assert_eq!((got, before.offset + 1), (frame(redis.offset), redis.offset));
                            }
                            Heard::Gap(extent) => reading = Some(extent),
                            Heard::Nothing => prop_assert!(reading.is_some(), "only a read under way hides messages"),
                        }
                    }
                }
            }
        }
    }
}
