//! Frames that the server sends: unmasked, never fragmented (RFC 6455 section 5).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Bytes of the longest header without a mask.
const HEADER_BYTES: usize = 10;

/// The bits of a frame's first byte that are its opcode.
const OPCODE_BITS: u8 = 0x0f;

/// Bytes that a close frame's reason may have: a control frame's 125 without the code.
pub const CLOSE_REASON_BYTES: usize = 123;

/// Builds a text frame around a payload that is written straight into it: nothing is copied when
/// the header, whose length depends on the payload's, is put in front at the end.
#[derive(Debug)]
pub struct FrameWriter {
    buffer: BytesMut,
}

impl FrameWriter {
    /// A frame whose payload will have about `payload_bytes`; more is right too.
    pub fn with_capacity(payload_bytes: usize) -> Self {
        let mut buffer = BytesMut::with_capacity(HEADER_BYTES + payload_bytes);
        buffer.put_bytes(0, HEADER_BYTES);
        Self { buffer }
    }

    /// Adds to the payload.
    #[inline]
    pub fn put(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    /// The complete frame.
    pub fn finish(self) -> Bytes {
        self.finish_as(OpCode::Data(Data::Text))
    }

    fn finish_as(self, opcode: OpCode) -> Bytes {
        self.finish_with(FrameHeader { opcode, ..FrameHeader::default() })
    }

    fn finish_with(mut self, header: FrameHeader) -> Bytes {
        let length = (self.buffer.len() - HEADER_BYTES) as u64;
        let start = HEADER_BYTES - header.len(length);
        let mut space = &mut self.buffer[start..HEADER_BYTES];
        header.format(length, &mut space).expect("the space in front is as long as the header");
        self.buffer.advance(start);
        self.buffer.freeze()
    }
}

/// A text frame with a copy of `payload`.
pub fn text(payload: &str) -> Bytes {
    let mut writer = FrameWriter::with_capacity(payload.len());
    writer.put(payload);
    writer.finish()
}

/// A binary frame with a copy of `payload`.
pub fn binary(payload: &[u8]) -> Bytes {
    let mut writer = FrameWriter::with_capacity(payload.len());
    writer.buffer.extend_from_slice(payload);
    writer.finish_as(OpCode::Data(Data::Binary))
}

/// A ping without payload.
pub fn ping() -> Bytes {
    Bytes::from_static(&[0x89, 0])
}

/// The answer to a ping with `payload`, which has at most 125 bytes.
pub fn pong(payload: &[u8]) -> Bytes {
    control(Control::Pong, payload)
}

/// A close frame. A `reason` of more than [`CLOSE_REASON_BYTES`] is cut between characters.
pub fn close(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(CLOSE_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    control(Control::Close, &[&code.to_be_bytes(), &reason.as_bytes()[..end]].concat())
}

/// The answer to a client's close frame: the same code, or none if it had none.
pub fn close_reply(code: Option<u16>) -> Bytes {
    match code {
        Some(code) => close(code, ""),
        None => control(Control::Close, b""),
    }
}

fn control(opcode: Control, payload: &[u8]) -> Bytes {
    let mut writer = FrameWriter::with_capacity(payload.len());
    writer.buffer.extend_from_slice(payload);
    writer.finish_as(OpCode::Control(opcode))
}

/// A data frame like `plain`, marked as compressed (RFC 7692, section 6), with a copy of `payload`.
pub(super) fn compressed(plain: &Bytes, payload: &[u8]) -> Bytes {
    let mut writer = FrameWriter::with_capacity(payload.len());
    writer.buffer.extend_from_slice(payload);
    let opcode = OpCode::from(plain[0] & OPCODE_BITS);
    writer.finish_with(FrameHeader { opcode, rsv1: true, ..FrameHeader::default() })
}

/// The payload of a frame that this module built, without copying it.
///
/// # Panics
/// If `frame` is not a whole frame.
pub fn payload(frame: &Bytes) -> Bytes {
    frame.slice(header_bytes(frame)..)
}

/// The text of a text frame that this module built.
///
/// # Panics
/// If `frame` is not a whole text frame.
pub fn text_of(frame: &Bytes) -> &str {
    std::str::from_utf8(payload_slice(frame)).expect("a text frame was made of text")
}

/// As [`payload`], borrowed.
pub(super) fn payload_slice(frame: &Bytes) -> &[u8] {
    &frame[header_bytes(frame)..]
}

/// Bytes of the payload of a frame that this module built.
#[inline]
pub(super) fn payload_bytes(frame: &Bytes) -> usize {
    frame.len() - header_bytes(frame)
}

#[inline]
fn header_bytes(frame: &Bytes) -> usize {
    match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    #[test]
    fn headers_have_the_shortest_length_and_the_payload_follows() {
        for (length, header) in [
            (0usize, &[0x81, 0][..]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65535, &[0x81, 126, 0xff, 0xff]),
            (65536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload = "x".repeat(length);
            let frame = text(&payload);
            assert_eq!(&frame[..header.len()], header);
            assert_eq!(&frame[header.len()..], payload.as_bytes());
            assert_eq!(super::payload(&frame), payload.as_bytes());
        }
    }

    #[test]
    fn binary_and_control_frames_are_as_the_rfc_writes_them() {
        assert_eq!(&binary(b"\xff\x00")[..], b"\x82\x02\xff\x00");
        assert_eq!(&ping()[..], [0x89, 0]);
        assert_eq!(&pong(b"abc")[..], b"\x8a\x03abc");
        assert_eq!(&close(1000, "bye")[..], b"\x88\x05\x03\xe8bye");
        assert_eq!(&close_reply(Some(4999))[..], b"\x88\x02\x13\x87");
        assert_eq!(&close_reply(None)[..], b"\x88\x00");
    }

    #[test]
    fn long_close_reason_is_cut_between_characters() {
        let frame = close(1008, &"ü".repeat(100));
        assert_eq!(frame[1], 124);
        assert_eq!(std::str::from_utf8(&frame[4..]), Ok("ü".repeat(61).as_str()));
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_by_another_implementation(pieces in proptest::collection::vec(".{0,200}", 0..6)) {
            let mut writer = FrameWriter::with_capacity(16);
            for piece in &pieces {
                writer.put(piece);
            }
            let frame = writer.finish();
            let mut cursor = Cursor::new(&frame[..]);
            let (header, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            let text = pieces.concat();
            prop_assert_eq!(header, FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() });
            prop_assert_eq!(length as usize, text.len());
            prop_assert_eq!(&frame[cursor.position() as usize..], text.as_bytes());
            prop_assert_eq!(payload(&frame), text.as_bytes());
        }
    }
}
