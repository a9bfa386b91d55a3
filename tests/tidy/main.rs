//! The rules of the house as a test: each finding names the file, the line and what would be right.

mod planted;
mod rules;
mod source;

use std::path::{Path, PathBuf};

use rules::Finding;
use source::Source;

/// Directories that hold nothing written by hand.
const SKIPPED: [&str; 4] = ["target", ".git", "node_modules", "corpus"];

/// Endings of files that are text of the project; `""` is for scripts without one.
const TEXT: [&str; 9] = ["rs", "md", "toml", "html", "yml", "yaml", "sh", "conf", ""];

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(root, &mut files);
    let sources = files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "rs")).count();
    assert!(sources > 20, "only {sources} sources found below {}", root.display());

    let mut findings: Vec<Finding> = Vec::new();
    for file in &files {
        let path =
            file.strip_prefix(root).expect("below the root").to_str().expect("a UTF-8 path").to_owned();
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        findings.extend(rules::of_any_text(&path, &text));
        if path.ends_with(".rs") {
            findings.extend(rules::of_source(&Source::new(&path, &text)));
        }
    }
    let shown: Vec<_> = findings.iter().map(ToString::to_string).collect();
    assert!(shown.is_empty(), "{} findings:\n{}", shown.len(), shown.join("\n"));
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_symlink() || SKIPPED.contains(&name) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if TEXT.contains(&ending) {
            files.push(path);
        }
    }
}
