//! What a message carries so that its receivers can check it: sender, sequence, intended time.

use std::io::Write;

use memchr::memmem::Finder;

/// How the stamp begins inside a frame. Nothing else in a frame can look like it: a quote inside any
/// other string is escaped.
const MARKER: &[u8] = br#"{"s":"#;

/// Where a message comes from and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The number of the sending connection.
    pub sender: u32,
    /// How many messages that connection had sent before.
    pub sequence: u32,
    /// When the message was due, in microseconds since the run's epoch.
    pub intended_us: u64,
}

/// The application data of all messages: a stamp, filled up to one size.
#[derive(Clone, Debug)]
pub struct Payload {
    size: usize,
    filler: Vec<u8>,
}

impl Payload {
    /// Data of `size` bytes; or more, where the stamp alone is longer (about 45 bytes). The filler
    /// is random letters and digits, so that compression finds no more in it than in real text.
    pub fn new(size: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let filler = (0..size * 2).map(|_| random.alphanumeric() as u8).collect();
        Self { size, filler }
    }

    /// Appends the data of one message, a JSON object.
    pub fn write(&self, stamp: &Stamp, out: &mut Vec<u8>) {
        let start = out.len();
        let Stamp { sender, sequence, intended_us } = stamp;
        write!(out, r#"{{"s":{sender},"n":{sequence},"t":{intended_us}"#)
            .expect("writing to a Vec cannot fail");
        let wrapping = r#","p":""}"#.len();
        let room = self.size.saturating_sub(out.len() - start + wrapping);
        if room > 0 {
            // Each message begins somewhere else in the filler: data mixed up between two messages
            // cannot pass for the right one.
            let from = (*sender as usize).wrapping_mul(31).wrapping_add(*sequence as usize) % self.size;
            out.extend_from_slice(br#","p":""#);
            out.extend_from_slice(&self.filler[from..from + room]);
            out.push(b'"');
        }
        out.push(b'}');
    }

    /// Whether `data` is byte for byte what [`write`](Self::write) makes of `stamp`.
    pub fn matches(&self, stamp: &Stamp, data: &[u8]) -> bool {
        let mut original = Vec::with_capacity(self.size);
        self.write(stamp, &mut original);
        original == data
    }
}

/// Finds stamps in received messages.
#[derive(Debug)]
pub struct StampReader {
    finder: Finder<'static>,
    usual_place: usize,
}

impl StampReader {
    /// A reader that knows nothing about the messages yet.
    pub fn new() -> Self {
        Self { finder: Finder::new(MARKER), usual_place: 0 }
    }

    /// The stamp in a message, if it has one. Looks first where the last one was: envelopes
    /// differ little, and a search is what costs most about a delivery.
    pub fn find(&mut self, text: &[u8]) -> Option<Stamp> {
        if !text.get(self.usual_place..).is_some_and(|rest| rest.starts_with(MARKER)) {
            self.usual_place = self.finder.find(text)?;
        }
        let (sender, rest) = number(&text[self.usual_place + MARKER.len()..])?;
        let (sequence, rest) = number(rest.strip_prefix(br#","n":"#)?)?;
        let (intended_us, _) = number(rest.strip_prefix(br#","t":"#)?)?;
        Some(Stamp { sender: sender.try_into().ok()?, sequence: sequence.try_into().ok()?, intended_us })
    }
}

/// The decimal number that `bytes` begin with, and what follows it.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    /// Digits that every u64 has room for.
    const MOST_DIGITS: usize = 19;
    let (mut value, mut digits) = (0_u64, 0);
    while let Some(byte) = bytes.get(digits).filter(|byte| byte.is_ascii_digit()) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
        digits += 1;
    }
    (1..=MOST_DIGITS).contains(&digits).then(|| (value, &bytes[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { sender: 123, sequence: 17, intended_us: 1_234_567_890 };

    #[test]
    fn data_has_the_size_asked_for_and_is_json() {
        for size in [60, 128, 4_000] {
            let mut data = Vec::new();
            Payload::new(size, 1).write(&STAMP, &mut data);
            assert_eq!(data.len(), size);
            let parsed: serde_json::Value = serde_json::from_slice(&data).unwrap();
            assert_eq!(parsed["n"], 17);
        }
        let mut smallest = Vec::new();
        Payload::new(0, 1).write(&STAMP, &mut smallest);
        assert_eq!(smallest, br#"{"s":123,"n":17,"t":1234567890}"#);
    }

    #[test]
    fn a_stamp_is_found_wherever_the_envelope_puts_it() {
        let mut data = Vec::new();
        Payload::new(100, 1).write(&STAMP, &mut data);
        let mut reader = StampReader::new();
        for before in ["", r#"{"type":"room_message","data":"#, r#"{"data":"#, r#"{"data":"#, "  "] {
            let text = [before.as_bytes(), &data, b"}"].concat();
            assert_eq!(reader.find(&text), Some(STAMP), "after {before:?}");
        }
        assert_eq!(reader.find(br#"{"type":"pong"}"#), None);
        assert_eq!(reader.find(br#"{"s":1,"n":,"t":2}"#), None);
        assert_eq!(reader.find(br#"{"s":1,"n":2"#), None);
        assert_eq!(reader.find(br#"{"s":99999999999999999999,"n":1,"t":2}"#), None);
        assert_eq!(reader.find(br#"{"s":1,"n":1,"t":18446744073709551618}"#), None, "2^64 + 2");
    }

    #[test]
    fn changed_data_does_not_match() {
        let payload = Payload::new(100, 1);
        let mut data = Vec::new();
        payload.write(&STAMP, &mut data);
        assert!(payload.matches(&STAMP, &data));
        data[90] ^= 1;
        assert!(!payload.matches(&STAMP, &data));
        assert!(!payload.matches(&STAMP, &data[..99]));
    }
}
