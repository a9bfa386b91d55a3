//! A frame in the forms in which its receivers take it: each is made once, however many they are.

use bytes::Bytes;

use super::deflate::Deflater;
use super::frame;

/// A window that no client has: nobody gets the frame compressed.
const NO_WINDOW: u8 = u8::MAX;

/// Bits of the smallest and of the largest window of DEFLATE (RFC 7692, section 7.1.2.1).
const WINDOW_BITS: (u8, u8) = (8, 15);

/// A data frame for many receivers, compressed when the first of them needs it so.
pub struct Forms<'a> {
    plain: &'a Bytes,
    compressed: Option<Bytes>,
    /// Bits of the smallest window that the compressed form fits.
    least_window: u8,
    deflater: &'a mut Deflater,
}

impl<'a> Forms<'a> {
    /// The forms of `plain`.
    #[inline]
    pub fn new(plain: &'a Bytes, deflater: &'a mut Deflater) -> Self {
        let payload_bytes = frame::payload_bytes(plain);
        let least_window =
            if deflater.takes(payload_bytes) { least_window(payload_bytes) } else { NO_WINDOW };
        Self { plain, compressed: None, least_window, deflater }
    }

    /// The form for a client that expands with a window of `window` bits; 0 takes plain frames only.
    #[inline]
    pub fn fitting(&mut self, window: u8) -> &Bytes {
        if window < self.least_window { self.plain } else { self.compressed() }
    }

    fn compressed(&mut self) -> &Bytes {
        if self.compressed.is_none() {
            match self.deflater.deflate(frame::payload_slice(self.plain)) {
                Some(payload) => self.compressed = Some(frame::compressed(self.plain, payload)),
                None => self.least_window = NO_WINDOW,
            }
        }
        self.compressed.as_ref().unwrap_or(self.plain)
    }

    /// Whether the frame has been compressed.
    #[inline]
    pub fn is_compressed(&self) -> bool {
        self.compressed.is_some()
    }
}

/// Everything is compressed with the largest window. No reference in a message goes farther back than
/// its beginning, so a client with a smaller window can expand whatever fits into that; longer messages
/// it gets plain, as section 6 allows, and no second form is needed.
fn least_window(payload_bytes: usize) -> u8 {
    let (smallest, largest) = WINDOW_BITS;
    let bits = payload_bytes.next_power_of_two().trailing_zeros();
    u8::try_from(bits).unwrap_or(largest).clamp(smallest, largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Decompress, FlushDecompress};

    #[test]
    fn only_what_reaches_the_threshold_and_pays_is_compressed() {
        let mut deflater = Deflater::new(512);
        for (text, pays) in [("x".repeat(511), false), ("x".repeat(512), true)] {
            let plain = frame::text(&text);
            let mut forms = Forms::new(&plain, &mut deflater);
            assert_eq!(forms.fitting(0), &plain);
            assert!(!forms.is_compressed(), "nobody needed it");
            assert_eq!(forms.fitting(15) != &plain, pays);
            assert_eq!(forms.fitting(0), &plain);
            assert_eq!(forms.is_compressed(), pays);
        }
        let mut digit = 0_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            digit = digit.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (digit >> 24) as u8
        })
        .take(600)
        .collect();
        let plain = frame::binary(&noise);
        assert_eq!(Forms::new(&plain, &mut deflater).fitting(15), &plain);
    }

    #[test]
    fn it_is_compressed_once_and_keeps_its_opcode() {
        let mut deflater = Deflater::new(512);
        for (plain, first) in [(frame::text(&"ab".repeat(400)), 0xc1), (frame::binary(&[7; 800]), 0xc2)] {
            let mut forms = Forms::new(&plain, &mut deflater);
            let one = forms.fitting(15).clone();
            assert_eq!(one[0], first);
            assert_eq!(one.as_ptr(), forms.fitting(15).as_ptr(), "the same memory");
        }
    }

    #[test]
    fn a_small_window_gets_what_it_can_expand() {
        let (mut deflater, mut plain_ones) = (Deflater::new(512), 0);
        for bytes in [512, 513, 1024, 2000, 16_384, 32_768, 32_769, 100_000] {
            let half: String = (0..bytes / 2).map(|i| char::from(b'a' + (i * i % 26) as u8)).collect();
            let text = format!("{half}{}{half}", "-".repeat(bytes % 2));
            let plain = frame::text(&text);
            for window in 9..=15_u8 {
                let mut forms = Forms::new(&plain, &mut deflater);
                let given = forms.fitting(window).clone();
                if given == plain {
                    assert!(bytes > 1 << window, "{bytes} bytes fit {window} bits");
                    plain_ones += 1;
                    continue;
                }
                let mut inflate = Decompress::new_with_window_bits(false, window);
                let mut output = Vec::with_capacity(bytes + 1);
                let payload = [frame::payload_slice(&given), &[0, 0, 0xff, 0xff]].concat();
                inflate.decompress_vec(&payload, &mut output, FlushDecompress::Sync).expect("it expands");
                assert_eq!(output, text.as_bytes(), "{bytes} bytes, {window} bits");
            }
        }
        assert!(plain_ones > 0);
    }
}
