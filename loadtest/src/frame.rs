//! WebSocket frames (RFC 6455 section 5): read in place out of a chunk of bytes, written masked.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Bytes of one frame's payload above which the stream counts as broken. Far above any server's
/// message limit, so that only a misread header gets there.
pub const MAX_PAYLOAD_BYTES: u64 = 16 * 1024 * 1024;

/// Bytes of a control frame's payload (RFC 6455 section 5.5).
const MAX_CONTROL_BYTES: u64 = 125;

/// One frame that a server sent; the payload stays where it was received.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the frame is.
    pub opcode: OpCode,
    /// Whether it is its message's last one.
    pub is_final: bool,
    /// Whether it begins a compressed message (RFC 7692 section 6).
    pub is_compressed: bool,
    /// The payload, not masked.
    pub payload: &'a [u8],
}

/// How a server broke RFC 6455.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Section 5.1: only clients mask.
    #[error("masked frame from the server")]
    Masked,
    /// Section 5.2: a reserved bit without an extension that gives it a meaning.
    #[error("reserved bit set without an extension")]
    ReservedBit,
    /// Section 5.2: an opcode without a meaning.
    #[error("reserved opcode")]
    ReservedOpcode,
    /// Section 5.5: control frames are whole and at most 125 bytes long.
    #[error("control frame too long or fragmented")]
    Control,
    /// The frame is longer than [`MAX_PAYLOAD_BYTES`].
    #[error("frame of {0} bytes, more than the {MAX_PAYLOAD_BYTES} allowed")]
    TooLarge(u64),
}

/// Takes the first frame of `bytes`; also returns how many bytes it takes up. `None` while the frame
/// is not complete.
///
/// # Errors
/// The stream is not one that a server may send; nothing after it can be read.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    match whole_text(bytes) {
        Some(found) => Ok(Some(found)),
        None => parse_any(bytes),
    }
}

/// The first frame of `bytes`, if it is complete and what servers send most, which this tells fast: a whole text message of
/// less than 64 KiB, not compressed.
#[inline]
fn whole_text(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    /// FIN and the opcode of text; section 5.2.
    const WHOLE_TEXT: u8 = 0x81;
    let (start, length) = match *bytes {
        [WHOLE_TEXT, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [WHOLE_TEXT, length @ 0..126, ..] => (2, usize::from(length)),
        _ => return None,
    };
    let payload = bytes.get(start..start + length)?;
    Some((Frame { opcode: TEXT, is_final: true, is_compressed: false, payload }, start + length))
}

fn parse_any(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let mut cursor = Cursor::new(bytes);
    let (header, length) = match FrameHeader::parse(&mut cursor) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(_) => return Err(FrameError::ReservedOpcode),
    };
    if header.mask.is_some() {
        return Err(FrameError::Masked);
    }
    let may_be_compressed = matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
    if (header.rsv1 && !may_be_compressed) || header.rsv2 || header.rsv3 {
        return Err(FrameError::ReservedBit);
    }
    if matches!(header.opcode, OpCode::Control(_)) && (!header.is_final || length > MAX_CONTROL_BYTES) {
        return Err(FrameError::Control);
    }
    if length > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLarge(length));
    }
    let start = cursor.position() as usize;
    let end = start + length as usize;
    let Some(payload) = bytes.get(start..end) else { return Ok(None) };
    let frame =
        Frame { opcode: header.opcode, is_final: header.is_final, is_compressed: header.rsv1, payload };
    Ok(Some((frame, end)))
}

/// Appends a whole client frame with `payload`, masked with `mask`, to `out`.
pub fn write(opcode: OpCode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    write_marked(opcode, false, payload, mask, out);
}

/// As [`write`]; `compressed` says whether the payload is.
pub fn write_marked(opcode: OpCode, compressed: bool, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let header =
        FrameHeader { is_final: true, rsv1: compressed, rsv2: false, rsv3: false, opcode, mask: Some(mask) };
    header.format(payload.len() as u64, out).expect("writing to a Vec cannot fail");
    let start = out.len();
    out.extend_from_slice(payload);
    let (words, rest) = out[start..].as_chunks_mut::<4>();
    let key = u32::from_ne_bytes(mask);
    words.iter_mut().for_each(|word| *word = (u32::from_ne_bytes(*word) ^ key).to_ne_bytes());
    rest.iter_mut().zip(mask).for_each(|(byte, key)| *byte ^= key);
}

