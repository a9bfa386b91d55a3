//! Where log lines go: one line per event on standard error, written by a thread of its own.

pub mod line;
pub mod repeats;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

use self::line::Line;
use self::repeats::Repeats;
use crate::config::Settings;

/// What all threads log through.
struct Log {
    dropped: ErrorCounter,
    repeats: Repeats,
    started: Instant,
    /// Keeps the writing thread alive. Dropping it writes what still waits.
    writer: Mutex<Option<WorkerGuard>>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Dropping it ends the log as [`finish`] does.
pub struct Logging {
    /// Has the log follow other directives, which must be valid ones.
    pub set_level: Box<dyn Fn(&str)>,
}

impl Drop for Logging {
    fn drop(&mut self) {
        tell_left_out();
        finish();
    }
}

/// Writes what still waits, for a second at most; what is logged afterwards is lost. To be called before the process
/// ends otherwise than through `main`.
pub fn finish() {
    let writer = LOG.get().map(|log| log.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
    drop(writer);
}

/// Lines that were dropped because standard error was read too slowly. A shard never waits for the log.
pub fn dropped_lines() -> u64 {
    LOG.get().map_or(0, |log| log.dropped.dropped_lines() as u64)
}

/// Lines that were left out as repetitions.
pub fn left_out_lines() -> u64 {
    LOG.get().map_or(0, |log| log.repeats.left_out())
}

/// Logs how many lines of which kind were left out since this was last called. To be called every few seconds.
pub fn tell_left_out() {
    for (place, left_out) in LOG.get().map(|log| log.repeats.take_left_out()).unwrap_or_default() {
        let (file, line) = (place.file().unwrap_or_default(), place.line().unwrap_or_default());
        tracing::info!(left_out, level = %place.level(), file, line, "lines like one logged before were left out");
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
    line::on_instance(settings.instance_id.as_str());
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&settings.log_level));
    let line = Line { format: settings.log_format, for_journal: line::goes_to_journal() };
    let lines = fmt::layer().with_ansi(false).event_format(line).with_writer(OneLine { writer });
    let repeats = Repeats::new(settings.log_repeats);
    let _ = LOG.set(Log { dropped, repeats, started: Instant::now(), writer: Mutex::new(Some(guard)) });
    tracing_subscriber::registry().with(filter).with(LimitRepeats).with(lines).init();
    std::panic::set_hook(Box::new(log_panic));
    // Fails only when there is no subscriber any more, and it lives as long as the process.
    let set_level = Box::new(move |level: &str| drop(handle.reload(EnvFilter::new(level))));
    Logging { set_level }
}

/// A panic is a line like any other, with a backtrace if RUST_BACKTRACE asks for one: the text that the standard library
/// would write is no JSON, and whoever panics would wait for standard error.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("something that is no text");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(backtrace));
    tracing::error!(panic = message, place, thread, backtrace, "a thread has panicked");
    if message.starts_with(UNSTOPPABLE) {
        finish();
    }
}

/// How the messages of panics begin after which the standard library aborts the process: `panic in a destructor during
/// cleanup`, `panic in a function that cannot unwind`.
const UNSTOPPABLE: &str = "panic in a ";

/// Leaves out lines of a kind that has been logged often just before.
struct LimitRepeats;

impl<S: Subscriber> Layer<S> for LimitRepeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let Some(log) = LOG.get() else { return true };
        log.repeats.admit(event.metadata(), log.started.elapsed().as_millis() as u64)
    }
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
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::config::LogFormat;

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
        let format = if json { LogFormat::Json } else { LogFormat::Pretty };
        let lines = fmt::layer()
            .with_ansi(false)
            .event_format(Line { format, for_journal: false })
            .with_writer(out.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            line::on_shard(3);
            tracing::info!(room = HOSTILE, debug = ?HOSTILE, number = 7, "joined {HOSTILE}");
        });
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
        assert_eq!(
            (&event["room"], &event["shard"], &event["number"]),
            (&HOSTILE.into(), &3.into(), &7.into())
        );
        assert_eq!((&event["level"], &event["target"]), (&"INFO".into(), &module_path!().into()));
    }

    /// Set for the process that is to panic.
    const PANICS: &str = "TABLEFORGE_TEST_PANICS_TWICE";

    struct Falls;

    impl Drop for Falls {
        fn drop(&mut self) {
            panic!("the second");
        }
    }

    #[test]
    fn a_panic_that_ends_the_process_at_once_is_still_written() {
        if std::env::var_os(PANICS).is_some() {
            let _logging = start(&Settings { log_format: LogFormat::Json, ..Settings::for_tests() });
            let falls = || {
                let _falls = Falls;
                panic!("the first");
            };
            let _ = std::thread::Builder::new().name("falling".to_owned()).spawn(falls).unwrap().join();
            return;
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "logging::tests::a_panic_that_ends_the_process_at_once_is_still_written"])
            .arg("--nocapture")
            .env(PANICS, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
        let lines: Vec<serde_json::Value> =
            said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let panics: Vec<_> = lines.iter().filter_map(|line| line["panic"].as_str()).collect();
        assert_eq!(panics[..2], ["the first", "the second"], "{said}");
        assert!(panics.len() == 3 && panics[2].starts_with(UNSTOPPABLE), "{said}");
        assert!(lines.iter().all(|line| line["thread"] == "falling"), "{said}");
    }
}
