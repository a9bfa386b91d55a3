//! A file of a test, gone when the test is over.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A file in the system's directory for temporary ones.
pub struct TempFile(PathBuf);

impl TempFile {
    /// Makes one that holds `text`.
    #[track_caller]
    pub fn new(text: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let file = Self(std::env::temp_dir().join(format!("tableforge-{}-{number}", std::process::id())));
        file.replace(text);
        file
    }

    /// Puts another file in its place, at once, as a careful program does.
    #[track_caller]
    pub fn replace(&self, text: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, text).expect("a file can be written");
        std::fs::rename(&new, &self.0).expect("it can be renamed");
    }

    /// Takes it away.
    #[track_caller]
    pub fn remove(&self) {
        std::fs::remove_file(&self.0).expect("the file is there");
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
