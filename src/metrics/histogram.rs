//! Histograms whose bounds are powers of two: finding the bucket is counting leading zeros.

use super::Cell;

/// Buckets of every histogram, the last one for all that is larger than the largest bound.
pub const BUCKETS: usize = 20;

/// How values are spread over buckets. The bounds are 2^`LOWEST`, 2^(`LOWEST`+1), … in the unit that is observed;
/// one thread observes, any thread reads.
#[derive(Debug)]
pub struct Histogram<const LOWEST: u32> {
    buckets: [Cell; BUCKETS],
    sum: Cell,
}

/// Microseconds, from 64 µs to 16.8 s: latencies of a shard.
pub type Micros = Histogram<6>;
/// Milliseconds, from 1 ms to 262 s: what is measured by the clocks of two machines.
pub type Millis = Histogram<0>;
/// Things, from 1 to 262,144: receivers, messages.
pub type Counts = Histogram<0>;
/// Bytes, from 64 to 16 MiB: batches and flushes.
pub type Sizes = Histogram<6>;

impl<const LOWEST: u32> Default for Histogram<LOWEST> {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Cell::default()), sum: Cell::default() }
    }
}

impl<const LOWEST: u32> Histogram<LOWEST> {
    /// Counts one value.
    #[inline]
    pub fn observe(&self, value: u64) {
        self.observe_many(value, 1);
    }

    /// Counts `count` values that are all `value`.
    #[inline]
    pub fn observe_many(&self, value: u64, count: u64) {
        self.buckets[Self::bucket(value)].add(count);
        self.sum.add(value.wrapping_mul(count));
    }

    #[inline]
    fn bucket(value: u64) -> usize {
        // A bound belongs to its bucket: the exponent of the next power of two, 0 for 0 and 1.
        let exponent = u64::BITS - value.saturating_sub(1).leading_zeros();
        (exponent.saturating_sub(LOWEST) as usize).min(BUCKETS - 1)
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }

    /// What has been counted: the bound of each bucket and how many values are in that one alone; the last has no
    /// bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        self.buckets.iter().enumerate().map(|(place, cell)| {
            let bound = (place < BUCKETS - 1).then(|| 1 << (LOWEST + place as u32));
            (bound, cell.get())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(histogram: &Histogram<6>) -> Vec<(Option<u64>, u64)> {
        histogram.buckets().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn a_bound_belongs_to_its_bucket_and_one_more_to_the_next() {
        let histogram = Histogram::<6>::default();
        for value in [0, 1, 64] {
            histogram.observe(value);
        }
        histogram.observe(65);
        histogram.observe_many(128, 4);
        assert_eq!(counted(&histogram), [(Some(64), 3), (Some(128), 5)]);
        assert_eq!(histogram.sum(), 65 + 65 + 512);
    }

    #[test]
    fn what_is_larger_than_every_bound_has_a_bucket_of_its_own() {
        let histogram = Histogram::<6>::default();
        histogram.observe(1 << 24);
        histogram.observe((1 << 24) + 1);
        histogram.observe(u64::MAX);
        assert_eq!(counted(&histogram), [(Some(1 << 24), 1), (None, 2)]);
    }

    #[test]
    fn counts_begin_at_one() {
        let histogram = Histogram::<0>::default();
        (1..=3).for_each(|value| histogram.observe(value));
        let buckets: Vec<_> = histogram.buckets().take(3).collect();
        assert_eq!(buckets, [(Some(1), 1), (Some(2), 1), (Some(4), 1)]);
    }
}
