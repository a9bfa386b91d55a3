//! A child process whose output is kept, and which never outlives its test.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal};

use super::eventually;

/// A running program. Dropping it kills it; in a failing test its output is printed.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command` under `name` (for messages) and collects what it writes.
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|why| panic!("{name} does not start: {why}"));
        let lines = Arc::default();
        let readers = vec![
            collect(child.stdout.take().expect("stdout is piped"), &lines),
            collect(child.stderr.take().expect("stderr is piped"), &lines),
        ];
        Self { name: name.to_owned(), child, lines, readers }
    }

    /// What it has written so far, stdout and stderr together.
    pub fn output(&self) -> String {
        self.lines.lock().expect("no reader panics").join("\n")
    }

    /// Its process id.
    #[allow(dead_code, reason = "the hostile tests share this harness and ask for it")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("it still runs");
    }

    /// Waits until it has ended by itself and all its output is read.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let status = eventually(&what, || self.child.try_wait().expect("the child is ours"));
        self.finish_output();
        status
    }

    /// Ends it at once, without any chance to clean up (`kill -9`).
    pub fn kill(&mut self) {
        // Fails only if it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.finish_output();
    }

    fn finish_output(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("no reader panics");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("── output of {} ──\n{}", self.name, self.output());
        }
    }
}

fn collect(stream: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            lines.lock().expect("no reader panics").push(line);
        }
    })
}
