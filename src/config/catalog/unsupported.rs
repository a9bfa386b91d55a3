//! What the contract names and this version refuses.

use crate::config::setting::Group::NotSupported;
use crate::config::setting::Preset::Unset;
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
];

const fn not_supported(
    name: &'static str,
    prose: &'static str,
    harmless: &'static [&'static str],
) -> Setting {
    let kind = Kind::NotSupported { harmless };
    Setting { name, group: NotSupported, prose, default: Unset("none"), kind }
}
