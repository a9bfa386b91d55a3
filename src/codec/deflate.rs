//! Payloads compressed and expanded as permessage-deflate has it (RFC 7692, section 7.2), each message
//! by itself: no context is taken over from one to the next, so one compressor serves all receivers.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::violation::Violation;

/// What ends a flushed DEFLATE stream and is left out on the wire (section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// [`TAIL`] and an empty final block: only a stream that is whole ends with the latter.
const END: [u8; 9] = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];

/// DEFLATE streams that one message may be made of (section 7.2.3.4). No known client sends two; without
/// a bound a message of empty ones would cost thousands of starts.
const STREAMS: usize = 16;

/// Bytes by which the expanded message's memory grows at first.
const FIRST_BYTES: usize = 4096;

/// The most bytes that DEFLATE may need for a message of `bytes`: more than any encoder adds to what
/// cannot be compressed (zlib: 5 bytes for every 127 at worst, and a few).
pub(super) const fn longest_compressed(bytes: usize) -> usize {
    bytes.saturating_add(bytes / 16).saturating_add(64)
}

/// Compresses payloads. It takes no memory before the first one, then 300 KiB or so.
pub struct Deflater {
    /// Bytes from which a payload is compressed.
    from: usize,
    stream: Option<Compress>,
    output: Vec<u8>,
}

impl Deflater {
    /// A compressor for payloads of `from` bytes and more.
    pub fn new(from: usize) -> Self {
        Self { from, stream: None, output: Vec::new() }
    }

    /// From now on it takes payloads of `from` bytes and more.
    pub fn adopt(&mut self, from: usize) {
        self.from = from;
    }

    /// Whether a payload of so many bytes is to be compressed.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        bytes >= self.from
    }

    /// The payload as it is sent compressed; `None` if that would not be shorter.
    pub(super) fn deflate(&mut self, payload: &[u8]) -> Option<&[u8]> {
        let Self { stream, output, .. } = self;
        let stream = stream.get_or_insert_with(|| Compress::new(Compression::default(), false));
        stream.reset();
        output.clear();
        output.reserve(payload.len() + TAIL.len());
        stream.compress_vec(payload, output, FlushCompress::Sync).ok()?;
        // Without space left, what was to come might be missing.
        let is_whole = stream.total_in() == payload.len() as u64 && output.len() < output.capacity();
        let compressed = output.strip_suffix(&TAIL).filter(|_| is_whole)?;
        (compressed.len() < payload.len()).then_some(compressed)
    }
}

/// Expands payloads. It takes no memory before the first one, then 50 KiB or so and the longest message.
#[derive(Default)]
pub struct Inflater {
    stream: Option<Decompress>,
    output: Vec<u8>,
}

impl Inflater {
    /// The message whose compressed payload, all fragments together, is `payload`.
    ///
    /// # Errors
    /// [`Violation::MessageTooBig`] as soon as it has more than `limit` bytes, and
    /// [`Violation::NotDeflate`] when it is no complete DEFLATE data.
    pub(super) fn inflate(&mut self, payload: &[u8], limit: usize) -> Result<&[u8], Violation> {
        let Self { stream, output } = self;
        let stream = stream.get_or_insert_with(|| Decompress::new(false));
        output.clear();
        let mut rest = payload;
        for _ in 0..STREAMS {
            stream.reset(false);
            if expand(stream, &mut rest, output, limit)? == Stream::Unfinished {
                let whole = expand(stream, &mut &END[..], output, limit)? == Stream::Ended;
                return if whole { Ok(output) } else { Err(Violation::NotDeflate) };
            }
            if rest.is_empty() {
                return Ok(output);
            }
        }
        Err(Violation::NotDeflate)
    }
}

/// Where a DEFLATE stream stands after its input.
#[derive(PartialEq, Eq)]
enum Stream {
    /// It goes on.
    Unfinished,
    /// Its final block is over.
    Ended,
}

