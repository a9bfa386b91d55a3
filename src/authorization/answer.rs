//! Questions and answers as JSON over HTTP.

use serde_json::{Value, json};

use super::Verdict;
use crate::permission::{RoomRight, RoomRights};

/// The body of a question.
pub(super) fn question(user: &str, room: &str) -> String {
    json!({ "userId": user, "roomId": room, "action": "join" }).to_string()
}

/// What an answer means; `None` if it means nothing: another status than 200 and 403, or a body that is not
/// `{"allow":[…]}`. Rights that this server does not know are passed over.
pub(super) fn verdict(status: u16, body: &str) -> Option<Verdict> {
    match status {
        403 => Some(Verdict::Forbidden),
        200 => {
            let answer: Value = serde_json::from_str(body).ok()?;
            let names: Option<Vec<&str>> =
                answer.get("allow")?.as_array()?.iter().map(Value::as_str).collect();
            let rights =
                names?.into_iter().filter_map(RoomRight::parse).fold(RoomRights::NONE, RoomRights::with);
            Some(if rights.contains(RoomRight::Join) { Verdict::Allowed(rights) } else { Verdict::Forbidden })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        let join = RoomRights::NONE.with(RoomRight::Join);
        for (status, body, expected) in [
            (200, r#"{"allow":["join"]}"#, Some(Verdict::Allowed(join))),
            (
                200,
                r#"{"allow":["join","fly","publish"]}"#,
                Some(Verdict::Allowed(join.with(RoomRight::Publish))),
            ),
            (200, r#"{"allow":["publish"]}"#, Some(Verdict::Forbidden)),
            (200, r#"{"allow":[]}"#, Some(Verdict::Forbidden)),
            (403, "", Some(Verdict::Forbidden)),
            (200, "", None),
            (200, "true", None),
            (200, r#"{"allow":true}"#, None),
            (200, r#"{"allow":["join",1]}"#, None),
            (204, r#"{"allow":["join"]}"#, None),
            (302, r#"{"allow":["join"]}"#, None),
            (500, r#"{"allow":["join"]}"#, None),
        ] {
            assert_eq!(verdict(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn names_cannot_break_out_of_a_question() {
        let asked: Value = serde_json::from_str(&question("a\",\"roomId\":\"x", "r")).unwrap();
        assert_eq!(asked, json!({"userId": "a\",\"roomId\":\"x", "roomId": "r", "action": "join"}));
    }
}
