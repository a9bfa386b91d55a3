//! The server's certificate: read from its files, and again when it has been renewed.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::NoServerSessionStorage;
use rustls::{RootCertStore, ServerConfig, version};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::config::TlsSettings;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file that cannot be read or has the wrong form.
    #[error("{setting}: {path}: {reason}; it must be {wanted} in PEM form")]
    File {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// Certificate and key do not go together, or are of a kind that cannot be used.
    #[error("TLS_CERT_FILE and TLS_KEY_FILE: {0}; the key must be that of the first certificate")]
    Together(rustls::Error),
    /// Nobody's word can be taken for the other end of a connection.
    #[error("the system has no certificates of authorities: set {0}")]
    NoAuthorities(&'static str),
    /// No randomness for session tickets.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// What new connections begin TLS with. All shards share it; they look at it once per connection.
pub struct TlsAcceptor {
    current: RwLock<Arc<ServerConfig>>,
}

impl TlsAcceptor {
    /// Reads the certificate and its key.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn new(files: TlsSettings) -> Result<Self, CertificateError> {
        Ok(Self { current: RwLock::new(load(&files)?) })
    }

    /// Reads the files again, or others. Connections that exist keep what they began with; new ones get the new
    /// certificate, also those that would have resumed a session from before.
    ///
    /// # Errors
    /// When the files cannot be used: the certificate from before stays.
    pub fn reload(&self, files: TlsSettings) -> Result<(), CertificateError> {
        let new = load(&files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// What a connection that begins now uses.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn load(files: &TlsSettings) -> Result<Arc<ServerConfig>, CertificateError> {
    let certificates = certificates("TLS_CERT_FILE", &files.cert_file)?;
    let key = private_key("TLS_KEY_FILE", &files.key_file)?;
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(CertificateError::Setup)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(CertificateError::Together)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Tickets, so that a session can be resumed on any shard and nothing is kept for it here.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new().map_err(CertificateError::Setup)?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// The certificates in the file that `setting` names, at least one.
///
/// # Errors
/// When the file cannot be read or has none.
pub fn certificates(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let wrong = |error| wrong_file(setting, path, error, "one certificate or a chain of them");
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect();
    let found = found.map_err(wrong)?;
    if found.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// The authorities that another's certificate is checked against: those in the `file` that `setting` names, or those
/// of the system.
///
/// # Errors
/// When there is none.
pub fn authorities(
    setting: &'static str,
    file: Option<&Path>,
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    if let Some(file) = file {
        return certificates(setting, file);
    }
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() { Err(CertificateError::NoAuthorities(setting)) } else { Ok(found) }
}

/// The same for connections that rustls itself makes.
///
/// # Errors
/// When there is none, or one in the file is of no use.
pub fn trusted(setting: &'static str, file: Option<&Path>) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    let authorities = authorities(setting, file)?;
    if file.is_some() {
        for authority in authorities {
            roots.add(authority).map_err(CertificateError::Setup)?;
        }
    } else {
        // The system may have some of a kind that is not known here.
        roots.add_parsable_certificates(authorities);
    }
    Ok(roots)
}

/// What calls of this server to `url` begin with, if that is an https:// address. `file` is as for [`authorities`].
///
/// # Errors
/// When there are no authorities.
pub fn tls_of_calls(
    url: &str,
    setting: &'static str,
    file: Option<&Path>,
) -> Result<TlsConfig, CertificateError> {
    if !url.starts_with("https://") {
        return Ok(TlsConfig::default());
    }
    let authorities = authorities(setting, file)?;
    let roots: Vec<_> =
        authorities.iter().map(|authority| Certificate::from_der(authority).to_owned()).collect();
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build())
}

/// The private key in the file that `setting` names.
///
/// # Errors
/// When the file cannot be read or has none.
pub fn private_key(setting: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| wrong_file(setting, path, error, "a private key (PKCS #8, PKCS #1 or SEC 1)"))
}

fn wrong_file(
    setting: &'static str,
    path: &Path,
    error: pem::Error,
    wanted: &'static str,
) -> CertificateError {
    let reason = match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "nothing of the kind is in it".to_owned(),
        error => error.to_string(),
    };
    CertificateError::File { setting, path: path.display().to_string(), reason, wanted }
}
