//! The rules. What each one is for stands with its constant or function.

use std::fmt;

use crate::source::Source;

/// The stages in the order in which data flows. A stage imports only stages before it; its unit tests
/// may import others to drive it with.
pub const STAGES: [&str; 9] =
    ["ring", "accept", "codec", "command", "room", "send", "shard", "uplink", "world"];

/// The one file name of a stage that joins it to threads, clocks and sockets, and may import anything.
pub const DRIVER: &str = "driver.rs";

/// More files that may start threads or read clocks: the program's own frame, and the looks at the
/// system and at Redis before anything runs.
pub const FRAME: [&str; 5] =
    ["src/main.rs", "src/server.rs", "src/logging.rs", "src/preflight.rs", "src/uplink/preflight.rs"];

/// What only drivers, the ring and [`FRAME`] files may use, so that all else can be simulated. Unit
/// tests may too: an `Instant` to count from is had in no other way.
pub const OUTSIDE_WORLD: [&str; 5] = ["glommio", "async", "await", "Instant::now", "SystemTime::now"];

/// Names that say nothing about what is inside.
pub const EMPTY_NAMES: [&str; 7] = ["utils", "util", "helpers", "helper", "manager", "common", "types"];

/// Macros that mark unfinished work.
pub const UNFINISHED: [&str; 3] = ["todo!", "unimplemented!", "dbg!"];

/// Lines of a file: more has a second subject in it.
pub const FILE_LINES: usize = 600;

/// Lines of code of a function, without blank lines and comments: more does not fit a screen.
pub const FUNCTION_LINES: usize = 70;

/// Beginnings of paths that exist on one machine only. Written in two pieces: this file is checked too.
pub const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// The directory that only tests may name.
pub const TEMPORARY: &str = concat!("/t", "mp/");

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file's path below the root.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// All rules for Rust sources.
pub fn of_source(source: &Source) -> Vec<Finding> {
    [stage_order, unsafe_code, outside_world, names, first_line, sizes, unfinished]
        .iter()
        .flat_map(|rule| rule(source))
        .map(|(line, what)| Finding { path: source.path.clone(), line, what })
        .collect()
}

/// The rules for every text of the project.
pub fn of_any_text(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let in_tests = path.starts_with("tests/") || path.contains("/tests/");
        let forbidden = MACHINE_PATHS.iter().chain((!in_tests).then_some(&TEMPORARY));
        for start in forbidden.filter(|start| names_path(line, start)) {
            let what =
                format!("a path below {start} exists on one machine only: make it relative or a setting");
            findings.push(Finding { path: path.to_owned(), line: number + 1, what });
        }
    }
    findings
}

/// Whether `line` has a path that begins with `start`, and not merely one that contains it.
fn names_path(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || "._-}*~".contains(before))
    })
}

type Found = Vec<(usize, String)>;

/// The stage that a path belongs to, as its place in [`STAGES`].
fn stage_of(path: &str) -> Option<usize> {
    let (stage, _) = path.strip_prefix("src/")?.split_once('/')?;
    STAGES.iter().position(|name| *name == stage)
}

fn is_driver(path: &str) -> bool {
    path.ends_with(&format!("/{DRIVER}"))
}

fn stage_order(source: &Source) -> Found {
    let Some(own) = stage_of(&source.path) else { return Vec::new() };
    if is_driver(&source.path) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (at, _) in source.code.match_indices("crate::").filter(|(at, _)| !in_unit_tests(source, *at)) {
        for (name, at) in first_names(&source.code, at + "crate::".len()) {
            if let Some(stage) = STAGES.iter().position(|stage| *stage == name)
                && stage > own
            {
                let what =
                    format!("{} comes before {name} and may not import it; a {DRIVER} may", STAGES[own]);
                found.push((source.line_of(at), what));
            }
        }
    }
    found
}

