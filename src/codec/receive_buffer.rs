//! A data message of which only a part has arrived.

use super::violation::Violation;

/// Whether a data message is text or binary, by the opcode of its first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataKind {
    Text,
    Binary,
}

/// The unmasked payload of a message so far. Its memory grows with what arrived, never with what a
/// header promised, and text is checked as it arrives: a client that sends garbage is told at once
/// and not when the message ends. Compressed text is checked after it was expanded.
#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    kind: DataKind,
    pub(super) is_compressed: bool,
    bytes: Vec<u8>,
    /// How many of `bytes` are whole, valid characters. The rest is the beginning of one character.
    valid: usize,
    /// Frames that the message has had so far.
    pub(super) fragments: u32,
}

impl ReceiveBuffer {
    /// A message whose first frame has begun.
    pub(super) fn new(kind: DataKind, is_compressed: bool) -> Self {
        Self { kind, is_compressed, bytes: Vec::new(), valid: 0, fragments: 1 }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds the next unmasked bytes.
    pub(super) fn push(&mut self, payload: &[u8]) -> Result<(), Violation> {
        self.bytes.extend_from_slice(payload);
        if self.kind == DataKind::Text && !self.is_compressed {
            match std::str::from_utf8(&self.bytes[self.valid..]) {
                Ok(_) => self.valid = self.bytes.len(),
                Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
                Err(_) => return Err(Violation::TextNotUtf8),
            }
        }
        Ok(())
    }

    /// The whole message.
    pub(super) fn finish(self) -> Result<Message, Violation> {
        match self.kind {
            kind if self.is_compressed => Ok(Message::Compressed(kind, self.bytes)),
            DataKind::Text => {
                String::from_utf8(self.bytes).map(Message::Text).map_err(|_| Violation::TextNotUtf8)
            }
            DataKind::Binary => Ok(Message::Binary(self.bytes)),
        }
    }
}

/// A message put together from several frames or reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Text(String),
    Binary(Vec<u8>),
    /// To be expanded first.
    Compressed(DataKind, Vec<u8>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_split_inside_characters_is_whole_again() {
        let text = "κόσμε 🎲";
        let mut buffer = ReceiveBuffer::new(DataKind::Text, false);
        for byte in text.as_bytes() {
            buffer.push(&[*byte]).unwrap();
        }
        assert_eq!(buffer.finish(), Ok(Message::Text(text.to_owned())));
    }

    #[test]
    fn bad_text_is_noticed_with_its_first_wrong_byte() {
        // Autobahn 6.4: a character beyond U+10FFFF, wrong from its second byte on; then a surrogate.
        for (before, wrong) in [(&b"\xce\xba\xf4"[..], 0x90), (&b"a\xed"[..], 0xa0), (&b""[..], 0xff)] {
            let mut buffer = ReceiveBuffer::new(DataKind::Text, false);
            assert_eq!(buffer.push(before), Ok(()));
            assert_eq!(buffer.push(&[wrong]), Err(Violation::TextNotUtf8));
        }
    }

    #[test]
    fn text_that_ends_inside_a_character_is_refused() {
        let mut buffer = ReceiveBuffer::new(DataKind::Text, false);
        assert_eq!(buffer.push(b"ab\xf0\x9f"), Ok(()));
        assert_eq!(buffer.finish(), Err(Violation::TextNotUtf8));
    }

    #[test]
    fn binary_may_hold_anything() {
        let mut buffer = ReceiveBuffer::new(DataKind::Binary, false);
        buffer.push(b"\xff\x00").unwrap();
        buffer.push(b"\xed\xa0").unwrap();
        assert_eq!(buffer.len(), 4);
        assert_eq!(buffer.finish(), Ok(Message::Binary(b"\xff\x00\xed\xa0".to_vec())));
    }
}
