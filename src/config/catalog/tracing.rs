//! Which requests are followed, and where the spans go.

use super::{path, put};
use crate::config::setting::Group::Tracing;
use crate::config::setting::Preset::{Is, Unset};
use crate::config::setting::{Kind, Setting};

/// In the order in which they are listed.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "OTLP_ENDPOINT",
        group: Tracing,
        prose: "OpenTelemetry collector that gets spans (OTLP over HTTP, JSON); without a path, `/v1/traces` is added.",
        default: Unset("none: nothing is traced"),
        kind: Kind::Text {
            what: "the address of a collector",
            allowed: "http://HOST:PORT or http://HOST:PORT/PATH, or with https, without user and password",
            set: |d, value| put(&mut d.settings.traces.endpoint, endpoint(value).map(Some)),
        },
    },
    Setting {
        name: "OTLP_CA_FILE",
        group: Tracing,
        prose: "Certificates (PEM) of the authorities that an https:// OTLP_ENDPOINT is checked against.",
        default: Unset("those of the system"),
        kind: Kind::Text {
            what: "a path",
            allowed: "a file in PEM form",
            set: |d, value| path(&mut d.settings.traces.ca_file, value),
        },
    },
    Setting {
        name: "TRACE_SAMPLE",
        group: Tracing,
        prose: "Part of the upgrades, joins, publications and calls that is traced; a `traceparent` header decides for its request.",
        default: Is("0.01"),
        kind: Kind::Text {
            what: "a part",
            allowed: "a number from 0 to 1",
            set: |d, value| put(&mut d.settings.traces.sample, part(value)),
        },
    },
];

fn endpoint(value: &str) -> Option<String> {
    let value = value.trim();
    let (scheme, rest) = value.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let graphic = |b: u8| b.is_ascii_graphic() && !matches!(b, b'@' | b'?' | b'#' | b'"' | b'<' | b'>');
    let valid = !authority.is_empty() && !authority.starts_with(':') && rest.bytes().all(graphic);
    let path = if path.is_empty() { "v1/traces" } else { path };
    valid.then(|| format!("{scheme}://{authority}/{path}"))
}

fn part(value: &str) -> Option<f64> {
    value.trim().parse().ok().filter(|part| (0.0..=1.0).contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_path_gets_the_usual_one() {
        assert_eq!(endpoint("http://c:4318").as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(endpoint("https://c").as_deref(), Some("https://c/v1/traces"));
        assert_eq!(endpoint("http://c:4318/").as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(endpoint("http://[::1]:4318/otlp/v1").as_deref(), Some("http://[::1]:4318/otlp/v1"));
        for wrong in
            ["c:4318", "ftp://c", "http://", "https://", "http://u:p@c/", "http://c/a b", "http:///x"]
        {
            assert_eq!(endpoint(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_part_lies_between_nothing_and_all() {
        assert_eq!((part("0"), part(" 0.25 "), part("1")), (Some(0.0), Some(0.25), Some(1.0)));
        for wrong in ["-0.1", "1.1", "NaN", "inf", "1%", ""] {
            assert_eq!(part(wrong), None, "{wrong}");
        }
    }
}
