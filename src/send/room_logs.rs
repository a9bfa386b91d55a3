//! What rooms have said and is not sent yet: each small frame once, however many outboxes refer to it.

use std::collections::VecDeque;

use super::pool::Pool;
use crate::ring::{COPY_UP_TO, FrameLog, Stretch};

/// Logs that are looked at after a flush: all of those that busy rooms have, and not all that readers who do not read keep.
const LOOKED_AT: usize = 256;

/// The logs of one shard, by a number that stands for a room and who of its members hears the same. There is one for those that
/// outboxes refer to.
#[derive(Debug, Default)]
pub struct RoomLogs {
    logs: Vec<Option<FrameLog>>,
    /// The numbers of those that there are, in the order in which they are to be looked at.
    numbers: VecDeque<u32>,
    spare: Pool<FrameLog>,
}

impl RoomLogs {
    /// Adds a frame to the log called `number`; nothing if it is too large for that.
    pub fn append(&mut self, number: u32, frame: &[u8]) -> Option<Stretch> {
        if frame.len() > COPY_UP_TO {
            return None;
        }
        let index = number as usize;
        if index >= self.logs.len() {
            self.logs.resize_with(index + 1, || None);
        }
        let (numbers, spare) = (&mut self.numbers, &mut self.spare);
        let log = self.logs[index].get_or_insert_with(|| {
            numbers.push_back(number);
            spare.take().unwrap_or_default()
        });
        if let Some(stretch) = log.append(frame) {
            return Some(stretch);
        }
        // It is full; the outboxes that refer to it give it back.
        *log = spare.take().unwrap_or_default();
        log.append(frame)
    }

    /// A flush has been made: logs that no outbox refers to any more are free for other rooms.
    pub fn end_flush(&mut self) {
        self.give_up_unused(LOOKED_AT);
    }

    fn give_up_unused(&mut self, most: usize) {
        for _ in 0..most.min(self.numbers.len()) {
            let Some(number) = self.numbers.pop_front() else { return };
            let place = &mut self.logs[number as usize];
            match place.take_if(FrameLog::clear_unused) {
                Some(log) => self.spare.put(log),
                None => self.numbers.push_back(number),
            }
        }
    }

    /// Whether there is no log.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// A frame has been sent.
    pub fn put_back(&mut self, stretch: Stretch) {
        if let Some(log) = stretch.into_log() {
            self.spare.put(log);
        }
    }

    /// Frees logs that were not needed since the last call.
    pub fn trim(&mut self) {
        self.give_up_unused(usize::MAX);
        self.spare.end_period();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_keeps_its_log_while_somebody_waits_for_it() {
        let mut logs = RoomLogs::default();
        let mut first = logs.append(3, b"one").unwrap();
        logs.end_flush();
        logs.end_flush();
        assert!(first.lengthen(&logs.append(3, b"two").unwrap()), "it goes on in the same memory");
        logs.put_back(first);
        logs.end_flush();
        assert!(logs.is_empty());
        assert!(logs.spare.take().is_some(), "the memory is free for other rooms");
    }

    #[test]
    fn each_number_has_its_own_log() {
        let mut logs = RoomLogs::default();
        let mut first = logs.append(0, b"a").unwrap();
        logs.append(1, b"b").unwrap();
        assert!(first.lengthen(&logs.append(0, b"a").unwrap()));
        assert_eq!(first.as_slice(), b"aa");
    }

    #[test]
    fn a_full_log_is_followed_by_another_and_comes_back_when_it_is_sent() {
        let mut logs = RoomLogs::default();
        let frame = |number: u8| [number; COPY_UP_TO];
        let stretches: Vec<_> = (0..40).map(|number| logs.append(0, &frame(number)).unwrap()).collect();
        for (number, stretch) in stretches.iter().enumerate() {
            assert_eq!(stretch.as_slice(), frame(number as u8));
        }
        assert!(logs.append(0, &[7; COPY_UP_TO + 1]).is_none(), "it is referred to by itself");
        assert!(logs.spare.take().is_none());
        stretches.into_iter().for_each(|stretch| logs.put_back(stretch));
        logs.end_flush();
        let spare = std::iter::from_fn(|| logs.spare.take()).count();
        assert_eq!(spare, 40 * COPY_UP_TO / FrameLog::BYTES + 1);
    }

    #[test]
    fn logs_that_readers_keep_do_not_keep_those_of_others() {
        let mut logs = RoomLogs::default();
        let kept: Vec<_> =
            (0..3 * LOOKED_AT as u32).map(|number| logs.append(number, b"kept").unwrap()).collect();
        drop(logs.append(9_999, b"sent"));
        (0..4).for_each(|_| logs.end_flush());
        assert_eq!(logs.numbers.len(), kept.len());
        drop(kept);
        logs.trim();
        assert!(logs.is_empty());
    }
}
