//! The running server.

use std::error::Error;

use crate::config::Settings;

/// Runs the server until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run(_settings: Settings) -> Result<(), Box<dyn Error>> {
    Ok(())
}
