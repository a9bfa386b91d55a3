//! Where the server's certificate is.

use std::path::PathBuf;

/// The files of the certificate that clients are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The certificate, and those that lead from it to its authority, in PEM form.
    pub cert_file: PathBuf,
    /// The certificate's private key, in PEM form.
    pub key_file: PathBuf,
}
