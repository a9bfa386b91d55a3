//! What the contract names and this version refuses.

use crate::config::setting::Group::NotSupported;
use crate::config::setting::Preset::Unset;
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    not_supported(
        "JWT_PUBLIC_KEY_FILE",
        "Public key that tokens are verified with (RS256, ES256, EdDSA).",
        &[],
    ),
    not_supported("JWKS_FILE", "Set of public keys that tokens are verified with.", &[]),
    not_supported("API_KEY", "Key for the administrative HTTP interface.", &[]),
    not_supported("TRUSTED_PROXIES", "Proxies whose word on the address of a client is believed.", &[]),
    not_supported("MAX_CONNECTIONS_PER_USER", "Connections of one user.", &["0"]),
    not_supported("MAX_CONNECTIONS_PER_ADDRESS", "Connections from one address.", &["0"]),
];

const fn not_supported(
    name: &'static str,
    prose: &'static str,
    harmless: &'static [&'static str],
) -> Setting {
    let kind = Kind::NotSupported { harmless };
    Setting { name, group: NotSupported, prose, default: Unset("none"), kind }
}
