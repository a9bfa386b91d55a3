//! A child process that never outlives its owner.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Between two looks at whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`; what it writes is appended to the file `log`.
    ///
    /// # Errors
    /// The program or the file cannot be used; the text names it.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self, String> {
        let named = |what: &dyn std::fmt::Debug, why: std::io::Error| format!("{what:?}: {why}");
        let open = || File::options().create(true).append(true).open(log);
        let out = open().map_err(|why| named(&log, why))?;
        let errors = open().map_err(|why| named(&log, why))?;
        command.stdin(Stdio::null()).stdout(out).stderr(errors);
        let child = command.spawn().map_err(|why| named(&command.get_program(), why))?;
        Ok(Self { child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&self, signal: Signal) {
        // The child is not reaped before it is waited for, so the id is still its own.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }

    /// Ends it at once (`kill -9`).
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it ends, `most` at most.
    pub fn wait(&mut self, most: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + most;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
