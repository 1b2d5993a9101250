//! Every citation of the specification leads somewhere: a page, a section of it, a numbered rule.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Letters of rules that are written with a hyphen, as in `N-29`. They are unique over all pages.
const RULES: &str = "NSPOD";

/// What one page offers to be cited.
#[derive(Default)]
struct Page {
    sections: BTreeSet<String>,
    rules: BTreeSet<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Text files below `dir`, with their contents.
fn texts(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path);
            } else if path
                .extension()
                .is_some_and(|e| ["rs", "md", "toml", "sh"].iter().any(|t| e == *t))
            {
                found.push((path.clone(), std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    found
}

/// Rules such as `N-29` in `text`: a letter of [`RULES`], a hyphen and two digits that stand alone.
fn rules(text: &str) -> BTreeSet<String> {
    let bytes = text.as_bytes();
    let word = |at: usize| {
        bytes
            .get(at)
            .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_')
    };
    let rule = |at: usize| {
        RULES.contains(bytes[at] as char)
            && (at == 0 || !word(at - 1))
            && bytes.get(at + 1) == Some(&b'-')
            && [at + 2, at + 3]
                .iter()
                .all(|i| bytes.get(*i).is_some_and(u8::is_ascii_digit))
            && !word(at + 4)
    };
    (0..bytes.len())
        .filter(|at| rule(*at))
        .map(|at| text[at..at + 4].to_owned())
        .collect()
}

/// The number that a heading begins with: `## 3. Files` and `### 3.1 Files` have `3` and `3.1`; `### 11.2 to 11.4 Fields`
/// has three.
fn section_numbers(heading: &str) -> Vec<String> {
    let words = heading.trim_start_matches('#').split([' ', ',']);
    let numbers = words.map(|word| word.trim_end_matches('.')).filter(|word| {
        word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(|c| c.is_ascii_digit() || c == '.')
    });
    let numbers: Vec<String> = numbers.map(str::to_owned).collect();
    match (&numbers[..], heading.contains(" to ")) {
        ([first, last], true) => {
            let (chapter, from) = first.rsplit_once('.').unwrap();
            let to: u32 = last.rsplit_once('.').unwrap().1.parse().unwrap();
            (from.parse().unwrap()..=to)
                .map(|n: u32| format!("{chapter}.{n}"))
                .collect()
        }
        _ => numbers,
    }
}

fn pages() -> BTreeMap<String, Page> {
    let mut pages = BTreeMap::new();
    for (path, text) in texts(&root().join("docs/spec")) {
        let mut page = Page::default();
        for line in text.lines() {
            if line.starts_with("##") {
                page.sections.extend(section_numbers(line));
            }
            if let Some(row) = line.strip_prefix("| ") {
                page.rules.extend(rules(row.split(" | ").next().unwrap()));
            }
        }
        pages.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), page);
    }
    pages
}

/// Citations `docs/spec/<page>.md <section>, <section>` in `text`: each page, and the sections that follow it.
fn citations(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, prefix) in text.match_indices("docs/spec/") {
        let rest = &text[at + prefix.len()..];
        let Some((name, after)) = rest.split_once(".md") else {
            continue;
        };
        // Else the directory was meant, and a page comes much later; or pages in general, as in `docs/spec/<page>.md`.
        if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let after = after.trim_start_matches(['`', ')']);
            found.push((format!("{name}.md"), sections(after)));
        }
    }
    found
}

/// The numbers that `text` begins with: ` 5.4, 7 and 9: …` has three.
fn sections(mut text: &str) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        // A comment may go on in its next line.
        text = text.trim_start_matches([' ', '\n', '/', '!']);
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let number = text[..end].trim_end_matches('.');
        if number.is_empty() {
            return found;
        }
        found.push(number.to_owned());
        text = &text[end..];
        let Some(next) = [",", " and", " to"].iter().find_map(|word| text.strip_prefix(word)) else {
            return found;
        };
        text = next;
    }
}

#[test]
fn citations_lead_somewhere() {
    let pages = pages();
    let numbered: BTreeSet<&String> = pages.values().flat_map(|page| &page.rules).collect();
    let mut lost = Vec::new();
    for dir in ["src", "tests", "docs", "benches", "scripts"] {
        for (path, text) in texts(&root().join(dir)) {
            let file = path.strip_prefix(root()).unwrap().display().to_string();
            for (page, sections) in citations(&text) {
                let Some(cited) = pages.get(&page) else {
                    lost.push(format!("{file}: docs/spec/{page} does not exist"));
                    continue;
                };
                for section in sections.iter().filter(|section| !cited.sections.contains(*section)) {
                    lost.push(format!("{file}: docs/spec/{page} has no section {section}"));
                }
            }
            for rule in rules(&text) {
                if !numbered.contains(&rule) {
                    lost.push(format!("{file}: no page has a row {rule}"));
                }
            }
        }
    }
    assert!(lost.is_empty(), "citations that lead nowhere:\n{}", lost.join("\n"));
}

/// `a{b,c}d` as `abd` and `acd`.
fn expanded(path: &str) -> Vec<String> {
    let braces = path
        .split_once('{')
        .and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
    let Some((head, (words, tail))) = braces else {
        return vec![path.to_owned()];
    };
    let one = |word: &str| expanded(&format!("{head}{word}{tail}"));
    words.split(',').flat_map(one).collect()
}

/// Paths of this repository that a page names: what stands between backticks and begins with one of its directories.
fn paths(page: &str) -> Vec<String> {
    let quoted = page.split('`').skip(1).step_by(2);
    let ours = ["src/", "tests/", "scripts/", "assets/", "benches/", "docs/", "fuzz/"];
    quoted
        .filter(|path| ours.iter().any(|dir| path.starts_with(dir)))
        .filter(|path| !path.contains(['<', '*', '…', ' ', '\n']))
        .flat_map(expanded)
        .map(|path| path.split(':').next().unwrap().to_owned())
        .collect()
}

#[test]
fn paths_in_pages_exist() {
    let mut pages = texts(&root().join("docs"));
    for name in ["README.md", "README_jp.md", "CONTRIBUTING.md"] {
        pages.push((root().join(name), std::fs::read_to_string(root().join(name)).unwrap()));
    }
    let mut lost = Vec::new();
    for (page, text) in pages.iter().filter(|(page, _)| !page.ends_with("vm-report.md")) {
        let missing = paths(text).into_iter().filter(|path| !root().join(path).exists());
        lost.extend(missing.map(|path| format!("{}: {path}", page.strip_prefix(root()).unwrap().display())));
    }
    assert!(lost.is_empty(), "paths that do not exist:\n{}", lost.join("\n"));
    assert_eq!(
        paths("see `src/a/{b,c}.rs`, `sr`, `docs/<page>`"),
        ["src/a/b.rs", "src/a/c.rs"]
    );
}

#[test]
fn rules_and_sections_are_found() {
    assert_eq!(
        Vec::from_iter(rules("see N-29, O-05 and D-103, X-11")),
        ["N-29", "O-05"]
    );
    assert_eq!(section_numbers("### 11.2 to 11.4 Fields"), ["11.2", "11.3", "11.4"]);
    assert_eq!(section_numbers("## 3. Files"), ["3"]);
    let cited = citations("//! (`docs/spec/api.md` 5.4, 7 and\n//! 9.1; 3) of docs/spec/ and docs/spec/<page>.md");
    assert_eq!(
        cited,
        [("api.md".to_owned(), ["5.4", "7", "9.1"].map(str::to_owned).into())]
    );
}
