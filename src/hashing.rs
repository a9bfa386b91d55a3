//! How maps are hashed whose keys others choose, and whose order can be seen.

/// Seeded at random, so that nobody can choose names that fall into one bucket.
#[cfg(not(test))]
pub type Hashing = foldhash::fast::RandomState;

/// In the simulation the order of a map may not differ from run to run.
#[cfg(test)]
pub type Hashing = foldhash::fast::FixedState;
