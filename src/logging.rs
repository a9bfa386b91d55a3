//! Where log lines go: one line per event on standard error, written by a thread of its own.

use std::io::{self, Write};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFormat, Settings};

/// Keeps the writing thread alive. Dropping it writes what still waits.
pub struct Logging {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
    /// Has the log follow other directives, which must be valid ones.
    pub set_level: Box<dyn Fn(&str)>,
}

impl Logging {
    /// Lines that were dropped because standard error was read too slowly. A shard never waits for
    /// the log.
    pub fn dropped_lines(&self) -> usize {
        self.dropped.dropped_lines()
    }
}

/// Starts logging as `settings` want it, for the whole process. Call it before any thread is pinned
/// to a CPU: the writing thread inherits where it may run.
///
/// # Panics
/// When logging has been started before.
pub fn start(settings: &Settings) -> Logging {
    let (writer, guard) = NonBlockingBuilder::default().lossy(true).thread_name("log").finish(io::stderr());
    let dropped = writer.error_counter();
    let filter = EnvFilter::new(&settings.log_level);
    let lines = fmt().with_env_filter(filter).with_ansi(false).with_writer(OneLine { writer });
    // The subscriber, and so what reloads it, is of another type for each format.
    macro_rules! init {
        ($lines:expr) => {{
            let lines = $lines.with_filter_reloading();
            let handle = lines.reload_handle();
            lines.init();
            // Fails only when there is no subscriber any more, and it lives as long as the process.
            Box::new(move |level: &str| drop(handle.reload(EnvFilter::new(level))))
        }};
    }
    let set_level: Box<dyn Fn(&str)> = match settings.log_format {
        LogFormat::Json => init!(lines.json()),
        LogFormat::Pretty => init!(lines),
    };
    Logging { _writer: guard, dropped, set_level }
}

/// Writes each event on one line, whatever its fields hold. Names of users and rooms come from
/// outside; with a line break or a change of direction in them they could imitate other log lines.
struct OneLine {
    writer: NonBlocking,
}

impl<'a> MakeWriter<'a> for OneLine {
    type Writer = LineWriter<NonBlocking>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self.writer.clone())
    }
}

/// Escapes what is written to it; one write is one event, its last line break excepted.
struct LineWriter<W>(W);

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        if line.contains(is_hidden) {
            self.0.write_all(format!("{}\n", escape(line)).as_bytes())?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// `line` with hidden characters as `\uXXXX`, which in JSON is another way to write the same text.
fn escape(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        match c {
            '\n' => escaped.push_str("\\n"),
            hidden if is_hidden(hidden) => escaped.push_str(&format!("\\u{:04x}", hidden as u32)),
            plain => escaped.push(plain),
        }
    }
    escaped
}

/// Control characters, line and paragraph separators, and marks that change the direction of text.
fn is_hidden(c: char) -> bool {
    let separator = matches!(c, '\u{2028}' | '\u{2029}');
    let direction =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || separator || direction
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Shared {
        type Writer = LineWriter<Shared>;

        fn make_writer(&'a self) -> Self::Writer {
            LineWriter(self.clone())
        }
    }

    const HOSTILE: &str = "table\r\n2026 INFO forged\u{1b}[2J\u{202e}\u{2028}\u{85}end";

    fn logged(json: bool) -> String {
        let out = Shared::default();
        let lines = fmt().with_ansi(false).with_writer(out.clone());
        let log = || tracing::info!(room = HOSTILE, debug = ?HOSTILE, "joined {HOSTILE}");
        if json {
            tracing::subscriber::with_default(lines.json().finish(), log);
        } else {
            tracing::subscriber::with_default(lines.finish(), log);
        }
        let bytes = out.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_hostile_name_stays_on_one_line_in_both_formats() {
        for json in [false, true] {
            let text = logged(json);
            let line = text.strip_suffix('\n').unwrap();
            assert!(!line.contains(is_hidden), "{line:?}");
            assert!(line.contains("forged"), "{line:?}");
        }
    }

    #[test]
    fn escaped_json_is_still_the_same_text() {
        let event: serde_json::Value = serde_json::from_str(&logged(true)).unwrap();
        assert_eq!(event["fields"]["room"], HOSTILE);
    }
}
