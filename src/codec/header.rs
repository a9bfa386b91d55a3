//! A client frame's header, and every rule that can be judged by the header alone.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::mask::Mask;
use super::violation::Violation;

/// Bytes of the longest header: two, an eight-byte length, a mask.
pub(super) const HEADER_BYTES: usize = 14;

/// Bytes of payload that a control frame may have (RFC 6455 section 5.5).
pub(super) const CONTROL_BYTES: usize = 125;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// A header that breaks no rule by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// What the frame carries.
    pub(super) kind: Kind,
    /// Whether it is its message's last frame.
    pub(super) is_final: bool,
    /// Whether it begins a compressed message.
    pub(super) is_compressed: bool,
    /// The mask of its payload.
    pub(super) mask: Mask,
    /// Bytes of its payload, as the client claims.
    pub(super) length: u64,
}

/// Reads the header that `bytes` begin with, and how many bytes it has; `None` if it is not complete.
/// `compression` says whether permessage-deflate was agreed on.
pub(super) fn parse(bytes: &[u8], compression: bool) -> Result<Option<(Header, usize)>, Violation> {
    let mut cursor = Cursor::new(bytes);
    // Reading from memory cannot fail, so the only error left is an unknown opcode.
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| Violation::ReservedOpcode)?;
    let Some((header, length)) = parsed else {
        return Ok(None);
    };
    let header_bytes = cursor.position() as usize;
    check_reserved_bits(&header, compression)?;
    let Some(key) = header.mask else {
        return Err(Violation::Unmasked);
    };
    let kind = match header.opcode {
        OpCode::Data(Data::Continue) => Kind::Continuation,
        OpCode::Data(Data::Text) => Kind::Text,
        OpCode::Data(Data::Binary) => Kind::Binary,
        OpCode::Control(Control::Close) => Kind::Close,
        OpCode::Control(Control::Ping) => Kind::Ping,
        OpCode::Control(Control::Pong) => Kind::Pong,
        OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => {
            return Err(Violation::ReservedOpcode);
        }
    };
    if matches!(kind, Kind::Close | Kind::Ping | Kind::Pong) {
        if !header.is_final {
            return Err(Violation::FragmentedControl);
        }
        if length > CONTROL_BYTES as u64 {
            return Err(Violation::ControlTooLong(length));
        }
    }
    if header.len(length) != header_bytes {
        return Err(Violation::LengthNotMinimal(length));
    }
    let header =
        Header { kind, is_final: header.is_final, is_compressed: header.rsv1, mask: Mask::new(key), length };
    Ok(Some((header, header_bytes)))
}

/// Only permessage-deflate gives a bit a meaning: RSV1 on the first frame of a data message (RFC 7692,
/// section 6).
fn check_reserved_bits(header: &FrameHeader, compression: bool) -> Result<(), Violation> {
    let begins_message = matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
    let rsv1_is_wrong = header.rsv1 && !(compression && begins_message);
    if rsv1_is_wrong || header.rsv2 || header.rsv3 { Err(Violation::ReservedBits) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_headers_are_read_and_shorter_ones_waited_for() {
        let cases: [(&[u8], Kind, bool, u64); 4] = [
            (&[0x81, 0x80, 1, 2, 3, 4], Kind::Text, true, 0),
            (&[0x02, 0xfd, 1, 2, 3, 4], Kind::Binary, false, 125),
            (&[0x80, 0xfe, 0, 126, 1, 2, 3, 4], Kind::Continuation, true, 126),
            (&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4], Kind::Text, true, 65536),
        ];
        for (bytes, kind, is_final, length) in cases {
            let mask = Mask::new([1, 2, 3, 4]);
            let header = Header { kind, is_final, is_compressed: false, mask, length };
            assert_eq!(parse(bytes, false), Ok(Some((header, bytes.len()))));
            let longer = [bytes, b"payload"].concat();
            assert_eq!(parse(&longer, false), Ok(Some((header, bytes.len()))));
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end], false), Ok(None), "{end} bytes of {bytes:?}");
            }
        }
    }

    #[test]
    fn every_rule_of_the_header_is_enforced() {
        let cases: [(&[u8], Violation); 15] = [
            (&[0x81, 0x00], Violation::Unmasked),
            (&[0x89, 0x05], Violation::Unmasked),
            (&[0xc1, 0x80, 0, 0, 0, 0], Violation::ReservedBits),
            (&[0xa1, 0x80, 0, 0, 0, 0], Violation::ReservedBits),
            (&[0x91, 0x80, 0, 0, 0, 0], Violation::ReservedBits),
            (&[0x83, 0x80, 0, 0, 0, 0], Violation::ReservedOpcode),
            (&[0x87, 0x80, 0, 0, 0, 0], Violation::ReservedOpcode),
            (&[0x8b, 0x80, 0, 0, 0, 0], Violation::ReservedOpcode),
            (&[0x8f, 0x80, 0, 0, 0, 0], Violation::ReservedOpcode),
            (&[0x08, 0x80, 0, 0, 0, 0], Violation::FragmentedControl),
            (&[0x09, 0x80, 0, 0, 0, 0], Violation::FragmentedControl),
            (&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], Violation::ControlTooLong(126)),
            (&[0x88, 0xfe, 0, 125, 0, 0, 0, 0], Violation::LengthNotMinimal(125)),
            (&[0x81, 0xfe, 0, 125, 0, 0, 0, 0], Violation::LengthNotMinimal(125)),
            (&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0], Violation::LengthNotMinimal(65535)),
        ];
        for (bytes, violation) in cases {
            assert_eq!(parse(bytes, false), Err(violation), "{bytes:x?}");
        }
    }

    #[test]
    fn rsv1_is_for_first_frames_of_messages_where_compression_was_agreed_on() {
        for first in [0xc1, 0x41, 0xc2, 0x42] {
            let (header, _) = parse(&[first, 0x80, 0, 0, 0, 0], true).unwrap().expect("it is complete");
            assert!(header.is_compressed);
            assert_eq!(parse(&[first, 0x80, 0, 0, 0, 0], false), Err(Violation::ReservedBits));
        }
        for first in [0xc0, 0x40, 0xc8, 0xc9, 0xca, 0xa1, 0x91, 0xe1, 0xd1] {
            assert_eq!(parse(&[first, 0x80, 0, 0, 0, 0], true), Err(Violation::ReservedBits), "{first:x}");
        }
    }
}
