//! The JSON of one message: checked in full, its fields found, its `data` left as it was written.

use std::borrow::Cow;
use std::collections::HashSet;

use simd_json::{Buffers, ErrorType, INPUT_PADDING, Node, Tape};

use crate::limits;

/// Objects up to this many keys are searched for repeated keys pair by pair, which needs no memory;
/// larger ones by a hash set with random keys, so that no choice of names makes the search slow.
const PAIRWISE_KEYS: usize = 16;

/// Memory for reading JSON, used again for every message of a shard. Holds up to
/// about 30 bytes per byte of the largest message so far.
pub struct Scratch {
    /// A copy of the text, in which the parser replaces escapes.
    text: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
}

impl Default for Scratch {
    fn default() -> Self {
        let buffers = Buffers::with_max_depth(0, limits::JSON_DEPTH);
        Self { text: Vec::new(), buffers, tape: Tape(Vec::new()) }
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("bytes", &self.text.capacity()).finish_non_exhaustive()
    }
}

impl Scratch {
    /// Checks `source` and calls `read` with its content.
    ///
    /// # Errors
    /// What was wrong with the JSON and what would be right, if it is not what the protocol allows:
    /// no JSON of RFC 8259, nested deeper than [`limits::JSON_DEPTH`], a number that no double can
    /// hold, an object with a repeated key.
    pub(super) fn read<'a, T>(
        &'a mut self,
        source: &'a str,
        read: impl FnOnce(&Document<'_, 'a>) -> T,
    ) -> Result<T, Cow<'static, str>> {
        let Self { text, buffers, tape: empty } = self;
        text.clear();
        text.extend_from_slice(source.as_bytes());
        text.resize(source.len() + INPUT_PADDING, b' ');
        let mut tape = std::mem::replace(empty, Tape(Vec::new())).reset();
        let outcome = match simd_json::fill_tape_padded(text, source.len(), buffers, &mut tape) {
            Err(error) => Err(describe(&error)),
            Ok(()) => match repeated_key(&tape.0) {
                Some(key) => {
                    Err(format!("key {} is repeated: use each key once per object", quote(key)).into())
                }
                None => {
                    Ok(read(&Document { source, nodes: &tape.0, structurals: buffers.structural_indexes() }))
                }
            },
        };
        *empty = tape.reset();
        outcome
    }
}

/// One checked JSON text. `'d` is the reading of it, `'a` the text.
pub(super) struct Document<'d, 'a> {
    source: &'a str,
    /// The parser's list: keys and values in the order written, containers before their content.
    nodes: &'d [Node<'a>],
    /// Where in `source` brackets, colons, commas and the first bytes of strings and atoms are.
    structurals: &'d [u32],
}

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'d, 'a>(&'d [Node<'a>]);

impl<'d, 'a> Document<'d, 'a> {
    /// The whole text's value.
    pub(super) fn root(&self) -> Value<'d, 'a> {
        Value(self.nodes)
    }

    /// The text of a field of the root object, byte for byte as it was written.
    pub(super) fn source_of(&self, key: &str) -> Option<&'a str> {
        let byte = |structural: usize| -> Option<(usize, u8)> {
            let at = *self.structurals.get(structural)? as usize;
            Some((at, *self.source.as_bytes().get(at)?))
        };
        // Structurals are `{`, then for each field its key's quote, a colon, those of the value, and
        // the comma or brace after it.
        let mut next = 1;
        for (name, _) in self.root().fields() {
            let (start, _) = byte(next + 2)?;
            let mut end = next + 2;
            let mut depth = 0;
            loop {
                match byte(end)?.1 {
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                end += 1;
                if depth == 0 {
                    break;
                }
            }
            if name == key {
                let value = self.source.get(start..byte(end)?.0)?;
                return Some(value.trim_end_matches([' ', '\t', '\n', '\r']));
            }
            next = end + 1;
        }
        None
    }
}