/// The opcode of a text message.
pub const TEXT: OpCode = OpCode::Data(Data::Text);
/// The opcode of a ping.
pub const PING: OpCode = OpCode::Control(Control::Ping);
/// The opcode of a pong.
pub const PONG: OpCode = OpCode::Control(Control::Pong);
/// The opcode of a close.
pub const CLOSE: OpCode = OpCode::Control(Control::Close);

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            short @ 0..126 => bytes.push(short as u8),
            long @ 126..65536 => {
                bytes.push(126);
                bytes.extend((long as u16).to_be_bytes());
            }
            long => {
                bytes.push(127);
                bytes.extend((long as u64).to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    fn read_all(chunks: &[&[u8]]) -> Vec<(OpCode, bool, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut carried = Vec::new();
        for chunk in chunks {
            carried.extend_from_slice(chunk);
            let mut rest = carried.as_slice();
            while let Some((frame, length)) = parse(rest).unwrap() {
                frames.push((frame.opcode, frame.is_final, frame.payload.to_vec()));
                rest = &rest[length..];
            }
            carried = rest.to_vec();
        }
        assert!(carried.is_empty(), "bytes left over");
        frames
    }

    #[test]
    fn a_stream_split_at_any_byte_gives_the_same_frames() {
        let mut stream = server_frame(0x81, b"hello");
        stream.extend(server_frame(0x89, b""));
        stream.extend(server_frame(0x01, &[b'a'; 200]));
        stream.extend(server_frame(0x80, &[b'b'; 126]));
        stream.extend(server_frame(0x88, &[0x03, 0xe8]));
        let whole = read_all(&[&stream]);
        assert_eq!(whole.len(), 5);
        assert_eq!(whole[2], (TEXT, false, vec![b'a'; 200]));
        for split in 0..=stream.len() {
            assert_eq!(read_all(&[&stream[..split], &stream[split..]]), whole, "split at {split}");
        }
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read_all(&single), whole);
    }

    #[test]
    fn what_is_told_fast_is_told_right() {
        for length in [0, 1, 125, 126, 127, 65_535] {
            let stream = [server_frame(0x81, &vec![b'x'; length]), vec![0x81]].concat();
            let (frame, used) = whole_text(&stream).unwrap();
            assert_eq!(parse_any(&stream), Ok(Some((frame, used))), "{length}");
            assert_eq!(whole_text(&stream[..used - 1]), None, "not complete");
        }
        for other in
            [&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], &[0x81, 0x80], &[0x01, 0], &[0xc1, 0], &[0x81]]
        {
            assert_eq!(whole_text(other), None);
        }
    }

    #[test]
    fn a_64_bit_length_is_read() {
        let stream = server_frame(0x81, &[b'x'; 70_000]);
        let (frame, length) = parse(&stream).unwrap().unwrap();
        assert_eq!((frame.payload.len(), length), (70_000, stream.len()));
        assert_eq!(parse(&stream[..stream.len() - 1]), Ok(None));
    }

    #[test]
    fn what_a_server_may_not_send_is_refused() {
        assert_eq!(parse(&[0x81, 0x80, 1, 2, 3, 4]), Err(FrameError::Masked));
        assert_eq!(parse(&[0xa1, 0x00]), Err(FrameError::ReservedBit));
        assert_eq!(parse(&[0xc9, 0x00]), Err(FrameError::ReservedBit), "a control frame is never compressed");
        assert_eq!(parse(&[0x83, 0x00]), Err(FrameError::ReservedOpcode));
        assert_eq!(parse(&[0x09, 0x00]), Err(FrameError::Control));
        assert_eq!(parse(&[0x89, 126, 0, 126]), Err(FrameError::Control));
        let huge = [&[0x81, 127][..], &(1_u64 << 40).to_be_bytes()].concat();
        assert_eq!(parse(&huge), Err(FrameError::TooLarge(1 << 40)));
    }

    #[test]
    fn a_written_frame_unmasks_to_its_payload() {
        for length in [0, 1, 3, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mask = [0x12, 0x34, 0x56, 0x78];
            let mut out = Vec::new();
            write(TEXT, &payload, mask, &mut out);
            let mut cursor = Cursor::new(&out);
            let (header, written) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert_eq!((header.mask, header.opcode, written), (Some(mask), TEXT, length as u64));
            let body = &out[cursor.position() as usize..];
            let plain: Vec<u8> = body.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
            assert_eq!(plain, payload);
        }
    }
}
