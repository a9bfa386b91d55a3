//! The settings of traces.

use std::path::PathBuf;

/// Where spans go, and how many requests are followed.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// The collector's address for traces, with its path; nothing is traced without.
    pub endpoint: Option<String>,
    /// The authorities that a collector at an https:// address is checked against; those of the system without.
    pub ca_file: Option<PathBuf>,
    /// Part of the requests that is followed, from 0 to 1.
    pub sample: f64,
}

impl TraceSettings {
    pub(super) const fn none() -> Self {
        Self { endpoint: None, ca_file: None, sample: 0.0 }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let is_encrypted = self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("https://"));
        if self.ca_file.is_some() && !is_encrypted {
            let text = "OTLP_CA_FILE is set without an https:// OTLP_ENDPOINT: nothing would be encrypted";
            return Err(text.into());
        }
        Ok(())
    }
}
