//! This instance and the others: Redis between them.
