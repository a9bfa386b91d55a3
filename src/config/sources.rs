//! Where values of settings come from: flag over environment over file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, ValueHint, value_parser};

use super::catalog::{self, settings};
use crate::config::setting::{Setting, SettingError, Source};
use crate::config::{Checked, Mode, Settings};

/// The value of one setting, as given.
#[derive(Clone)]
pub struct Given {
    /// The setting.
    pub setting: &'static Setting,
    /// Its value, not checked yet.
    pub value: String,
    /// Where it came from.
    pub source: Source,
}

impl Given {
    /// A value for the setting called `name`.
    ///
    /// # Panics
    /// When there is no such setting.
    pub fn new(name: &str, value: &str, source: Source) -> Self {
        let setting = catalog::find(name).unwrap_or_else(|| panic!("{name} is not a setting"));
        Self { setting, value: value.into(), source }
    }
}

/// The command-line arguments of `serve`, or of `dev` where `DEV` is true: one flag and one
/// environment variable per setting, and `--config`.
pub struct SettingArgs<const DEV: bool> {
    values: Vec<(&'static Setting, OsString, Source)>,
    config: Option<PathBuf>,
}

const CONFIG: &str = "config";

impl<const DEV: bool> clap::Args for SettingArgs<DEV> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .value_hint(ValueHint::FilePath)
            .help("TOML file with settings; flags and environment variables come before it");
        command.arg(config).args(settings().map(argument::<DEV>))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument<const DEV: bool>(setting: &'static Setting) -> Arg {
    let unit = match setting.unit() {
        "" => "VALUE",
        unit => unit,
    };
    let default = match (&setting.default, DEV) {
        (crate::config::setting::Preset::PerMode { serve, .. }, false) => (*serve).to_string(),
        (crate::config::setting::Preset::PerMode { dev, .. }, true) => (*dev).to_string(),
        (preset, _) => preset.to_string(),
    };
    Arg::new(setting.name)
        .long(setting.flag())
        .env(setting.name)
        .hide_env_values(true)
        .value_name(unit.to_uppercase())
        .value_parser(value_parser!(OsString))
        .value_hint(if setting.name.ends_with("_FILE") { ValueHint::FilePath } else { ValueHint::Other })
        .help_heading(setting.group.heading())
        .help(format!("{} [default: {default}] [allowed: {}]", setting.prose, setting.allowed()))
        .hide(DEV && setting.serve_only())
}

impl<const DEV: bool> clap::FromArgMatches for SettingArgs<DEV> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values = settings().filter_map(|setting| {
            let value = matches.get_one::<OsString>(setting.name)?.clone();
            match matches.value_source(setting.name) {
                Some(ValueSource::EnvVariable) => {
                    // `WS_PORT=` is how container files say "not set".
                    (!value.is_empty()).then_some((setting, value, Source::Environment))
                }
                _ => Some((setting, value, Source::Flag)),
            }
        });
        Ok(Self { values: values.collect(), config: matches.get_one(CONFIG).cloned() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<const DEV: bool> SettingArgs<DEV> {
    /// The command that takes these arguments.
    pub const MODE: Mode = if DEV { Mode::Dev } else { Mode::Serve };

    /// Reads the file, if one is named, and checks all values.
    ///
    /// # Errors
    /// When the file cannot be read, a value is not allowed, or values do not go together.
    pub fn load(&self) -> Result<Checked, SettingError> {
        Settings::from_given(Self::MODE, &self.read()?)
    }

    /// Reads the file, if one is named: all values, not checked yet. Where there are two of a setting, the first counts.
    ///
    /// # Errors
    /// When the file cannot be read, or a value is not text.
    pub fn read(&self) -> Result<Vec<Given>, SettingError> {
        let mut given = Vec::new();
        for (setting, value, source) in &self.values {
            let value = value.to_str().ok_or_else(|| {
                SettingError::Together(format!("{}: the value is not valid UTF-8", setting.name))
            })?;
            given.push(Given { setting, value: value.to_owned(), source: source.clone() });
        }
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path).map_err(|error| SettingError::File {
                path: path.display().to_string(),
                reason: format!("cannot read the settings: {error}"),
            })?;
            given.extend(parse_file(path, &text)?);
        }
        Ok(given)
    }
}

/// Reads the text of the TOML file at `path`: one key per setting, `redis_host` or `redis-host`.
///
/// # Errors
/// When it is not TOML, a key is not a setting or there twice, or a value is a table or the like.
pub fn parse_file(path: &Path, text: &str) -> Result<Vec<Given>, SettingError> {
    let shown = path.display().to_string();
    let refused = |reason: String| SettingError::File { path: shown.clone(), reason };
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        refused(format!("line {line}: {}", error.message()))
    })?;
    let mut given: Vec<Given> = Vec::new();
    for (key, value) in &table {
        let name = key.replace('-', "_").to_ascii_uppercase();
        let Some(setting) = catalog::find(&name) else {
            return Err(SettingError::UnknownKey {
                path: shown.clone(),
                key: key.clone(),
                instead: instead_of(key),
            });
        };
        if given.iter().any(|other| other.setting.name == name) {
            return Err(refused(format!("{} is there twice, as two spellings", setting.key())));
        }
        let value = plain(value).ok_or_else(|| {
            refused(format!(
                "{key} is {}; allowed: text, a number, true or false, a list of texts",
                value.type_str()
            ))
        })?;
        given.push(Given { setting, value, source: Source::File(path.to_owned()) });
    }
    Ok(given)
}

/// A TOML value as it would be written in the environment.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(n) => Some(n.to_string()),
        toml::Value::Boolean(on) => Some(on.to_string()),
        toml::Value::Array(items) => {
            let texts: Option<Vec<_>> = items.iter().map(toml::Value::as_str).collect();
            Some(texts?.join(","))
        }
        _ => None,
    }
}

/// Letters that a key may differ in from the setting that is meant: more are another word.
const MISTYPED: usize = 3;

/// What to write instead of a key that is no setting.
fn instead_of(key: &str) -> String {
    let key = key.replace('-', "_").to_ascii_lowercase();
    let differing = |setting: &Setting| strsim::damerau_levenshtein(&key, &setting.key());
    let nearest = settings().map(|setting| (differing(setting), setting.key())).min();
    // Of a short key, few letters are already most.
    match nearest.filter(|(differing, _)| *differing <= MISTYPED.min(key.len() / 3)) {
        Some((_, nearest)) => format!("did you mean {nearest:?}?"),
        None => "tableforge serve --help lists all settings".to_owned(),
    }
}
