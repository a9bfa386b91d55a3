//! Signatures of administrative commands in Redis: who wrote them, when, and that each is carried out once.
//!
//! A command is one flat JSON object. Its signature is the HMAC-SHA256 (RFC 2104) of the same object without
//! `signature`, its keys sorted and without white space, in hexadecimal digits.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

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

/// Commands that change nothing. They may come twice, and so often that their nonces cannot all be remembered.
const HARMLESS: [&str; 4] = ["answer", "instances", "rooms", "user"];

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
    /// From before this process, which cannot know whether it has been carried out.
    #[error("the timestamp is from before this server started: a repetition, or a clock that is behind")]
    Earlier,
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

/// When a command comes, by the receiver's clock.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// When the receiving process started, in milliseconds since 1970.
    pub started_ms: u64,
}

/// The commands that have come, so that none is carried out twice.
#[derive(Debug, Default)]
pub struct Seen {
    nonces: HashSet<Arc<str>>,
    /// The same by timestamp: the oldest go first.
    by_time: BTreeSet<(u64, Arc<str>)>,
}

impl Seen {
    fn note(&mut self, nonce: &str, timestamp_ms: u64, now_ms: u64) -> bool {
        while let Some((at, _)) = self.by_time.first()
            && at.saturating_add(WINDOW_MS) < now_ms
            && let Some((_, old)) = self.by_time.pop_first()
        {
            self.nonces.remove(&old);
        }
        if self.nonces.len() >= NONCES || self.nonces.contains(nonce) {
            return false;
        }
        let nonce: Arc<str> = nonce.into();
        self.by_time.insert((timestamp_ms, nonce.clone()));
        self.nonces.insert(nonce)
    }
}

/// The fields of a command that is to be carried out.
///
/// # Errors
/// When it must not be.
pub fn verify(secret: &[u8], payload: &[u8], seen: &mut Seen, at: Moment) -> Result<Fields, Refused> {
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
    if at.now_ms.abs_diff(timestamp) > WINDOW_MS {
        return Err(Refused::Time);
    }
    if fields.get("command").and_then(Value::as_str).is_some_and(|command| HARMLESS.contains(&command)) {
        return Ok(fields);
    }
    if timestamp < at.started_ms {
        return Err(Refused::Earlier);
    }
    if seen.note(nonce, timestamp, at.now_ms) { Ok(fields) } else { Err(Refused::Repeated) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn fields() -> Fields {
        Fields::from([("command".to_owned(), "ban".into()), ("userId".to_owned(), "änn \"x\"".into())])
    }

    fn at(now_ms: u64) -> Moment {
        Moment { now_ms, started_ms: 0 }
    }

    #[test]
    fn a_signed_command_is_taken_once_and_in_its_time() {
        let text = sign(SECRET, fields(), 1_000_000, "n-1");
        let mut seen = Seen::default();
        let taken = verify(SECRET, text.as_bytes(), &mut seen, at(1_000_000)).unwrap();
        assert_eq!(taken["userId"], "änn \"x\"");
        assert_eq!(verify(SECRET, text.as_bytes(), &mut seen, at(1_000_000)), Err(Refused::Repeated));
        for now in [1_000_000 + WINDOW_MS + 1, 1_000_000 - WINDOW_MS - 1] {
            assert_eq!(verify(SECRET, text.as_bytes(), &mut Seen::default(), at(now)), Err(Refused::Time));
        }
    }

    #[test]
    fn a_process_takes_no_orders_from_before_its_start_but_answers_questions() {
        let moment = Moment { now_ms: 1_000_000, started_ms: 999_000 };
        let verify = |text: String| verify(SECRET, text.as_bytes(), &mut Seen::default(), moment);
        assert_eq!(verify(sign(SECRET, fields(), 998_999, "n")), Err(Refused::Earlier));
        assert!(verify(sign(SECRET, fields(), 999_000, "n")).is_ok());
        for command in HARMLESS {
            let question = Fields::from([("command".to_owned(), command.into())]);
            assert!(verify(sign(SECRET, question, 998_000, "n")).is_ok(), "{command}");
        }
    }

    #[test]
    fn questions_use_up_no_nonces_and_old_ones_make_room() {
        let mut seen = Seen::default();
        let question = Fields::from([("command".to_owned(), "user".into())]);
        let text = sign(SECRET, question, 5, "n");
        assert!((0..2).all(|_| verify(SECRET, text.as_bytes(), &mut seen, at(5)).is_ok()));
        assert!(seen.nonces.is_empty());
        for number in 0..NONCES {
            assert!(seen.note(&number.to_string(), 5 + number as u64 % 2, 5));
        }
        assert!(!seen.note("one more", 5, 5 + WINDOW_MS));
        assert!(seen.note("one more", 6 + WINDOW_MS, 6 + WINDOW_MS));
        assert_eq!((seen.nonces.len(), seen.by_time.len()), (NONCES / 2 + 1, NONCES / 2 + 1));
        assert!(!seen.note("1", 6, 6 + WINDOW_MS));
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
        let verify = |text: &str| verify(SECRET, text.as_bytes(), &mut Seen::default(), at(5)).unwrap_err();
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
