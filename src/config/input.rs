//! The settings of what is checked in messages and names, beyond the protocol's own rules.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::setting::SettingError;
use crate::command::rules::MessageRules;

/// What messages and names have to look like.
#[derive(Clone, Debug, Default)]
pub struct InputSettings {
    /// The file with the rules of messages, if there is one.
    pub schemas_file: Option<PathBuf>,
    /// Its rules, compiled.
    pub rules: Arc<MessageRules>,
    /// Whether display names lose their control characters and direction marks.
    pub sanitize_names: bool,
}

impl InputSettings {
    /// Reads and compiles the file with the rules, if one is named.
    pub(super) fn load(&mut self) -> Result<(), SettingError> {
        let Some(path) = &self.schemas_file else { return Ok(()) };
        let refused = |reason| SettingError::File { path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path)
            .map_err(|error| refused(format!("cannot read the message rules: {error}")))?;
        let is_json = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
        let beside = path.parent().unwrap_or(Path::new(""));
        let read_schema = |name: &str| {
            let path = beside.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        self.rules = Arc::new(MessageRules::parse(&text, is_json, &read_schema).map_err(refused)?);
        Ok(())
    }
}
