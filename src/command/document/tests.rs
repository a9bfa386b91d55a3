//! What counts as JSON here, and that the parser agrees with another one about it.

use super::*;
use proptest::prelude::*;

/// Checks one text; the error's text if it is refused.
fn check(text: &str) -> Result<(), String> {
    Scratch::default().read(text, |_| ()).map_err(Cow::into_owned)
}

fn nested(levels: usize) -> String {
    format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn what_the_rfc_allows_is_taken() {
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(70_000));
    for text in [
        "{}",
        "[]",
        "null",
        " \t\r\n{ \"a\" : [ 1 , 2 ] } \n",
        r#"{"a":-0,"b":1E5,"c":1e+5,"d":0.1e-400,"e":1.0e5,"f":0e99999}"#,
        r#"{"a":12345678901234567890123456789,"b":-12345678901234567890123456789}"#,
        r#"{"a":18446744073709551615,"b":18446744073709551616,"c":-9223372036854775809}"#,
        r#"{"a":1e308,"b":1.7976931348623157e308,"c":-1.7976931348623157e308}"#,
        r#"{"a":"\u0000\"\\\/\b\f\n\r\t\u00e9\ud83c\udfb2é🎲"}"#,
        r#"{"":{"":{"":1}},"a":{"a":1}}"#,
        &long,
    ] {
        assert_eq!(check(text), Ok(()), "{text}");
    }
    let digits = format!("[{}]", "9".repeat(300));
    assert_eq!(check(&digits), Ok(()), "300 digits are within a double's range");
    let fraction = format!("[0.{}1]", "0".repeat(400));
    assert_eq!(check(&fraction), Ok(()), "a number too small for a double is zero");
}

#[test]
fn what_is_not_json_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "}",
        "nope",
        "{\"a\":1,}",
        "[1,]",
        "[,1]",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":\"x\"y}",
        "{a:1}",
        "{'a':1}",
        "{1:1}",
        "[1 2]",
        "[1}",
        "{\"a\":1]",
        "{} {}",
        "{}x",
        "{},",
        "{}\0",
        "\u{feff}{}",
        "{\"a\":\u{a0}1}",
        "{\"a\":\u{c}1}",
        "{\"a\":\0}",
        "[\"a",
        "[\"a\\",
        "[\"\t\"]",
        "[\"\n\"]",
        "[\"\0\"]",
        "[\"\u{1f}\"]",
        r#"["\x"]"#,
        r#"["\'"]"#,
        r#"["\u12"]"#,
        r#"["\u12g4"]"#,
        r#"["\U0041"]"#,
        "[tru]",
        "[truex]",
        "[True]",
        "[nul]",
        "[undefined]",
        "/*c*/{}",
    ] {
        assert!(check(text).is_err_and(|error| error.starts_with("not JSON")), "{text:?}: {:?}", check(text));
    }
}

#[test]
fn lone_surrogates_are_refused() {
    for text in [
        r#"["\ud800"]"#,
        r#"["\udc00"]"#,
        r#"["\ud800\ud800"]"#,
        r#"["\udc00\ud800"]"#,
        r#"["\ud800x"]"#,
        r#"["\ud800\n"]"#,
        r#"["\ud800\u0041"]"#,
        r#"{"\udfff":1}"#,
        r#"["a long string in front of it, so that a whole vector is read: \udbff"]"#,
    ] {
        assert!(check(text).is_err_and(|error| error.starts_with("not JSON")), "{text}");
    }
}

#[test]
fn numbers_are_json_and_within_the_range_of_a_double() {
    let huge = "1".repeat(400);
    let numbers = [
        "1e400",
        "-1e999",
        "1.8e308",
        "-1.8e308",
        "1e309",
        "0.1e310",
        "1e99999999999999999999",
        &huge,
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "1.e5",
        "1e",
        "1e+",
        "0x10",
        "-01",
        "--1",
        "1_0",
        "1a",
        "1\"",
        "1e5.5",
    ];
    for number in numbers {
        for text in [format!("[{number}]"), format!("{{\"a\":{number}}}"), format!("{{\"a\":-{number}}}")] {
            assert!(check(&text).is_err(), "{text}");
        }
    }
    for text in ["NaN", "Infinity", "-Infinity", "1e400", "[-1e400]"] {
        assert!(check(text).is_err(), "{text}");
    }
    let error = check("[1e400]").unwrap_err();
    assert!(error.contains("out of range"), "{error}");
    let error = check(&format!("[-{huge}]")).unwrap_err();
    assert!(error.contains("out of range"), "{error}");
}