/// The first names of the path, or of each path of the braced list, that begins at `start`.
fn first_names(code: &str, start: usize) -> Vec<(&str, usize)> {
    let name_at = |at: usize| {
        let rest = &code[at..];
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        (&rest[..length], at)
    };
    if !code[start..].starts_with('{') {
        return vec![name_at(start)];
    }
    let (mut names, mut depth, mut fresh) = (Vec::new(), 0, true);
    for (offset, letter) in code[start..].char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' => fresh = depth == 1,
            letter if fresh && depth == 1 && !letter.is_whitespace() => {
                names.push(name_at(start + offset));
                fresh = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn unsafe_code(source: &Source) -> Found {
    let mut found = Vec::new();
    for at in source.words("unsafe") {
        let line = source.line_of(at);
        if !source.path.starts_with("src/ring/") {
            found.push((line, "unsafe belongs in src/ring/ alone: use rustix or socket2".to_owned()));
            continue;
        }
        let is_block = source.code[at + "unsafe".len()..].trim_start().starts_with(['{', 'i']);
        if is_block && !is_justified(source, line) {
            found.push((line, "a comment that begins with SAFETY: must say why this holds".to_owned()));
        }
    }
    found
}

/// Whether a SAFETY comment stands on the line, or right before the statement that it is in.
fn is_justified(source: &Source, line: usize) -> bool {
    let says_why = |line: &str| line.contains("SAFETY:");
    if says_why(&source.lines[line - 1]) {
        return true;
    }
    for text in source.lines[..line - 1].iter().rev().map(|text| text.trim()) {
        let is_comment = text.starts_with("//");
        if is_comment && says_why(text) {
            return true;
        }
        if !is_comment && (text.is_empty() || text.ends_with([';', '{', '}', ','])) {
            return false;
        }
    }
    false
}

fn outside_world(source: &Source) -> Found {
    let path = source.path.as_str();
    let allowed = is_driver(path) || path.starts_with("src/ring/") || FRAME.contains(&path);
    if !path.starts_with("src/") || allowed {
        return Vec::new();
    }
    let mut found = Vec::new();
    for name in OUTSIDE_WORLD {
        for at in source.words(name).into_iter().filter(|at| !in_unit_tests(source, *at)) {
            let what = format!("{name} belongs in a {DRIVER}: take `now`, bytes or events as arguments");
            found.push((source.line_of(at), what));
        }
    }
    found
}

/// Whether the code at `at` is compiled for tests only.
fn in_unit_tests(source: &Source, at: usize) -> bool {
    let is_around = |(start, _): (usize, &str)| {
        let length = body_of(&source.code[start..]).unwrap_or(0);
        (start..start + length).contains(&at)
    };
    source.path.ends_with("/tests.rs") || source.code.match_indices("#[cfg(test)]").any(is_around)
}

fn names(source: &Source) -> Found {
    let mut found = Vec::new();
    for part in source.path.trim_end_matches(".rs").split('/').filter(|part| EMPTY_NAMES.contains(part)) {
        found.push((1, format!("{part} says nothing: name the file after its subject")));
    }
    for at in source.words("mod") {
        let (name, _) = first_names(&source.code, at + "mod ".len())[0];
        if EMPTY_NAMES.contains(&name) {
            found.push((
                source.line_of(at),
                format!("{name} says nothing: name the module after its subject"),
            ));
        }
    }
    found
}

fn first_line(source: &Source) -> Found {
    let first = source.lines.first().map_or("", String::as_str);
    let said = first.strip_prefix("//!").is_some_and(|subject| !subject.trim().is_empty());
    if said {
        Vec::new()
    } else {
        vec![(1, "the first line must be a //! line that names the subject".to_owned())]
    }
}

fn sizes(source: &Source) -> Found {
    let mut found = Vec::new();
    let lines = source.lines.len();
    if lines > FILE_LINES {
        found.push((
            FILE_LINES + 1,
            format!("the file has {lines} lines, {FILE_LINES} are allowed: split it by subject"),
        ));
    }
    for at in source.words("fn") {
        let Some(body) = body_of(&source.code[at..]) else { continue };
        let code = source.code[at..at + body].lines().filter(|line| !line.trim().is_empty()).count();
        if code > FUNCTION_LINES {
            let what = format!("the function has {code} lines of code, {FUNCTION_LINES} are allowed");
            found.push((source.line_of(at), what));
        }
    }
    found
}

/// How far the function that `code` begins with reaches; `None` if it has no body.
fn body_of(code: &str) -> Option<usize> {
    let (mut braces, mut brackets) = (0_u32, 0_u32);
    for (at, letter) in code.char_indices() {
        match letter {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.checked_sub(1)?,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces = braces.checked_sub(1)?;
                if braces == 0 && brackets == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn unfinished(source: &Source) -> Found {
    let mut found = Vec::new();
    for name in UNFINISHED {
        for at in source.words(name) {
            found.push((
                source.line_of(at),
                format!("{name} marks unfinished work: finish it or leave it out"),
            ));
        }
    }
    found
}
