//! The settings of traces.

/// Where spans go, and how many requests are followed.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// The collector's address for traces, with its path; nothing is traced without.
    pub endpoint: Option<String>,
    /// Part of the requests that is followed, from 0 to 1.
    pub sample: f64,
}

impl TraceSettings {
    pub(super) const fn none() -> Self {
        Self { endpoint: None, sample: 0.0 }
    }
}
