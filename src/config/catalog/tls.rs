//! TLS for clients.

use super::path;
use crate::config::setting::Group::Server;
use crate::config::setting::Preset::Unset;
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "TLS_CERT_FILE",
        group: Server,
        prose: "Certificate chain (PEM) for wss:// and https://; goes with TLS_KEY_FILE. Read again on SIGHUP.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a file in PEM form",
            set: |d, value| path(&mut d.tls_cert_file, value),
        },
    },
    Setting {
        name: "TLS_KEY_FILE",
        group: Server,
        prose: "Private key (PEM) of the certificate.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a file in PEM form",
            set: |d, value| path(&mut d.tls_key_file, value),
        },
    },
];