#[test]
fn depth_32_is_taken_and_33_refused() {
    assert_eq!(check(&nested(32)), Ok(()));
    assert!(check(&nested(33)).is_err_and(|error| error.contains("at most 32 levels")));
    assert_eq!(check(&format!(r#"{{"data":{}}}"#, nested(31))), Ok(()));
    assert!(check(&format!(r#"{{"data":{}}}"#, nested(32))).is_err_and(|error| error.contains("nested")));
    assert!(check(&"[".repeat(60_000)).is_err());
    assert!(check(&"{\"a\":".repeat(12_000)).is_err());
    let wide = vec!["[[1]]"; 10_000].join(",");
    assert_eq!(check(&format!("[{wide}]")), Ok(()), "width is not depth");
}

#[test]
fn repeated_keys_are_refused_at_any_depth_and_however_escaped() {
    let many = |last: &str| {
        let keys: Vec<String> = (0..10_000).map(|i| format!("\"k{i}\":{i}")).collect();
        format!("{{\"list\":[{{{},\"{last}\":0}}]}}", keys.join(","))
    };
    for text in [
        r#"{"a":1,"a":1}"#.to_owned(),
        r#"{"a":1,"b":{"c":[{"d":1,"e":2,"d":3}]}}"#.to_owned(),
        r#"{"a":1,"\u0061":2}"#.to_owned(),
        r#"{"a\/b":1,"a/b":2}"#.to_owned(),
        r#"{"":1,"":2}"#.to_owned(),
        many("k0"),
        many("k9999"),
        many(r"\u006b17"),
    ] {
        let error = check(&text).unwrap_err();
        assert!(error.contains("is repeated"), "{error}");
    }
    assert_eq!(check(&many("K0")), Ok(()));
    assert_eq!(check(r#"{"a":{"a":{"a":["a","a"]}},"b":{"a":1}}"#), Ok(()), "only within one object");
    for keys in [PAIRWISE_KEYS, PAIRWISE_KEYS + 1] {
        let fields = |last: usize| {
            let keys: Vec<String> = (0..keys - 1).chain([last]).map(|i| format!("\"{i}\":[]")).collect();
            format!("{{{}}}", keys.join(","))
        };
        assert_eq!(check(&fields(keys)), Ok(()));
        assert!(check(&fields(keys - 2)).is_err(), "the last of {keys} keys");
    }
}

#[test]
fn source_of_a_field_is_found_among_others_and_trimmed() {
    let mut scratch = Scratch::default();
    let mut source =
        |text: &str| scratch.read(text, |document| document.source_of("data").map(str::to_owned));
    for (text, expected) in [
        (r#"{"data":1}"#, Some("1")),
        ("{ \"data\"\t:\r\n [ 1 , {\"data\" : 2 } ] \n }", Some("[ 1 , {\"data\" : 2 } ]")),
        (r#"{"a":{"data":1},"b":"\"data\":2","data" : "x\u0041\\" ,"c":{}}"#, Some(r#""x\u0041\\""#)),
        (r#"{"a":[[],{},[{}]],"d\u0061ta":null}"#, Some("null")),
        (r#"{"data":{}}"#, Some("{}")),
        (r#"{"a":{"data":1},"b":["data"]}"#, None),
        ("{}", None),
        (r#"["data",1]"#, None),
        (r#""data""#, None),
    ] {
        assert_eq!(source(text), Ok(expected.map(str::to_owned)), "{text}");
    }
}

#[test]
fn scratch_of_a_refused_text_serves_the_next_one() {
    let mut scratch = Scratch::default();
    assert!(scratch.read(r#"{"a":"\n","b":[1,2"#, |_| ()).is_err());
    assert!(scratch.read(r#"{"a":1,"a":2}"#, |_| ()).is_err());
    let text =
        scratch.read(r#"{"a":"\n\u0041"}"#, |document| document.root().get("a")?.as_str().map(str::to_owned));
    assert_eq!(text, Ok(Some("\nA".to_owned())));
}

/// Texts that are JSON or nearly so.
fn nearly_json() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(","),
        Just(":"),
        Just("\"a\""),
        Just("\"b\""),
        Just("\"\\u0061\""),
        Just("\"\\ud800\""),
        Just("\""),
        Just("\\"),
        Just("\\\""),
        Just("1"),
        Just("-"),
        Just("0"),
        Just("1e5"),
        Just("1e400"),
        Just("."),
        Just("E"),
        Just("true"),
        Just("false"),
        Just("null"),
        Just(" "),
        Just("\n"),
        Just("\t"),
        Just("\0"),
        Just("\u{c}"),
        Just("é"),
        Just("nul"),
        Just("[1,2]"),
        Just("{\"k\":[]}"),
        Just("                                                                "),
    ];
    proptest::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
}

/// A valid text with up to two bytes replaced.
fn spoilt_json() -> impl Strategy<Value = String> {
    let valid = prop_oneof![
        Just(r#"{"type":"room_message","roomId":"r","data":{"x":[1,-2.5e3,true,null,"a\u00e9\n"]}}"#),
        Just(r#"[0,-0,1e5,123456789012345678901234567890,"\ud83c\udfb2",{"a":{},"b":[]},false]"#),
    ];
    let bytes = prop_oneof![any::<u8>(), proptest::sample::select(b"{}[],:\"\\0e.-+ tfnu".to_vec())];
    (valid, proptest::collection::vec((0usize..90, bytes), 0..3)).prop_filter_map(
        "UTF-8",
        |(valid, spoils)| {
            let mut text = valid.as_bytes().to_vec();
            for (at, byte) in spoils {
                let at = at % text.len();
                text[at] = byte;
            }
            String::from_utf8(text).ok()
        },
    )
}

/// Whether the other parser takes `text`; it keeps the last of repeated keys, so they are left out.
fn accepted_by_serde_json(text: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn another_parser_agrees_about_nearly_json(text in prop_oneof![nearly_json(), spoilt_json()]) {
        match check(&text) {
            Err(error) if error.contains("is repeated") => {
                prop_assert!(accepted_by_serde_json(&text), "{}", text);
            }
            outcome => prop_assert_eq!(outcome.is_ok(), accepted_by_serde_json(&text), "{} {:?}", text, outcome),
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in proptest::collection::vec(any::<char>(), 0..200).prop_map(String::from_iter)) {
        let outcome = check(&text);
        prop_assert_eq!(outcome.is_ok(), accepted_by_serde_json(&text));
    }
}
