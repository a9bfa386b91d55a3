//! The separate port for probes, metrics and administration.

pub mod driver;
mod seats;
