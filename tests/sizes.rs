//! Functions stay short enough to be read at once. Clippy's `too_many_lines` keeps them below 100 lines; this keeps those
//! over 60 few.
//!
//! Lines are counted as Clippy does: those of the body, without comments and empty ones. The tree is formatted by rustfmt,
//! so that a function ends at the first brace as far to the left as it began.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

/// What a function should have at most.
const GOAL: usize = 60;
/// How many may have more.
const EXCEPTIONS: usize = 10;

#[test]
fn few_functions_are_long() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut long = Vec::new();
    for path in rust_files(&source) {
        let text = std::fs::read_to_string(&path).unwrap();
        let shown = path.strip_prefix(&source).unwrap().display();
        let functions = functions(without_tests(&text)).into_iter();
        long.extend(
            functions
                .filter(|(_, lines)| *lines > GOAL)
                .map(|(name, lines)| format!("{lines:4} {shown} {name}")),
        );
    }
    long.sort();
    assert!(
        long.len() <= EXCEPTIONS,
        "{} functions have more than {GOAL} lines, {EXCEPTIONS} may; split these by what they do:\n{}",
        long.len(),
        long.join("\n")
    );
}

#[test]
fn lines_are_counted_as_clippy_does() {
    let text = "\
impl A {
    pub(crate) async fn one(
        a: u8,
    ) -> u8 {
        // Why.
        let b = match a {
            0 => 1,

            n => n,
        };
        b
    }
}
const fn none() {}
fn two() {
    f();
    g();
}
";
    let found = functions(text);
    let expected = [("one", 5), ("none", 0), ("two", 2)].map(|(name, lines)| (name.to_owned(), lines));
    assert_eq!(found, expected);
}

/// Names and lengths.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = name_of_function(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let signature = lines[at..].iter().position(|line| line.ends_with(['{', '}', ';']));
        let body = &lines[at + signature.unwrap_or(0)..];
        let length = match body[0].ends_with('{') {
            true => body[1..]
                .iter()
                .take_while(|line| **line != end)
                .filter(|line| is_code(line))
                .count(),
            false => 0,
        };
        found.push((name.to_owned(), length));
    }
    found
}

fn name_of_function(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ").filter(|(before, _)| {
        let words = ["", "pub", "async", "const", "unsafe", "extern"];
        let is_word = |word: &str| words.contains(&word) || word.starts_with("pub(") || word.ends_with([')', '"']);
        before.is_empty() || before.ends_with(' ') && before.split(' ').all(is_word)
    })?;
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (!before.starts_with("//") && end > 0).then(|| &after[..end])
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

/// By the habit of this tree tests are the last thing in a file.
fn without_tests(text: &str) -> &str {
    let end = text
        .find("#[cfg(test)]\nmod ")
        .or_else(|| text.find("#[cfg(test)]\npub"));
    end.map_or(text, |end| &text[..end])
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_test = ["tests", "testing", "fixtures", "hostile"].contains(&name) || name.ends_with("_tests");
        if path.is_dir() && !is_test {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !is_test {
            files.push(path);
        }
    }
    files
}
