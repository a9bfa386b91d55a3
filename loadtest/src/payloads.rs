//! The data that messages carry, in one size or several.

use std::str::FromStr;

use crate::stamp::{Payload, Stamp};

/// Most sizes that a mix may have: each is a set of random data in memory.
const MAX_KINDS: usize = 16;

/// Largest size of data, in bytes.
pub const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Sizes of data, each with its share of the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<(usize, u64)>);

impl Mix {
    /// All messages of one size.
    pub fn of_one_size(bytes: usize) -> Self {
        Self(vec![(bytes, 1)])
    }

    /// The mean size in bytes.
    pub fn mean_bytes(&self) -> f64 {
        let total: u64 = self.0.iter().map(|(_, share)| share).sum();
        self.0.iter().map(|(bytes, share)| *bytes as f64 * *share as f64).sum::<f64>() / total as f64
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not a mix of sizes: use BYTES:SHARE,BYTES:SHARE, as in 64:9,1024:1");
        let kinds = text.split(',').map(|kind| {
            let (bytes, share) = kind.split_once(':').ok_or_else(wrong)?;
            let bytes: u64 = bytes.trim().parse().map_err(|_| wrong())?;
            let share: u32 = share.trim().parse().map_err(|_| wrong())?;
            if bytes > MAX_BYTES || share == 0 { Err(wrong()) } else { Ok((bytes as usize, share.into())) }
        });
        let kinds = kinds.collect::<Result<Vec<_>, String>>()?;
        if kinds.len() > MAX_KINDS { Err(format!("at most {MAX_KINDS} sizes")) } else { Ok(Self(kinds)) }
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: Vec<String> = self.0.iter().map(|(bytes, share)| format!("{bytes}:{share}")).collect();
        f.write_str(&kinds.join(","))
    }
}

/// The data of all messages. Which size a message has follows from its stamp, so that a receiver knows it too.
#[derive(Clone, Debug)]
pub struct Payloads {
    /// Each with the sum of its share and those before.
    kinds: Vec<(Payload, u64)>,
}

impl Payloads {
    /// Random data in the sizes of `mix`.
    pub fn new(mix: &Mix, seed: u64) -> Self {
        let mut sum = 0;
        let kinds = mix.0.iter().map(|(bytes, share)| {
            sum += share;
            (Payload::new(*bytes, seed), sum)
        });
        Self { kinds: kinds.collect() }
    }

    /// The data of a message.
    pub fn of(&self, stamp: &Stamp) -> &Payload {
        let [(only, _)] = self.kinds.as_slice() else {
            let (_, total) = self.kinds.last().expect("a mix has at least one size");
            let place = scattered(u64::from(stamp.sender) << 32 | u64::from(stamp.sequence)) % total;
            let kind = self.kinds.iter().find(|(_, sum)| place < *sum);
            return &kind.expect("the place is below the last sum").0;
        };
        only
    }
}

/// A number that looks random and follows from another (the finalizer of SplitMix64).
pub fn scattered(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_read_and_written_and_wrong_ones_are_refused() {
        let mix: Mix = "64:9,1024:1".parse().unwrap();
        assert_eq!(mix.to_string(), "64:9,1024:1");
        assert_eq!(mix.mean_bytes(), 160.0);
        for wrong in ["", "64", "64:0", "x:1", "99999999999:1", "64:1,"] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_come_in_their_shares_and_a_message_has_one() {
        let payloads = Payloads::new(&"100:3,400:1".parse().unwrap(), 1);
        let mut large = 0;
        for sequence in 0..10_000 {
            let stamp = Stamp { sender: 3, sequence, intended_us: 5 };
            let mut data = Vec::new();
            payloads.of(&stamp).write(&stamp, &mut data);
            large += usize::from(data.len() == 400);
            assert!(payloads.of(&stamp).matches(&stamp, &data));
        }
        assert!((2_300..2_700).contains(&large), "{large}");
    }
}
