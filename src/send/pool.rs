//! Memory that is used again.

/// Things kept for the next turn rather than freed, so that a busy shard does not allocate for each
/// receiver. What a whole period did not need is freed at its end, so that a burst's memory does not stay.
#[derive(Debug)]
pub struct Pool<T> {
    spare: Vec<T>,
    /// The fewest there were in this period.
    fewest: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { spare: Vec::new(), fewest: 0 }
    }
}

impl<T> Pool<T> {
    /// The thing that was put last, if there is any.
    pub fn take(&mut self) -> Option<T> {
        let taken = self.spare.pop();
        self.fewest = self.fewest.min(self.spare.len());
        taken
    }

    /// Keeps a thing.
    pub fn put(&mut self, item: T) {
        self.spare.push(item);
    }

    /// Frees what the period that ends now did not need.
    pub fn end_period(&mut self) {
        self.spare.truncate(self.spare.len() - self.fewest);
        self.spare.shrink_to(2 * self.spare.len());
        self.fewest = self.spare.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_keeps_what_a_period_needed_and_frees_the_rest() {
        let mut pool = Pool::default();
        (0..10).for_each(|item| pool.put(item));
        pool.end_period();
        assert_eq!(pool.spare.len(), 10, "put in this period: not known to be superfluous");
        let taken: Vec<_> = (0..4).filter_map(|_| pool.take()).collect();
        taken.into_iter().for_each(|item| pool.put(item));
        pool.end_period();
        assert_eq!(pool.spare.len(), 4);
        pool.end_period();
        assert_eq!(pool.spare.len(), 0);
    }
}