/// Expands `input` up to its end or the stream's; takes what was used off its front.
fn expand(
    stream: &mut Decompress,
    input: &mut &[u8],
    output: &mut Vec<u8>,
    limit: usize,
) -> Result<Stream, Violation> {
    loop {
        if output.len() == output.capacity() {
            // One byte beyond the limit is enough to see that it is passed.
            output.reserve_exact(output.len().max(FIRST_BYTES).min(limit + 1 - output.len()));
        }
        let before = stream.total_in();
        let status = stream.decompress_vec(input, output, FlushDecompress::Sync);
        let status = status.map_err(|_| Violation::NotDeflate)?;
        *input = &input[(stream.total_in() - before) as usize..];
        if output.len() > limit {
            return Err(Violation::MessageTooBig { limit });
        }
        match status {
            Status::StreamEnd => return Ok(Stream::Ended),
            _ if output.len() == output.capacity() => {}
            _ if input.is_empty() => return Ok(Stream::Unfinished),
            Status::Ok => {}
            Status::BufError => return Err(Violation::NotDeflate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 100_000;

    fn inflated(payload: &[u8]) -> Result<Vec<u8>, Violation> {
        Inflater::default().inflate(payload, LIMIT).map(<[u8]>::to_vec)
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 7692, sections 7.2.3.1, 7.2.3.3 (no compression), 7.2.3.4 (a final block), 7.2.3.5 (two
        // blocks) and 7.2.3.6 (an empty message).
        let hello: [&[u8]; 4] = [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ];
        for payload in hello {
            assert_eq!(inflated(payload), Ok(b"Hello".to_vec()), "{payload:x?}");
        }
        assert_eq!(inflated(&[0]), Ok(Vec::new()));
    }

    #[test]
    fn a_message_that_breaks_off_is_refused() {
        let payload = Deflater::new(0).deflate(&b"all of it ".repeat(50)).expect("it repeats").to_vec();
        assert_eq!(inflated(&payload), Ok(b"all of it ".repeat(50)));
        for end in 0..payload.len() {
            assert_eq!(inflated(&payload[..end]), Err(Violation::NotDeflate), "{end} of {}", payload.len());
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let mut deflater = Deflater::new(0);
        let bomb = deflater.deflate(&vec![0; 100 * LIMIT]).expect("zeros are compressible").to_vec();
        assert!(bomb.len() < LIMIT / 5);
        let mut inflater = Inflater::default();
        assert_eq!(inflater.inflate(&bomb, LIMIT), Err(Violation::MessageTooBig { limit: LIMIT }));
        assert!(inflater.output.capacity() <= LIMIT + 1, "memory for what is over the limit");
        let within = deflater.deflate(&vec![0; LIMIT]).expect("zeros are compressible").to_vec();
        assert_eq!(inflater.inflate(&within, LIMIT).map(<[u8]>::len), Ok(LIMIT), "it works after a bomb");
    }

    #[test]
    fn endless_streams_are_refused() {
        let empty_final_block = [3, 0];
        assert_eq!(inflated(&empty_final_block.repeat(STREAMS)), Ok(Vec::new()));
        assert_eq!(inflated(&empty_final_block.repeat(STREAMS + 1)), Err(Violation::NotDeflate));
    }

    #[test]
    fn what_does_not_get_shorter_is_not_compressed() {
        let mut deflater = Deflater::new(0);
        assert_eq!(deflater.deflate(b"{}"), None);
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(5000)
        .collect();
        assert_eq!(deflater.deflate(&noise), None);
        assert!(deflater.deflate(&b"again".repeat(100)).is_some(), "it works after noise");
    }

    proptest! {
        #[test]
        fn whatever_is_compressed_comes_back(
            messages in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 1..200), 1usize..50), 1..5),
        ) {
            let (mut deflater, mut inflater) = (Deflater::new(0), Inflater::default());
            for (piece, times) in messages {
                let message = piece.repeat(times);
                if let Some(payload) = deflater.deflate(&message) {
                    prop_assert!(payload.len() < message.len());
                    prop_assert_eq!(inflater.inflate(payload, LIMIT), Ok(&message[..]));
                }
            }
        }

        #[test]
        fn garbage_gives_a_verdict_within_the_limit(
            payload in proptest::collection::vec(any::<u8>(), 0..400),
            limit in 0usize..300,
        ) {
            if let Ok(message) = Inflater::default().inflate(&payload, limit) {
                prop_assert!(message.len() <= limit);
            }
        }

        #[test]
        fn a_damaged_message_gives_a_verdict(at in 0usize..1000, bit in 0u32..8) {
            let mut payload = Deflater::new(0).deflate(&b"some text ".repeat(60)).expect("it repeats").to_vec();
            let at = at % payload.len();
            payload[at] ^= 1 << bit;
            if let Ok(message) = inflated(&payload) {
                prop_assert!(message.len() <= LIMIT);
            }
        }
    }
}
