//! An authority, and certificates that it has signed, in files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

/// An authority with a directory of its own, which goes when it is dropped.
pub struct Authority {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("authority-{}-{}", std::process::id(), MADE.fetch_add(1, Relaxed));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
        fs::create_dir_all(&directory).expect("the directory can be made");
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name.as_str());
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let authority = Self { directory, issuer };
        fs::write(authority.path("ca.pem"), authority.issuer.pem()).expect("the file can be written");
        authority
    }

    /// The path of a file in the authority's directory.
    pub fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().expect("the path is text").to_owned()
    }

    /// Signs a new certificate for `host` and writes `stem.pem` and `stem.key`; the certificate.
    pub fn issue(&self, stem: &str, host: &str) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec![host.to_owned()]).expect("a valid name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.path(&format!("{stem}.pem")), certificate.pem()).expect("the file can be written");
        fs::write(self.path(&format!("{stem}.key")), key.serialize_pem()).expect("the file can be written");
        certificate.der().clone()
    }

    /// What trusts this authority and no other.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("an authority's certificate");
        roots
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
