//! SIGHUP: settings, keys and certificates are read again, and taken over all together or not at all.

use std::error::Error;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::accept::certificate::TlsAcceptor;
use crate::command::authorize::TokenVerifier;
use crate::command::driver::{KeyFileError, KeyFiles};
use crate::config::reload::{Change, compare};
use crate::config::setting::SettingError;
use crate::config::sources::Given;
use crate::config::{Mode, Settings};
use crate::instance::Instance;
use crate::preflight;
use crate::shard::envelope::{Envelope, Reloaded};
use crate::shard::outlet::Outlet;

/// Where the settings come from, and how they are read again.
pub struct Origin {
    /// The command that was given.
    pub mode: Mode,
    /// The values that hold.
    pub given: Vec<Given>,
    /// Reads all values anew.
    pub read: Box<dyn Fn() -> Result<Vec<Given>, SettingError>>,
    /// Has the log follow other directives.
    pub log_level: Box<dyn Fn(&str)>,
}

/// What tokens are verified with at the moment, and the files that its keys come from.
pub struct Keys {
    current: Arc<ArcSwapOption<TokenVerifier>>,
    files: Option<KeyFiles>,
}

impl Keys {
    /// The keys that `settings` name.
    ///
    /// # Errors
    /// When a file cannot be read or holds no usable key.
    pub fn read(settings: &Settings) -> Result<Self, KeyFileError> {
        let verifier = TokenVerifier::new(settings).map(Arc::new);
        let files = match &verifier {
            Some(verifier) => KeyFiles::watch(&settings.keys, verifier)?,
            None => None,
        };
        Ok(Self { current: Arc::new(ArcSwapOption::new(verifier)), files })
    }

    /// What tokens are verified with, for whoever looks each time.
    pub fn current(&self) -> Arc<ArcSwapOption<TokenVerifier>> {
        self.current.clone()
    }

    /// What tokens are verified with now.
    pub fn verifier(&self) -> Option<Arc<TokenVerifier>> {
        self.current.load_full()
    }

    fn replace(&mut self, new: Self) {
        self.current.store(new.verifier());
        if let Some(files) = std::mem::replace(&mut self.files, new.files) {
            files.stop();
        }
    }

    /// Stops looking at the files.
    pub fn stop(self) {
        if let Some(files) = self.files {
            files.stop();
        }
    }
}

/// Reads everything again when told to. Lives on the thread that waits for signals.
pub struct Reloader {
    /// Where the settings come from.
    pub origin: Origin,
    /// The process.
    pub instance: Arc<Instance>,
    /// The keys.
    pub keys: Keys,
    /// The certificate, if there is one.
    pub tls: Option<Arc<TlsAcceptor>>,
    /// The ways to all shards.
    pub shards: Vec<Outlet<Envelope>>,
}

impl Reloader {
    /// Reads everything again. What cannot be used changes nothing, and the log says why.
    pub fn reload(&mut self) {
        let cells = &self.instance.control;
        match self.read() {
            Ok((change, keys)) => {
                cells.reloads.add(1);
                self.adopt(change, keys);
            }
            Err(error) => {
                cells.reload_failures.add(1);
                tracing::error!(%error, "SIGHUP: nothing was changed, everything from before stays");
            }
        }
    }

    /// Everything that can fail. The certificate comes last, because it is taken over by being read.
    fn read(&self) -> Result<(Change, Keys), Box<dyn Error>> {
        let change = compare(self.origin.mode, &self.origin.given, &(self.origin.read)()?)?;
        let keys = Keys::read(&change.settings)?;
        let certificate = match (&self.tls, &change.settings.tls) {
            (Some(tls), Some(files)) => tls.reload(files.clone()),
            _ => Ok(()),
        };
        match certificate {
            Ok(()) => Ok((change, keys)),
            Err(error) => {
                keys.stop();
                Err(error.into())
            }
        }
    }

    fn adopt(&mut self, change: Change, keys: Keys) {
        let Change { settings, given, changed, waiting, notes } = change;
        self.keys.replace(keys);
        let settings = Arc::new(settings);
        self.instance.adopt(settings.clone());
        let reloaded = Arc::new(Reloaded { settings, verifier: self.keys.verifier() });
        for shard in &mut self.shards {
            shard.send(Envelope::Reloaded(reloaded.clone()));
            shard.flush();
        }
        self.origin.given = given;
        // What has changed is told whether the old level or the new one leaves out such lines, unless nothing is to be told.
        let report = if reloaded.settings.log_level == "off" { "off" } else { "info" };
        (self.origin.log_level)(report);
        let descriptors = changed.iter().any(|change| change.starts_with("WS_MAX_CONNECTIONS"));
        let warning =
            descriptors.then(|| preflight::descriptor_warning(reloaded.settings.ws_max_connections));
        notes.iter().chain(&warning.flatten()).for_each(|note| tracing::warn!("{note}"));
        let files = "keys and certificates were read again";
        if changed.is_empty() {
            tracing::info!("SIGHUP: {files}, no setting has changed");
        } else {
            tracing::info!(changed = changed.join("; "), "SIGHUP: {files}, settings have changed");
        }
        if !waiting.is_empty() {
            tracing::warn!(
                settings = waiting.join(", "),
                "SIGHUP: changed, but without effect until a restart"
            );
        }
        (self.origin.log_level)(&reloaded.settings.log_level);
    }
}
