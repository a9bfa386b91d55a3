//! Compressed messages (RFC 7692 section 7.2), each by itself: no context is taken over.

use std::collections::HashMap;
use std::sync::Arc;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// What ends a flushed DEFLATE stream and is left out on the wire (section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Messages that are remembered expanded: more than arrive between the first and the last of a room's members.
const REMEMBERED: usize = 4096;

/// Bytes of an expanded message; more is an error.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// A worker's compressor and expander. A message to a room comes compressed alike to each of its members, so it is
/// expanded once and then known by its bytes: otherwise the generator would be slower than the server.
#[derive(Default)]
pub struct Deflate {
    compressor: Option<Compress>,
    compressed: Vec<u8>,
    expander: Option<Decompress>,
    known: HashMap<Box<[u8]>, Arc<[u8]>>,
}

impl Deflate {
    /// The payload of `text` compressed; `None` if that would not be shorter.
    pub fn compress(&mut self, text: &[u8]) -> Option<&[u8]> {
        let stream = self.compressor.get_or_insert_with(|| Compress::new(Compression::fast(), false));
        stream.reset();
        self.compressed.clear();
        self.compressed.reserve(text.len() + TAIL.len());
        stream.compress_vec(text, &mut self.compressed, FlushCompress::Sync).ok()?;
        let is_whole =
            stream.total_in() == text.len() as u64 && self.compressed.len() < self.compressed.capacity();
        self.compressed.strip_suffix(&TAIL).filter(|_| is_whole)
    }

    /// The message with this compressed payload, if that is complete DEFLATE data.
    pub fn expand(&mut self, payload: &[u8]) -> Option<Arc<[u8]>> {
        if let Some(known) = self.known.get(payload) {
            return Some(known.clone());
        }
        let stream = self.expander.get_or_insert_with(|| Decompress::new(false));
        stream.reset(false);
        let input = [payload, &TAIL].concat();
        let mut text = Vec::with_capacity(4 * payload.len() + 1024);
        while stream.total_in() < input.len() as u64 || text.len() == text.capacity() {
            if text.len() == text.capacity() {
                text.reserve(text.len());
            }
            let before = (stream.total_in(), text.len());
            let rest = &input[before.0 as usize..];
            stream.decompress_vec(rest, &mut text, FlushDecompress::Sync).ok()?;
            if before == (stream.total_in(), text.len()) || text.len() > MAX_BYTES {
                return None;
            }
        }
        let text: Arc<[u8]> = text.into();
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(payload.into(), text.clone());
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_expands_again_as_often_as_it_comes() {
        let mut deflate = Deflate::default();
        for length in [200, 5_000, 300_000] {
            let text: Vec<u8> = b"some text ".iter().copied().cycle().take(length).collect();
            let payload = deflate.compress(&text).expect("it repeats").to_vec();
            assert!(payload.len() < length / 2);
            assert_eq!(deflate.expand(&payload).as_deref(), Some(&text[..]));
            assert_eq!(deflate.expand(&payload).as_deref(), Some(&text[..]));
        }
    }

    #[test]
    fn garbage_is_noticed() {
        assert_eq!(Deflate::default().expand(&[0xff; 20]), None);
    }
}
