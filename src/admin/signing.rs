//! Signatures of administrative commands in Redis: who wrote them, when, and that each is carried out once.
//!
//! A command is one flat JSON object. Its signature is the HMAC-SHA256 (RFC 2104) of the same object without
//! `signature`, its keys sorted and without white space, in hexadecimal digits.

use std::collections::{BTreeMap, HashMap};

use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;

/// Milliseconds that a command's `timestamp` may be away from the receiver's clock: instances whose clocks are some
/// minutes apart still understand each other.
pub const WINDOW_MS: u64 = 600_000;

/// Bytes of a nonce: a UUID has 36.
const NONCE_BYTES: usize = 128;

/// Nonces that are remembered: commands of twenty minutes. Beyond it commands are refused.
const NONCES: usize = 100_000;

/// Bytes of a command: a cluster's busiest rooms fit.
pub const COMMAND_BYTES: usize = 1 << 20;

/// A command's fields.
pub type Fields = BTreeMap<String, Value>;

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not one flat JSON object with the fields that every command has.
    #[error("not a flat JSON object with command, timestamp, nonce and signature")]
    Form,
    /// Not signed with this cluster's secret.
    #[error("the signature is wrong: all instances and programs need the same ADMIN_SECRET")]
    Signature,
    /// Too old, or from the future.
    #[error("the timestamp is more than ten minutes away: check the clocks")]
    Time,
    /// Carried out before.
    #[error("a command with this nonce has come already")]
    Repeated,
}

fn mac(secret: &[u8], fields: &Fields) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(&serde_json::to_vec(fields).expect("JSON values are always JSON"));
    mac
}

/// The JSON text of a signed command.
pub fn sign(secret: &[u8], mut fields: Fields, timestamp_ms: u64, nonce: &str) -> String {
    fields.insert("timestamp".into(), timestamp_ms.into());
    fields.insert("nonce".into(), nonce.into());
    let tag = mac(secret, &fields).finalize().into_bytes();
    let digits: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
    fields.insert("signature".into(), digits.into());
    serde_json::to_string(&fields).expect("JSON values are always JSON")
}

/// The commands that have come, so that none is carried out twice.
#[derive(Debug, Default)]
pub struct Seen(HashMap<String, u64>);

impl Seen {
    fn note(&mut self, nonce: &str, timestamp_ms: u64, now_ms: u64) -> bool {
        if self.0.len() >= NONCES {
            self.0.retain(|_, at| now_ms <= at.saturating_add(WINDOW_MS));
        }
        if self.0.len() >= NONCES || self.0.contains_key(nonce) {
            return false;
        }
        self.0.insert(nonce.to_owned(), timestamp_ms);
        true
    }
}

/// The fields of a command that is to be carried out.
///
/// # Errors
/// When it must not be.
pub fn verify(secret: &[u8], payload: &[u8], seen: &mut Seen, now_ms: u64) -> Result<Fields, Refused> {
    if payload.len() > COMMAND_BYTES {
        return Err(Refused::Form);
    }
    let mut fields: Fields = serde_json::from_slice(payload).map_err(|_| Refused::Form)?;
    let flat = |value: &Value| value.is_string() || value.is_boolean() || value.is_i64() || value.is_u64();
    if !fields.values().all(flat) {
        return Err(Refused::Form);
    }
    let Some(Value::String(signature)) = fields.remove("signature") else { return Err(Refused::Form) };
    let tag: Option<Vec<u8>> = (signature.len() == 64 && signature.is_ascii())
        .then(|| (0..64).step_by(2).map(|at| u8::from_str_radix(&signature[at..at + 2], 16).ok()).collect())
        .flatten();
    mac(secret, &fields).verify_slice(&tag.ok_or(Refused::Signature)?).map_err(|_| Refused::Signature)?;
    let timestamp = fields.get("timestamp").and_then(Value::as_u64).ok_or(Refused::Form)?;
    let nonce = fields.get("nonce").and_then(Value::as_str).ok_or(Refused::Form)?;
    if !(1..=NONCE_BYTES).contains(&nonce.len()) {
        return Err(Refused::Form);
    }
    if now_ms.abs_diff(timestamp) > WINDOW_MS {
        return Err(Refused::Time);
    }
    if seen.note(nonce, timestamp, now_ms) { Ok(fields) } else { Err(Refused::Repeated) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn fields() -> Fields {
        Fields::from([("command".to_owned(), "ban".into()), ("userId".to_owned(), "änn \"x\"".into())])
    }

    #[test]
    fn a_signed_command_is_taken_once_and_in_its_time() {
        let text = sign(SECRET, fields(), 1_000_000, "n-1");
        let mut seen = Seen::default();
        let taken = verify(SECRET, text.as_bytes(), &mut seen, 1_000_000).unwrap();
        assert_eq!(taken["userId"], "änn \"x\"");
        assert_eq!(verify(SECRET, text.as_bytes(), &mut seen, 1_000_000), Err(Refused::Repeated));
        for now in [1_000_000 + WINDOW_MS + 1, 1_000_000 - WINDOW_MS - 1] {
            assert_eq!(verify(SECRET, text.as_bytes(), &mut Seen::default(), now), Err(Refused::Time));
        }
    }

    #[test]
    fn the_signature_is_what_the_documentation_says() {
        // hmac.new(secret, json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(),
        // "sha256").hexdigest() in Python.
        let fields =
            Fields::from([("command".to_owned(), "disconnect".into()), ("userId".to_owned(), "ann".into())]);
        let text = sign(SECRET, fields, 1_767_225_600_000, "7f3a");
        let signature = "a43c9e70732a7710b364bc23fba3f1a8770f088f1468ccf1b4be60c1c21b5457";
        assert!(text.contains(signature), "{text}");
    }

    #[test]
    fn whatever_is_changed_or_of_another_form_is_refused() {
        let text = sign(SECRET, fields(), 5, "n");
        let verify = |text: &str| verify(SECRET, text.as_bytes(), &mut Seen::default(), 5).unwrap_err();
        assert_eq!(verify(&text.replace("ban", "unban")), Refused::Signature);
        assert_eq!(verify(&text.replacen('{', "{\"more\":1,", 1)), Refused::Signature);
        assert_eq!(verify(&text.replace("\"nonce\":\"n\"", "\"nonce\":[]")), Refused::Form);
        for wrong in ["", "{}", "[]", "{\"command\":\"ban\",\"signature\":1}"] {
            assert_eq!(verify(wrong), Refused::Form, "{wrong}");
        }
        assert_eq!(verify("{\"command\":\"ban\",\"signature\":\"00\"}"), Refused::Signature);
        let other = sign(b"another", fields(), 5, "n");
        assert_eq!(verify(&other), Refused::Signature);
    }
}
