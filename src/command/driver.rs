//! Reads the files with keys for tokens, and reads them again when they change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::authorize::TokenVerifier;
use super::keys::{KeyError, KeySet};
use crate::config::KeySettings;
use crate::limits;

/// Time between looks at the files: short beside the minutes for which issuers announce a new key, and a look
/// costs one system call per file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a file gave no keys. The text is one line that names setting and file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("{setting}: {path} cannot be read: {error}")]
    Read {
        /// The setting.
        setting: &'static str,
        /// Its value.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Its content is not what it must be.
    #[error("{setting}: {path} {error}")]
    Content {
        /// The setting.
        setting: &'static str,
        /// Its value.
        path: String,
        /// What is wrong.
        error: KeyError,
    },
}

/// What tells one state of a file from another without reading it: a file that is replaced has another
/// inode, one that is written another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file now; `None` if it cannot be looked at.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// One file and what it last held.
struct KeyFile {
    setting: &'static str,
    path: PathBuf,
    parse: fn(&str) -> Result<KeySet, KeyError>,
    stamp: Option<Stamp>,
    keys: KeySet,
}

impl KeyFile {
    fn open(
        setting: &'static str,
        path: &Path,
        parse: fn(&str) -> Result<KeySet, KeyError>,
    ) -> Result<Self, KeyFileError> {
        // The stamp comes first: what is written while the file is read shows at the next look.
        let stamp = Stamp::of(path);
        let mut file = Self { setting, path: path.into(), parse, stamp, keys: KeySet::default() };
        file.keys = file.read()?;
        Ok(file)
    }

    fn read(&self) -> Result<KeySet, KeyFileError> {
        let (setting, path) = (self.setting, self.path.display().to_string());
        let read = fs::metadata(&self.path).and_then(|found| {
            if found.size() > limits::KEY_FILE_BYTES {
                return Err(std::io::Error::other(format!(
                    "it has more than {} bytes",
                    limits::KEY_FILE_BYTES
                )));
            }
            fs::read_to_string(&self.path)
        });
        let text = read.map_err(|error| KeyFileError::Read { setting, path: path.clone(), error })?;
        (self.parse)(&text).map_err(|error| KeyFileError::Content { setting, path, error })
    }

    /// Reads the file if it has changed since the last look; whether there are new keys. One that cannot be used
    /// leaves the keys as they are, and is told of once.
    fn look(&mut self) -> bool {
        let stamp = Stamp::of(&self.path);
        if stamp == self.stamp {
            return false;
        }
        self.stamp = stamp;
        match self.read() {
            Ok(keys) => {
                tracing::info!(setting = self.setting, keys = keys.len(), "keys for tokens were read again");
                self.keys = keys;
                true
            }
            Err(error) => {
                tracing::error!(%error, "the keys that were read before stay in use");
                false
            }
        }
    }
}

/// The files with keys, watched by a thread of their own.
pub struct KeyFiles {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl KeyFiles {
    /// Reads the files that `settings` name, gives their keys to `verifier`, and does so again whenever one of them
    /// changes. `None` if there are no files.
    ///
    /// # Errors
    /// When a file cannot be read or holds no usable key.
    ///
    /// # Panics
    /// When no thread can be started.
    pub fn watch(
        settings: &KeySettings,
        verifier: &Arc<TokenVerifier>,
    ) -> Result<Option<Self>, KeyFileError> {
        let mut files = Vec::new();
        if let Some(path) = &settings.public_key_file {
            files.push(KeyFile::open("JWT_PUBLIC_KEY_FILE", path, KeySet::from_pem)?);
        }
        if let Some(path) = &settings.jwks_file {
            files.push(KeyFile::open("JWKS_FILE", path, KeySet::from_jwks)?);
        }
        if files.is_empty() {
            return Ok(None);
        }
        verifier.replace_keys(&all(&files));
        let (stop, stopped) = bounded(0);
        let verifier = verifier.clone();
        let thread = std::thread::Builder::new()
            .name("tf-keys".into())
            .spawn(move || keep_reading(files, &verifier, &stopped))
            .expect("the process may have one more thread");
        Ok(Some(Self { stop, thread }))
    }

    /// Stops reading.
    pub fn stop(self) {
        drop(self.stop);
        // A panic there has been printed; the keys simply stay as they were.
        let _ = self.thread.join();
    }
}

fn all(files: &[KeyFile]) -> KeySet {
    files.iter().fold(KeySet::default(), |set, file| set.and(&file.keys))
}

fn keep_reading(mut files: Vec<KeyFile>, verifier: &TokenVerifier, stopped: &Receiver<()>) {
    while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let changed = files.iter_mut().fold(false, |changed, file| file.look() | changed);
        if changed {
            verifier.replace_keys(&all(&files));
        }
    }
}
