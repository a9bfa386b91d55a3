//! What rooms have said lately: each frame once, however many outboxes refer to it.

use super::pool::Pool;
use crate::ring::{FrameLog, Stretch};

/// A room's log, and whether anything was added since the last flush.
#[derive(Debug)]
struct RoomLog {
    log: FrameLog,
    in_use: bool,
}

/// The logs of one shard, by a number that stands for a room and a form of its frames. There is one for those that said
/// something since the flush before last.
#[derive(Debug)]
pub struct RoomLogs {
    logs: Vec<Option<RoomLog>>,
    /// The numbers of those that there are.
    numbers: Vec<u32>,
    spare: Pool<FrameLog>,
}

impl RoomLogs {
    /// No logs.
    pub const fn new() -> Self {
        Self { logs: Vec::new(), numbers: Vec::new(), spare: Pool::new() }
    }

    /// Adds a frame to the log called `number`; nothing if it is too large for that.
    pub fn append(&mut self, number: u32, frame: &[u8]) -> Option<Stretch> {
        if frame.len() > FrameLog::FRAME_BYTES {
            return None;
        }
        let index = number as usize;
        if index >= self.logs.len() {
            self.logs.resize_with(index + 1, || None);
        }
        let (numbers, spare) = (&mut self.numbers, &mut self.spare);
        let room = self.logs[index].get_or_insert_with(|| {
            numbers.push(number);
            RoomLog { log: spare.take().unwrap_or_default(), in_use: true }
        });
        room.in_use = true;
        if let Some(stretch) = room.log.append(frame) {
            return Some(stretch);
        }
        // It is full; the outboxes that refer to it give it back.
        room.log = spare.take().unwrap_or_default();
        room.log.append(frame)
    }

    /// A flush has been made: rooms that have said nothing since the one before it need no log.
    pub fn end_flush(&mut self) {
        let Self { logs, numbers, spare } = self;
        numbers.retain(|number| {
            let place = &mut logs[*number as usize];
            let in_use = place.as_mut().is_some_and(|room| std::mem::take(&mut room.in_use));
            if !in_use
                && let Some(mut room) = place.take()
                && room.log.is_unused()
            {
                spare.put(room.log);
            }
            in_use
        });
    }

    /// A frame has been sent.
    pub fn put_back(&mut self, stretch: Stretch) {
        if let Some(log) = stretch.into_log() {
            self.spare.put(log);
        }
    }

    /// Frees memory that was not needed since the last call.
    pub fn trim(&mut self) {
        self.end_flush();
        self.spare.end_period();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_keeps_its_log_while_it_talks() {
        let mut logs = RoomLogs::new();
        let mut first = logs.append(3, b"one").unwrap();
        logs.end_flush();
        let second = logs.append(3, b"two").unwrap();
        assert!(first.lengthen(&second), "what waits over a flush goes on in the same memory");
        logs.end_flush();
        logs.end_flush();
        assert!(logs.numbers.is_empty(), "nothing was said");
        assert!(!first.lengthen(&logs.append(3, b"three").unwrap()));
    }

    #[test]
    fn each_number_has_its_own_log() {
        let mut logs = RoomLogs::new();
        let mut first = logs.append(0, b"a").unwrap();
        logs.append(1, b"b").unwrap();
        assert!(first.lengthen(&logs.append(0, b"a").unwrap()));
        assert_eq!(first.as_slice(), b"aa");
    }

    #[test]
    fn a_full_log_is_followed_by_another() {
        let mut logs = RoomLogs::new();
        let frame = [7; FrameLog::FRAME_BYTES];
        let stretches: Vec<_> = (0..100).map(|_| logs.append(0, &frame).unwrap()).collect();
        assert!(stretches.iter().all(|stretch| stretch.as_slice() == frame));
        assert!(logs.append(0, &[7; FrameLog::FRAME_BYTES + 1]).is_none(), "too large to be worth it");
    }

    #[test]
    fn memory_is_used_again_whoever_gives_it_up_last() {
        let mut logs = RoomLogs::new();
        let stretch = logs.append(0, b"one").unwrap();
        logs.end_flush();
        logs.end_flush();
        assert!(logs.spare.take().is_none(), "it is referred to");
        logs.put_back(stretch);
        assert!(logs.spare.take().is_some());
        drop(logs.append(1, b"two"));
        logs.end_flush();
        logs.end_flush();
        assert!(logs.spare.take().is_some());
    }
}
