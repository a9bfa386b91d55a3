//! The mask on every client frame's payload (RFC 6455 section 5.3).

/// A frame's masking key, turned so that its first byte belongs to the next payload byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mask([u8; 4]);

impl Mask {
    /// The key as it stands in the frame's header.
    pub(super) fn new(key: [u8; 4]) -> Self {
        Self(key)
    }

    /// Unmasks the next `payload` bytes of the frame in place. The frame's payload may come in any
    /// number of pieces, each passed once and in order.
    pub(super) fn apply(&mut self, payload: &mut [u8]) {
        let Self(key) = self;
        let [a, b, c, d] = *key;
        let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        // Eight bytes at a time, in a form that the compiler turns into vector instructions.
        let (words, rest) = payload.as_chunks_mut::<8>();
        for word in words {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
            *byte ^= key;
        }
        key.rotate_left(payload.len() % 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_pieces_unmask_like_the_byte_by_byte_rule(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            key: [u8; 4],
            cuts in proptest::collection::vec(0usize..200, 0..6),
        ) {
            let expected: Vec<u8> = payload.iter().enumerate().map(|(i, b)| b ^ key[i % 4]).collect();
            let mut unmasked = payload.clone();
            let mut mask = Mask::new(key);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(payload.len())).collect();
            cuts.push(payload.len());
            cuts.sort_unstable();
            let mut start = 0;
            for cut in cuts {
                mask.apply(&mut unmasked[start..cut]);
                start = cut;
            }
            prop_assert_eq!(unmasked, expected);
        }
    }
}
