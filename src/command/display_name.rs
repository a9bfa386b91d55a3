//! Display names without what would disturb the text around them.

use std::borrow::Cow;

/// `name` without control characters and without marks that change the direction of text (Unicode Standard Annex 9,
/// section 2): with those a name could hide itself, or turn round what stands behind it.
pub fn sanitized(name: &str) -> Cow<'_, str> {
    if name.chars().any(is_disturbing) {
        Cow::Owned(name.chars().filter(|letter| !is_disturbing(*letter)).collect())
    } else {
        Cow::Borrowed(name)
    }
}

fn is_disturbing(letter: char) -> bool {
    let is_direction_mark = matches!(
        letter,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    // Line and paragraph separators break lines like control characters.
    is_direction_mark || letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_disturbs_is_left_out() {
        assert_eq!(sanitized("Zoë \u{1f600} עברית"), "Zoë \u{1f600} עברית");
        assert_eq!(sanitized("a\u{202e}b\r\n\u{0}c\u{2066}\u{85}\u{2028}d\u{200f}"), "abcd");
        assert_eq!(sanitized("\u{202e}"), "");
    }
}
