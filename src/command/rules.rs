//! The operator's own rules for messages: sizes and JSON Schemas by kind and room, compiled once.

use std::fmt;

use jsonschema::{PatternOptions, Validator};
use serde::Deserialize;
use serde_json::Value;

use super::rejection::ErrorCode;
use crate::config::RoomPattern;

/// Bytes of an error's text: paths and patterns may be long, and each refused message gets one.
const REASON_BYTES: usize = 500;

/// Bytes of a compiled regular expression: what a schema's patterns need, and not what would fill the memory.
const PATTERN_BYTES: usize = 1 << 20;

/// The kinds of messages that carry `data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// To a room.
    RoomMessage,
    /// To a user.
    UserMessage,
    /// To everyone.
    GlobalMessage,
}

/// All rules, in the order of the file.
#[derive(Default)]
pub struct MessageRules {
    rules: Vec<Rule>,
}

struct Rule {
    kind: Option<Kind>,
    rooms: Option<Vec<RoomPattern>>,
    max_bytes: Option<usize>,
    schema: Option<Validator>,
}

/// The file: TOML with `[[rule]]` tables, or JSON with a list `rule`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Written>,
}

/// A rule as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kind: Option<Kind>,
    rooms: Option<Vec<String>>,
    max_bytes: Option<usize>,
    schema: Option<Value>,
    schema_file: Option<String>,
}

/// Why a message was refused: the code and the words of the error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// `invalid_message` or `message_too_large`.
    pub code: ErrorCode,
    /// What is wrong, and where in `data`.
    pub reason: String,
}

