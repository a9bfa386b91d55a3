//! Writing JSON objects straight into WebSocket frames.

use bytes::Bytes;

use crate::codec::frame::FrameWriter;

/// One JSON object on its way into a text frame. Fields appear in the order written.
#[derive(Debug)]
pub(super) struct ObjectWriter {
    frame: FrameWriter,
}

impl ObjectWriter {
    /// Begins the object with its `type`. `capacity` is about how many bytes the rest will have.
    pub(super) fn new(kind: &'static str, capacity: usize) -> Self {
        let mut frame = FrameWriter::with_capacity(kind.len() + 11 + capacity);
        frame.put(r#"{"type":""#);
        frame.put(kind);
        frame.put("\"");
        Self { frame }
    }

    /// A field whose value is a string.
    pub(super) fn string(mut self, key: &'static str, value: &str) -> Self {
        self.key(key);
        put_string(&mut self.frame, value);
        self
    }

    /// A field whose value is a string, if there is one.
    pub(super) fn optional_string(self, key: &'static str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.string(key, value),
            None => self,
        }
    }

    /// A field whose value is a whole number.
    pub(super) fn integer(mut self, key: &'static str, value: u64) -> Self {
        self.key(key);
        self.frame.put(itoa::Buffer::new().format(value));
        self
    }

    /// A field whose value is a whole number, if there is one.
    pub(super) fn optional_integer(self, key: &'static str, value: Option<u64>) -> Self {
        match value {
            Some(value) => self.integer(key, value),
            None => self,
        }
    }

    /// A field whose value is JSON already, taken over byte for byte.
    pub(super) fn raw(mut self, key: &'static str, json: &str) -> Self {
        self.key(key);
        self.frame.put(json);
        self
    }

    /// A field whose value is a list of JSON texts, taken over byte for byte.
    pub(super) fn raws<'a>(mut self, key: &'static str, values: impl Iterator<Item = &'a str>) -> Self {
        self.key(key);
        self.frame.put("[");
        for (place, json) in values.enumerate() {
            if place > 0 {
                self.frame.put(",");
            }
            self.frame.put(json);
        }
        self.frame.put("]");
        self
    }

    /// A field whose value is a list of strings.
    pub(super) fn strings<'a>(mut self, key: &'static str, values: impl Iterator<Item = &'a str>) -> Self {
        self.key(key);
        self.frame.put("[");
        for (place, value) in values.enumerate() {
            if place > 0 {
                self.frame.put(",");
            }
            put_string(&mut self.frame, value);
        }
        self.frame.put("]");
        self
    }

    /// A field whose value is a list of objects, each a list of fields with string values.
    pub(super) fn objects<'a, const N: usize>(
        mut self,
        key: &'static str,
        objects: impl Iterator<Item = [(&'static str, Option<&'a str>); N]>,
    ) -> Self {
        self.key(key);
        let mut before = "[";
        for fields in objects {
            self.frame.put(before);
            before = ",";
            let mut separator = "{\"";
            for (key, value) in fields {
                if let Some(value) = value {
                    self.frame.put(separator);
                    separator = ",\"";
                    self.frame.put(key);
                    self.frame.put("\":");
                    put_string(&mut self.frame, value);
                }
            }
            self.frame.put("}");
        }
        self.frame.put(if before == "[" { "[]" } else { "]" });
        self
    }

    /// The complete WebSocket frame.
    pub(super) fn finish(mut self) -> Bytes {
        self.frame.put("}");
        self.frame.finish()
    }

    fn key(&mut self, key: &'static str) {
        self.frame.put(",\"");
        self.frame.put(key);
        self.frame.put("\":");
    }
}

/// Writes `value` in quotes; escapes what RFC 8259 section 7 says must be, and nothing else.
fn put_string(frame: &mut FrameWriter, value: &str) {
    frame.put("\"");
    let mut rest = value;
    while let Some(at) = rest.bytes().position(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        frame.put(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => frame.put("\\\""),
            b'\\' => frame.put("\\\\"),
            control => {
                frame.put(if control < 0x10 { "\\u000" } else { "\\u001" });
                let digit = usize::from(control % 16);
                frame.put(&"0123456789abcdef"[digit..=digit]);
            }
        }
        rest = &rest[at + 1..];
    }
    frame.put(rest);
    frame.put("\"");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::frame::payload;
    use proptest::prelude::*;

    #[test]
    fn control_characters_quotes_and_backslashes_are_escaped_and_nothing_else() {
        let frame = ObjectWriter::new("t", 0).string("k", "\0\n\u{1f}\"\\ /\u{7f}é\u{2028}🎲").finish();
        let expected = "{\"type\":\"t\",\"k\":\"\\u0000\\u000a\\u001f\\\"\\\\ /\u{7f}é\u{2028}🎲\"}";
        assert_eq!(payload(&frame), expected);
    }

    #[test]
    fn lists_of_objects_leave_out_what_is_absent() {
        let list = |names: &[Option<&'static str>]| {
            let objects = names.iter().map(|name| [("a", Some("1")), ("name", *name)]);
            payload(&ObjectWriter::new("t", 0).objects("list", objects).finish())
        };
        assert_eq!(list(&[]), r#"{"type":"t","list":[]}"#);
        assert_eq!(list(&[None, Some("x")]), r#"{"type":"t","list":[{"a":"1"},{"a":"1","name":"x"}]}"#);
    }

    proptest! {
        #[test]
        fn any_string_and_number_is_read_back_by_another_implementation(
            text in proptest::collection::vec(any::<char>(), 0..100).prop_map(String::from_iter),
            number: u64,
        ) {
            let frame = ObjectWriter::new("t", 0).string("text", &text).integer("number", number).finish();
            let value: serde_json::Value = serde_json::from_slice(&payload(&frame)).unwrap();
            prop_assert_eq!(value, serde_json::json!({ "type": "t", "text": text, "number": number }));
        }
    }
}
