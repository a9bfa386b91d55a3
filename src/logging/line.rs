//! The form of a line: one JSON object, or text for people. Both have the same fields.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;

thread_local! {
    /// The shard whose thread this is.
    static SHARD: Cell<Option<u8>> = const { Cell::new(None) };
}

/// The lines of this thread are those of a shard.
pub fn on_shard(shard: u8) {
    SHARD.set(Some(shard));
}

/// The name that every line carries.
static INSTANCE: OnceLock<String> = OnceLock::new();

/// Every line carries this name from now on; only the first call counts.
pub fn on_instance(name: &str) {
    let _ = INSTANCE.set(name.to_owned());
}

/// Writes lines.
pub struct Line {
    /// As JSON or as text.
    pub format: LogFormat,
    /// Whether each begins with its priority for systemd's journal (sd-daemon(3)), which takes it off.
    pub for_journal: bool,
}

/// Whether standard error goes straight to systemd's journal (`$JOURNAL_STREAM`, systemd.exec(5)).
pub fn goes_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

/// The priority of a line: error, warning, informational, debug (syslog(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The fields of one event, in the order in which it gives them.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let place = event.metadata();
        let surroundings = [
            ("instance", INSTANCE.get().map(|name| Value::from(name.as_str()))),
            ("shard", SHARD.get().map(Value::from)),
        ];
        let surroundings = surroundings.into_iter().filter_map(|(name, value)| Some((name, value?)));
        if self.for_journal {
            write!(writer, "<{}>", priority(*place.level()))?;
        }
        match self.format {
            LogFormat::Json => {
                let mut line = Map::new();
                // What the server itself says comes last: no field of an event takes its place.
                line.extend(fields.others.into_iter().map(|(name, value)| (name.to_owned(), value)));
                line.extend(surroundings.map(|(name, value)| (name.to_owned(), value)));
                line.insert("timestamp".into(), time.into());
                line.insert("level".into(), place.level().as_str().into());
                line.insert("target".into(), place.target().into());
                line.insert("message".into(), fields.message.into());
                writeln!(writer, "{}", Value::from(line))
            }
            LogFormat::Pretty => {
                let mut text = format!("{time} {:>5} {}: {}", place.level(), place.target(), fields.message);
                for (name, value) in
                    fields.others.iter().map(|(name, value)| (*name, value.clone())).chain(surroundings)
                {
                    write!(text, " {name}={value}")?;
                }
                writeln!(writer, "{text}")
            }
        }
    }
}