impl MessageRules {
    /// Reads the rules out of a file's `text`, TOML or JSON. `read_schema` gives the text of a file that a rule's
    /// `schema_file` names.
    ///
    /// # Errors
    /// What is wrong, and in which rule, counted from 1.
    pub fn parse(
        text: &str,
        is_json: bool,
        read_schema: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<Self, String> {
        let file: File = if is_json {
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else {
            toml::from_str(text).map_err(|error| {
                let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                format!("line {line}: {}", error.message())
            })?
        };
        let rules = file.rule.into_iter().enumerate().map(|(index, written)| {
            Rule::compile(written, read_schema).map_err(|reason| format!("rule {}: {reason}", index + 1))
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Checks the `data` of a message, which is valid JSON; `room` only if it goes to one. Every rule that is about
    /// the message must hold.
    ///
    /// # Errors
    /// The first rule that does not.
    pub fn check(&self, kind: Kind, room: Option<&str>, data: &str) -> Result<(), Broken> {
        let mut value = None;
        for rule in self.rules.iter().filter(|rule| rule.covers(kind, room)) {
            if let Some(most) = rule.max_bytes.filter(|most| data.len() > *most) {
                let reason = format!("data has {} bytes: at most {most} are allowed here", data.len());
                return Err(Broken { code: ErrorCode::MessageTooLarge, reason });
            }
            let Some(schema) = &rule.schema else { continue };
            let value = match &mut value {
                Some(value) => value,
                unread => unread.insert(read(data)?),
            };
            if let Err(error) = schema.validate(value) {
                return Err(invalid(&format!("data{}: {}", error.instance_path(), error.masked())));
            }
        }
        Ok(())
    }
}

/// JSON that was read once already, by a parser that takes larger numbers.
fn read(data: &str) -> Result<Value, Broken> {
    serde_json::from_str(data).map_err(|error| invalid(&format!("data: {error}")))
}

fn invalid(reason: &str) -> Broken {
    let end = reason.floor_char_boundary(REASON_BYTES);
    Broken { code: ErrorCode::InvalidMessage, reason: reason[..end].to_owned() }
}

impl Rule {
    fn compile(
        written: Written,
        read_schema: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<Self, String> {
        let Written { kind, rooms, max_bytes, schema, schema_file } = written;
        if rooms.is_some() && kind.is_some_and(|kind| kind != Kind::RoomMessage) {
            return Err("rooms go with the kind room_message only: remove one of the two".to_owned());
        }
        let rooms = rooms.map(|rooms| rooms.iter().map(|room| pattern(room)).collect()).transpose()?;
        let schema = match (schema, schema_file) {
            (Some(_), Some(_)) => return Err("schema and schema_file: give one of the two".to_owned()),
            (Some(schema), None) => Some(compile(&schema)?),
            (None, Some(name)) => {
                let schema = serde_json::from_str(&read_schema(&name)?);
                let schema = schema.map_err(|error| format!("{name}: {error}"))?;
                Some(compile(&schema).map_err(|reason| format!("{name}: {reason}"))?)
            }
            (None, None) if max_bytes.is_none() => {
                return Err("it asks for nothing: give schema, schema_file or max_bytes".to_owned());
            }
            (None, None) => None,
        };
        Ok(Self { kind, rooms, max_bytes, schema })
    }

    fn covers(&self, kind: Kind, room: Option<&str>) -> bool {
        self.kind.is_none_or(|only| only == kind)
            && self.rooms.as_ref().is_none_or(|rooms| {
                room.is_some_and(|room| rooms.iter().any(|pattern| pattern.matches(room)))
            })
    }
}

fn pattern(room: &str) -> Result<RoomPattern, String> {
    RoomPattern::parse(room).ok_or_else(|| {
        format!("{room:?} is no room pattern: allowed are room names, and `*` at the end of one")
    })
}

/// Patterns are matched in linear time, and nothing is read from elsewhere.
fn compile(schema: &Value) -> Result<Validator, String> {
    let patterns = PatternOptions::regex().size_limit(PATTERN_BYTES);
    jsonschema::options()
        .with_pattern_options(patterns)
        .offline()
        .build(schema)
        .map_err(|error| format!("schema{}: {error}", error.instance_path()))
}

impl fmt::Debug for MessageRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageRules").field("rules", &self.rules.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLS: &str = r#"
        [[rule]]
        kind = "room_message"
        rooms = ["table-*"]
        max_bytes = 40
        [rule.schema]
        type = "object"
        required = ["roll"]
        [rule.schema.properties.roll]
        type = "integer"
        maximum = 20
        [[rule]]
        kind = "user_message"
        schema = { type = "string", pattern = "^(a|a)*$" }
    "#;

    fn no_file(_: &str) -> Result<String, String> {
        Err("no such file".to_owned())
    }

    fn rules(text: &str) -> Result<MessageRules, String> {
        MessageRules::parse(text, text.trim_start().starts_with('{'), &no_file)
    }

    fn broken(rules: &MessageRules, kind: Kind, room: Option<&str>, data: &str) -> (ErrorCode, String) {
        let broken = rules.check(kind, room, data).expect_err(data);
        (broken.code, broken.reason)
    }

    #[test]
    fn messages_are_held_to_the_rules_that_are_about_them() {
        let rules = rules(ROLLS).unwrap();
        let room = |room, data| rules.check(Kind::RoomMessage, Some(room), data);
        assert_eq!(room("table-1", r#"{"roll":17}"#), Ok(()));
        assert_eq!(room("lobby", r#""anything""#), Ok(()));
        assert_eq!(rules.check(Kind::GlobalMessage, None, "1"), Ok(()));
        let (code, reason) = broken(&rules, Kind::RoomMessage, Some("table-1"), r#"{"roll":21}"#);
        assert_eq!(code, ErrorCode::InvalidMessage);
        assert!(reason.starts_with("data/roll: ") && reason.contains("20"), "{reason}");
        let (_, reason) = broken(&rules, Kind::RoomMessage, Some("table-1"), "{}");
        assert!(reason.starts_with("data: ") && reason.contains("roll"), "{reason}");
        let long = format!("{:41}", "{}");
        assert_eq!(broken(&rules, Kind::RoomMessage, Some("table-1"), &long).0, ErrorCode::MessageTooLarge);
    }

    #[test]
    fn no_text_makes_a_pattern_slow_or_an_answer_long() {
        let rules = rules(ROLLS).unwrap();
        let evil = format!("\"{}!\"", "a".repeat(60_000));
        let (_, reason) = broken(&rules, Kind::UserMessage, None, &evil);
        assert!(reason.len() <= REASON_BYTES, "{} bytes", reason.len());
        let deep = format!("{{\"roll\":{}}}", "9".repeat(30));
        assert!(rules.check(Kind::RoomMessage, Some("table-1"), &deep).is_err());
    }

    #[test]
    fn the_same_rules_may_be_written_as_json_and_a_schema_may_stand_in_a_file() {
        let text = r#"{"rule": [{"rooms": ["r"], "schema_file": "s.json"}]}"#;
        let rules = MessageRules::parse(text, true, &|name| {
            assert_eq!(name, "s.json");
            Ok(r#"{"type": "boolean"}"#.to_owned())
        });
        let rules = rules.unwrap();
        assert_eq!(rules.check(Kind::RoomMessage, Some("r"), "true"), Ok(()));
        assert!(rules.check(Kind::RoomMessage, Some("r"), "1").is_err());
    }

    #[test]
    fn a_wrong_rule_is_named() {
        for (text, words) in [
            ("[[rule]]\nmax_bytes = 1\n[[rule]]\nschema = { type = \"strin\" }", "rule 2: schema/type"),
            ("[[rule]]\nkind = \"shout\"\nmax_bytes = 1", "line 2"),
            ("[[rule]]\nrooms = [\"a b\"]\nmax_bytes = 1", "rule 1: \"a b\" is no room pattern"),
            ("[[rule]]\nrooms = [\"a\"]\nkind = \"user_message\"\nmax_bytes = 1", "rule 1: rooms go with"),
            ("[[rule]]\nrooms = [\"a\"]", "rule 1: it asks for nothing"),
            ("[[rule]]\nschema_file = \"s\"", "rule 1: no such file"),
            ("[[rule]]\nschema = true\nschema_file = \"s\"", "rule 1: schema and schema_file"),
            ("[[rule]]\nschema = { \"$ref\" = \"https://example.org/s\" }", "rule 1: schema"),
            ("[[rule]]\nschema = { pattern = \"(\" }", "rule 1: schema/pattern"),
            ("[[rules]]", "line 1"),
            ("{\"rule\": 1}", "line 1"),
        ] {
            let error = rules(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
