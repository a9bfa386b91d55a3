//! What the contract names and this version refuses.

use crate::config::setting::Group::NotSupported;
use crate::config::setting::Preset::Unset;
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    not_supported("TLS_CERT_FILE", "Certificate for TLS.", &[]),
    not_supported("TLS_KEY_FILE", "Private key for TLS.", &[]),
    not_supported("REDIS_TLS", "TLS on the link to Redis.", &["false", "off"]),
    not_supported("REDIS_CA_FILE", "Certificates that the one of Redis is checked against.", &[]),
];

const fn not_supported(
    name: &'static str,
    prose: &'static str,
    harmless: &'static [&'static str],
) -> Setting {
    let kind = Kind::NotSupported { harmless };
    Setting { name, group: NotSupported, prose, default: Unset("none"), kind }
}
