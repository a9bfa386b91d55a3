//! One direction of a connection: bytes arrive in order, some time after they were sent, in other pieces.

use std::collections::VecDeque;

use super::random::Random;

/// Milliseconds of the world's clock.
pub(super) type Ms = u64;

#[derive(Debug, Default)]
pub(super) struct Pipe {
    pieces: VecDeque<(Ms, Vec<u8>)>,
    /// Nothing overtakes: what is sent arrives no sooner than this.
    last_due: Ms,
    /// Nothing arrives before: the network or the reader stands still.
    pub(super) held_until: Ms,
    /// When the end arrives.
    end: Option<Ms>,
}

impl Pipe {
    pub(super) fn send(&mut self, bytes: &[u8], due: Ms, random: &mut Random) {
        if self.end.is_some() || bytes.is_empty() {
            return;
        }
        self.last_due = self.last_due.max(due);
        let cut = if random.chance(100) { random.below(bytes.len() as u64) as usize } else { 0 };
        for piece in [&bytes[..cut], &bytes[cut..]].into_iter().filter(|piece| !piece.is_empty()) {
            self.pieces.push_back((self.last_due, piece.to_vec()));
        }
    }

    /// No more will be sent; what is under way still arrives.
    pub(super) fn finish(&mut self, due: Ms) {
        self.last_due = self.last_due.max(due);
        self.end.get_or_insert(self.last_due);
    }

    /// The connection breaks: what is under way is lost.
    pub(super) fn break_off(&mut self, now: Ms) {
        self.pieces.clear();
        self.end = Some(now);
        self.held_until = 0;
    }

    pub(super) fn receive(&mut self, now: Ms) -> Option<Vec<u8>> {
        let (due, _) = self.pieces.front()?;
        if *due > now || self.held_until > now {
            return None;
        }
        self.pieces.pop_front().map(|(_, bytes)| bytes)
    }

    /// Whether everything has arrived, the end too.
    pub(super) fn has_ended(&self, now: Ms) -> bool {
        self.pieces.is_empty() && self.held_until <= now && self.end.is_some_and(|end| end <= now)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}