impl<'d, 'a> Value<'d, 'a> {
    /// The value of a field, if this is an object that has it.
    pub(super) fn get(self, key: &str) -> Option<Value<'d, 'a>> {
        self.fields().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The value as a string.
    pub(super) fn as_str(self) -> Option<&'a str> {
        match self.0.first() {
            Some(Node::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The value as a bool.
    pub(super) fn as_bool(self) -> Option<bool> {
        match self.0.first() {
            Some(Node::Static(simd_json::StaticNode::Bool(value))) => Some(*value),
            _ => None,
        }
    }

    /// The value as a whole number from 0 to 2^64 - 1.
    pub(super) fn as_u64(self) -> Option<u64> {
        match self.0.first() {
            Some(Node::Static(simd_json::StaticNode::U64(value))) => Some(*value),
            _ => None,
        }
    }

    /// Whether the value is an object.
    pub(super) fn is_object(self) -> bool {
        matches!(self.0.first(), Some(Node::Object { .. }))
    }

    /// The entries of a list, if this is one.
    pub(super) fn items(self) -> Option<impl Iterator<Item = Value<'d, 'a>>> {
        let Some(node @ Node::Array { .. }) = self.0.first() else { return None };
        let mut rest = &self.0[1..=content_nodes(node)];
        Some(std::iter::from_fn(move || {
            let (value, after) = rest.split_at(1 + content_nodes(rest.first()?));
            rest = after;
            Some(Value(value))
        }))
    }

    /// What kind of value it is, with its article.
    pub(super) fn kind(self) -> &'static str {
        use simd_json::StaticNode;
        match self.0.first() {
            Some(Node::String(_)) => "a string",
            Some(Node::Object { .. }) => "an object",
            Some(Node::Array { .. }) => "a list",
            Some(Node::Static(StaticNode::Bool(_))) => "a bool",
            Some(Node::Static(StaticNode::Null)) | None => "null",
            Some(Node::Static(_)) => "a number",
        }
    }

    /// The fields of an object in the order written; nothing for any other value.
    fn fields(self) -> impl Iterator<Item = (&'a str, Value<'d, 'a>)> {
        let is_object = self.is_object();
        let content = if is_object { &self.0[1..=content_nodes(&self.0[0])] } else { &[] };
        let mut rest = content;
        std::iter::from_fn(move || {
            let [Node::String(key), value @ ..] = rest else { return None };
            let (value, after) = value.split_at(1 + content_nodes(value.first()?));
            rest = after;
            Some((*key, Value(value)))
        })
    }
}

/// How many nodes after `node` belong to it.
fn content_nodes(node: &Node<'_>) -> usize {
    match node {
        Node::Object { count, .. } | Node::Array { count, .. } => *count,
        Node::String(_) | Node::Static(_) => 0,
    }
}

/// A key that some object has twice, whichever way it was escaped.
fn repeated_key<'a>(nodes: &[Node<'a>]) -> Option<&'a str> {
    let objects = nodes.iter().enumerate().filter_map(|(at, node)| match node {
        Node::Object { len, .. } if *len > 1 => Some((*len, Value(&nodes[at..]))),
        _ => None,
    });
    for (len, object) in objects {
        let keys = object.fields().map(|(key, _)| key);
        if len > PAIRWISE_KEYS {
            let mut seen = HashSet::with_capacity(len);
            for key in keys {
                if !seen.insert(key) {
                    return Some(key);
                }
            }
        } else {
            let mut seen = [""; PAIRWISE_KEYS];
            for (i, key) in keys.enumerate() {
                if seen[..i].contains(&key) {
                    return Some(key);
                }
                seen[i] = key;
            }
        }
    }
    None
}

fn describe(error: &simd_json::Error) -> Cow<'static, str> {
    match error.error() {
        ErrorType::DepthLimitExceeded => {
            format!("nested too deep: use at most {} levels", limits::JSON_DEPTH).into()
        }
        ErrorType::InvalidNumber => format!(
            "number at byte {} is not JSON or out of range: keep within that of a double",
            error.index()
        )
        .into(),
        _ if error.index() > 0 => {
            format!("not JSON at byte {}: send one JSON object as of RFC 8259", error.index()).into()
        }
        _ => "not JSON: send one JSON object as of RFC 8259".into(),
    }
}

/// `text` as it may be quoted to the client: not more of it than a person wants to read.
pub(super) fn quote(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("\"{short}…\"") } else { format!("\"{short}\"") }
}

#[cfg(test)]
mod tests;
