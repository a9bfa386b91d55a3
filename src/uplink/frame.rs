//! An event's text becomes the WebSocket frame that every receiver gets: built once, shared by all.

use bytes::{BufMut, Bytes, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// Bytes of the longest header of an unmasked frame (RFC 6455 section 5.2: 2, 4 or 10).
pub const HEADER_BYTES: usize = 10;

/// Builds frames one after the other in one allocation.
#[derive(Debug)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Room for `events` events of `bytes` bytes in all; more only costs another allocation.
    pub fn with_capacity(events: usize, bytes: usize) -> Self {
        Self { buffer: BytesMut::with_capacity(bytes + events * HEADER_BYTES) }
    }

    /// The complete, unmasked text frame of `event`.
    pub fn frame(&mut self, event: &str) -> Bytes {
        let header =
            FrameHeader { is_final: true, opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
        let mut writer = (&mut self.buffer).writer();
        header.format(event.len() as u64, &mut writer).expect("writing to memory cannot fail");
        self.buffer.extend_from_slice(event.as_bytes());
        self.buffer.split().freeze()
    }
}

/// The complete, unmasked text frame of one event.
pub fn frame(event: &str) -> Bytes {
    Frames::with_capacity(1, event.len()).frame(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_shortest_form() {
        for (length, header) in [
            (0, &[0x81, 0][..]),
            (125, &[0x81, 125][..]),
            (126, &[0x81, 126, 0, 126][..]),
            (65_535, &[0x81, 126, 0xFF, 0xFF][..]),
            (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0][..]),
        ] {
            let text = "x".repeat(length);
            let frame = frame(&text);
            assert_eq!(&frame[..header.len()], header);
            assert_eq!(&frame[header.len()..], text.as_bytes());
        }
    }

    #[test]
    fn frames_of_one_batch_do_not_run_into_each_other() {
        let mut frames = Frames::with_capacity(1, 3);
        let (first, second) = (frames.frame("abc"), frames.frame("defgh"));
        assert_eq!((&first[2..], &second[2..]), (&b"abc"[..], &b"defgh"[..]));
    }
}
