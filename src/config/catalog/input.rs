//! What messages and names have to look like.

use super::put;
use crate::config::setting::Group::Input;
use crate::config::setting::Preset::{Is, Unset};
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "SCHEMAS_FILE",
        group: Input,
        prose: "File with rules for messages: sizes and JSON Schemas by kind and room.",
        default: Unset("none"),
        kind: Kind::Text {
            what: "a path",
            allowed: "the path of a TOML file, or of a JSON file that ends in .json",
            set: |d, value| {
                let path = (!value.is_empty()).then(|| Some(value.into()));
                put(&mut d.settings.input.schemas_file, path)
            },
        },
    },
    Setting {
        name: "SANITIZE_NAMES",
        group: Input,
        prose: "Whether display names lose control characters and marks that change the direction of text.",
        default: Is("false"),
        kind: Kind::Switch { set: |d, on| d.settings.input.sanitize_names = on },
    },
];
