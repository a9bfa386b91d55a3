//! Each rule finds what was planted for it, on its line, and nothing in what is right.

use crate::rules::{self, FILE_LINES, FUNCTION_LINES, MACHINE_PATHS, TEMPORARY};
use crate::source::Source;

/// The lines of the findings in `body`, put behind a proper first line (so its own first line is 2).
#[track_caller]
fn lines(path: &str, body: &str) -> Vec<usize> {
    let text = format!("//! A subject.\n{body}");
    let mut lines: Vec<_> =
        rules::of_source(&Source::new(path, &text)).iter().map(|finding| finding.line).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_stage_may_not_import_a_later_one() {
    assert_eq!(lines("src/room/members.rs", "use crate::shard::envelope::Member;\n"), [2]);
    assert_eq!(lines("src/codec/header.rs", "\nfn f() { crate::world::run(); }\n"), [3]);
    let list = "use crate::{\n    codec::header,\n    identity::{RoomId, send},\n    uplink::batch,\n};\n";
    assert_eq!(lines("src/shard/session.rs", list), [5]);
}

#[test]
fn a_stage_may_import_earlier_ones_itself_and_what_cuts_across() {
    let imports =
        "use crate::codec::x;\nuse crate::shard::y;\nuse crate::identity::RoomId;\nuse shard_like::send;\n";
    assert!(lines("src/shard/session.rs", imports).is_empty());
    assert!(lines("src/room/driver.rs", "use crate::shard::envelope::Member;\n").is_empty());
    assert!(lines("src/server.rs", "use crate::world::x;\n").is_empty());
    assert!(lines("src/ring/tests.rs", "use crate::shard::outlet::Waker;\n").is_empty());
    assert!(lines("src/room/members.rs", "// see crate::shard::envelope\n").is_empty());
}

#[test]
fn unsafe_is_found_outside_the_ring_but_not_in_words_comments_and_strings() {
    assert_eq!(lines("src/send/flush.rs", "fn f() {\n    unsafe { g() }\n}\n"), [3]);
    assert_eq!(lines("tests/x.rs", "unsafe fn f() {}\n"), [2]);
    let harmless = "// unsafe\n/* unsafe /* unsafe */ unsafe */\nconst A: &str = \"unsafe \\\" unsafe\";\n\
                    const B: &str = r#\"unsafe \" unsafe\"#;\nfn unsafe_name<'unsafe_life>(c: char) { c == '\"'; }\n";
    assert!(lines("src/send/flush.rs", harmless).is_empty());
}

#[test]
fn unsafe_blocks_of_the_ring_need_their_reason() {
    assert_eq!(lines("src/ring/sqe.rs", "fn f() {\n    unsafe { g() }\n}\n"), [3]);
    assert_eq!(lines("src/ring/sqe.rs", "// why not\nunsafe impl Send for X {}\n"), [3]);
    let elsewhere = "fn f() {\n    // SAFETY: of the first.\n    unsafe { g() };\n    unsafe { h() };\n}\n";
    assert_eq!(lines("src/ring/sqe.rs", elsewhere), [5]);
    let reasons = "// SAFETY: X has no threads.\nunsafe impl Send for X {}\nfn f() {\n    // SAFETY: g is fine,\n    \
                   // in two lines.\n    let x =\n        unsafe { g() };\n}\n/// # Safety\n/// Never.\npub unsafe fn h() {}\n";
    assert!(lines("src/ring/sqe.rs", reasons).is_empty());
}

#[test]
fn clocks_executors_and_async_are_found_outside_drivers() {
    let planted = "use glommio::Task;\nasync fn f() {\n    g().await;\n    Instant::now();\n    SystemTime::now();\n}\n";
    assert_eq!(lines("src/uplink/batch.rs", planted), [2, 3, 4, 5, 6]);
    for allowed in ["src/uplink/driver.rs", "src/ring/wait.rs", "src/main.rs", "tests/contract/x.rs"] {
        assert!(lines(allowed, planted).is_empty(), "{allowed}");
    }
    let in_tests = format!("#[cfg(test)]\nmod tests {{\n{planted}}}\nfn after() {{ Instant::now(); }}\n");
    assert_eq!(lines("src/uplink/batch.rs", &in_tests), [11]);
    assert!(lines("src/uplink/batch/tests.rs", planted).is_empty());
    let harmless = "// async\nfn asynchronous(now: Instant) { let glommio_like = \"async\"; }\n";
    assert!(lines("src/uplink/batch.rs", harmless).is_empty());
}

#[test]
fn names_that_say_nothing_are_found() {
    assert_eq!(lines("src/utils.rs", ""), [1]);
    assert_eq!(lines("src/room/helpers/x.rs", ""), [1]);
    assert_eq!(lines("src/room/mod.rs", "\npub mod manager;\nmod common {}\n"), [3, 4]);
    assert!(lines("src/room/commonplace.rs", "mod types_of_rooms;\n").is_empty());
}

#[test]
fn the_first_line_names_the_subject() {
    for text in ["", "\n", "use x;\n//! Late.\n", "// Not quite.\n", "//!\n", "//!   \n"] {
        let findings = rules::of_source(&Source::new("src/x.rs", text));
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [1], "{text:?}");
    }
    assert!(lines("src/x.rs", "").is_empty());
}

#[test]
fn long_files_and_functions_are_found() {
    let filler = |count: usize| "    x();\n".repeat(count);
    let function = |count: usize| format!("fn f() {{\n{}}}\n", filler(count - 2));
    assert!(lines("src/x.rs", &function(FUNCTION_LINES)).is_empty());
    assert_eq!(lines("src/x.rs", &function(FUNCTION_LINES + 1)), [2]);
    let airy = format!("fn f(a: [u8; 3]) -> (u8, u8) {{\n{}{}}}\n", filler(60), "\n    // why\n".repeat(30));
    assert!(lines("src/x.rs", &airy).is_empty(), "blank lines and comments are not code");
    let second = format!("trait T {{\n    fn g(&self);\n}}\n{}", function(FUNCTION_LINES + 5));
    assert_eq!(lines("src/x.rs", &second), [5]);
    assert!(lines("src/x.rs", &"// x\n".repeat(FILE_LINES - 1)).is_empty());
    assert_eq!(lines("src/x.rs", &"// x\n".repeat(FILE_LINES)), [FILE_LINES + 1]);
}

#[test]
fn unfinished_work_is_found() {
    let planted = "fn f() {\n    todo!();\n    unimplemented!(\"x\");\n    dbg!(1);\n}\n";
    assert_eq!(lines("src/x.rs", planted), [3, 4, 5]);
    assert!(lines("src/x.rs", "// todo!()\nfn todo() { not_todo!(); }\n").is_empty());
}

#[test]
fn paths_of_one_machine_are_found() {
    let lines = |path: &str, text: &str| -> Vec<usize> {
        rules::of_any_text(path, text).iter().map(|finding| finding.line).collect()
    };
    for start in MACHINE_PATHS {
        assert_eq!(lines("README.md", &format!("fine\ncd {start}x\n")), [2]);
        assert_eq!(lines("tests/x.rs", &format!("\"{start}x\"")), [1]);
        assert!(lines("README.md", &format!("https://host.example{start}x and ./a{start}")).is_empty());
    }
    assert_eq!(lines("src/x.rs", &format!("\"{TEMPORARY}x\"")), [1]);
    assert!(lines("tests/x.rs", &format!("\"{TEMPORARY}x\"")).is_empty());
}
