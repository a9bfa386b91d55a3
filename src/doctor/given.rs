//! What can be made of settings that are not all right: the doctor looks at the rest of the machine all the same.

use crate::config::setting::{Group, SettingError, Source};
use crate::config::sources::Given;
use crate::config::{Mode, Settings};

/// What the doctor's other looks depend on.
const LOOKED_AT: [&str; 4] = ["WS_HOST", "WS_PORT", "WS_MAX_CONNECTIONS", "SHARDS"];

/// The settings without those that are wrong, and what is wrong with each of these, as the start of the server says it.
///
/// Settings that are allowed one by one and do not go together leave those that the other looks depend on.
///
/// # Errors
/// When not even the defaults hold.
pub(super) fn usable(
    read: Result<Vec<Given>, SettingError>,
) -> Result<(Settings, Vec<SettingError>), SettingError> {
    let mut wrong = Vec::new();
    let mut given = read.unwrap_or_else(|error| {
        wrong.push(error);
        Vec::new()
    });
    let mut is_reduced = false;
    loop {
        let error = match Settings::from_given(Mode::Serve, &given) {
            Ok(checked) => return Ok((checked.settings, wrong)),
            Err(error) => error,
        };
        let counts =
            |given: &Given| matches!(&error, SettingError::Value { name, .. } if given.setting.name == *name);
        if let Some(place) = given.iter().position(counts) {
            let name = given[place].setting.name;
            given.retain(|given| given.setting.name != name);
            wrong.push(error);
        } else if !is_reduced {
            is_reduced = true;
            given.retain(|given| {
                given.setting.group == Group::Redis || LOOKED_AT.contains(&given.setting.name)
            });
            given.push(Given::new("AUTH_REQUIRED", "false", Source::Default));
            // What one that was left out has torn apart is no fault of its own.
            if wrong.is_empty() {
                wrong.push(error);
            }
        } else {
            return Settings::from_given(Mode::Dev, &[]).map(|checked| (checked.settings, wrong));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable_of(values: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let given = values.iter().map(|(name, value)| Given::new(name, value, Source::Environment));
        let (settings, wrong) = usable(Ok(given.collect())).unwrap();
        (settings, wrong.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn each_wrong_setting_is_named_and_the_others_are_kept() {
        let (settings, wrong) = usable_of(&[
            ("AUTH_REQUIRED", "false"),
            ("WS_PORT", "x"),
            ("SHARDS", "101"),
            ("WS_MAX_CONNECTIONS", "7"),
        ]);
        assert_eq!((settings.ws_max_connections, settings.ws_port), (7, 3001));
        assert!(wrong.len() == 2 && wrong[0].starts_with("WS_PORT: \"x\""), "{wrong:?}");
        assert!(wrong[1].starts_with("SHARDS: \"101\""), "{wrong:?}");
    }

    #[test]
    fn settings_that_do_not_go_together_leave_those_that_the_machine_is_asked_about() {
        let given = [
            ("WS_MAX_CONNECTIONS", "7"),
            ("REDIS_HOST", "r"),
            ("TLS_CERT_FILE", "/c"),
            ("AUTH_REQUIRED", "false"),
        ];
        let (settings, wrong) = usable_of(&given);
        assert_eq!(settings.ws_max_connections, 7);
        assert_eq!(settings.redis.map(|redis| redis.host).as_deref(), Some("r"));
        assert!(wrong.len() == 1 && wrong[0].contains("TLS_KEY_FILE"), "{wrong:?}");
    }

    #[test]
    fn what_follows_from_a_wrong_setting_is_not_said_as_well() {
        let (_, wrong) = usable_of(&[("JWT_SECRET", "short")]);
        assert!(wrong.len() == 1 && wrong[0].contains("32 bytes"), "{wrong:?}");
    }

    #[test]
    fn without_a_file_that_can_be_read_the_defaults_are_looked_at() {
        let file = SettingError::File { path: "f".into(), reason: "gone".into() };
        let (settings, wrong) = usable(Err(file)).unwrap();
        assert_eq!((settings.ws_port, wrong.len()), (3001, 1));
    }
}
