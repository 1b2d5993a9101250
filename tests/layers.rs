//! The walls of the house hold: rooms use only rooms below them, and nothing in a room goes in a circle.
//!
//! The test reads the `use` lines and the paths of `src/` as text, resolves what a module re-exports, also with a `*`, to
//! the file that has it, and draws an arrow from file to file. Tests inside the files are left out: they may look anywhere.
//!
//! What it cannot see: methods. A file that calls one which another file has in an `impl` block draws no arrow.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms, top to bottom, each with those that it may use.
const ROOMS: &[(&str, &[&str])] = &[
    (
        "daemon",
        &[
            "api", "workload", "net", "image", "observe", "runtime", "ops", "store", "model", "base",
        ],
    ),
    (
        "api",
        &[
            "workload", "net", "image", "observe", "runtime", "ops", "store", "model", "base",
        ],
    ),
    (
        "workload",
        &["net", "image", "observe", "runtime", "ops", "store", "model", "base"],
    ),
    ("net", &["observe", "ops", "store", "model", "base"]),
    ("image", &["observe", "ops", "store", "model", "base"]),
    ("observe", &["runtime", "ops", "store", "model", "base"]),
    ("hook_agent", &["runtime", "base"]),
    ("runtime", &["model", "base"]),
    ("ops", &["store", "model", "base"]),
    ("store", &["model", "base"]),
    ("model", &["base"]),
    ("base", &[]),
];

/// A module of the crate: its path without `crate`, as `net::firewall`; empty for the crate itself.
type Module = String;

/// What one file says.
#[derive(Default)]
struct File {
    /// Full paths that it names, without `crate::`.
    names: BTreeSet<String>,
    /// What it re-exports: the name -> the full path.
    exports: BTreeMap<String, String>,
    /// The modules of which it re-exports everything.
    globs: BTreeSet<String>,
    /// Names that it declares, at whatever depth.
    declares: BTreeSet<String>,
}

struct House(BTreeMap<Module, File>);

impl House {
    fn read(src: &Path) -> Self {
        let mut files = BTreeMap::new();
        for path in rust_files(src) {
            let relative = path.strip_prefix(src).unwrap().with_extension("");
            let mut parts: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
            if matches!(parts[..], ["main"] | ["bin", ..]) {
                continue;
            }
            if matches!(parts.last(), Some(&"mod" | &"lib")) {
                parts.pop();
            }
            let module = parts.join("::");
            let text = std::fs::read_to_string(&path).unwrap();
            files.insert(module.clone(), File::parse(&module, &text));
        }
        Self(files)
    }

    /// The module that has what a path names; follows re-exports.
    fn home(&self, path: &str) -> Module {
        let mut path = path.to_owned();
        // A chain of re-exports is short; a circle of them does not compile.
        for _ in 0..8 {
            let mut module = path.as_str();
            while !self.0.contains_key(module) {
                module = module.rsplit_once("::").map_or("", |(parent, _)| parent);
            }
            let rest = path[module.len()..].trim_start_matches("::");
            let item = rest.split("::").next().unwrap_or_default();
            let Some(file) = self.0.get(module) else {
                return module.to_owned();
            };
            let by_name = file.exports.get(item).cloned();
            let by_glob = || {
                let from = file.globs.iter().find(|from| self.has(from, item))?;
                Some(format!("{from}::{item}"))
            };
            match by_name.or_else(by_glob) {
                Some(target) if target != path => path = target,
                _ => return module.to_owned(),
            }
        }
        panic!("re-exports of {path} go in a circle");
    }

    /// Whether a module declares that name or re-exports it.
    fn has(&self, module: &str, item: &str) -> bool {
        let file = self.0.get(module);
        file.is_some_and(|file| file.declares.contains(item) || file.exports.contains_key(item))
    }

    /// From each file to the files that it uses.
    fn arrows(&self) -> BTreeSet<(Module, Module)> {
        let arrows = self.0.iter().flat_map(|(from, file)| {
            let targets = file.names.iter().map(|name| self.home(name));
            targets.map(|to| (from.clone(), to))
        });
        arrows.filter(|(from, to)| from != to && !to.is_empty()).collect()
    }
}

impl File {
    fn parse(module: &str, text: &str) -> Self {
        let mut file = Self::default();
        let code = without_comments(without_tests(text));
        file.declares = declarations(&code);
        for (is_public, body) in use_statements(&code) {
            for path in flatten(body) {
                let (path, alias) = path.split_once(" as ").unwrap_or((&path, ""));
                let Some(full) = absolute(module, path) else { continue };
                let leaf = full.rsplit("::").next().unwrap_or_default();
                let name = if alias.is_empty() { leaf } else { alias };
                if is_public && path.ends_with("::*") {
                    file.globs.insert(full.clone());
                } else if is_public {
                    file.exports.insert(name.to_owned(), full.clone());
                }
                file.names.insert(full);
            }
        }
        file.names
            .extend(inline_paths(&code).filter_map(|path| absolute(module, path)));
        file
    }
}

/// Paths from the crate or a parent on, wherever they stand.
fn inline_paths(code: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
    let starts = ["crate::", "super::"].map(|start| code.match_indices(start));
    let whole = starts
        .into_iter()
        .flatten()
        .filter(move |(at, _)| !code[..*at].ends_with(is_part));
    whole.map(move |(at, _)| {
        let path = &code[at..];
        let end = path.find(|c| !is_part(c)).unwrap_or(path.len());
        path[..end].trim_end_matches(':')
    })
}

/// What stands behind `fn`, `struct` and the like.
fn declarations(code: &str) -> BTreeSet<String> {
    const KEYWORDS: [&str; 9] = [
        "fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod",
    ];
    let words: Vec<&str> = code
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| !w.is_empty())
        .collect();
    let pairs = words.windows(2).filter(|pair| KEYWORDS.contains(&pair[0]));
    pairs.map(|pair| pair[1].to_owned()).collect()
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "testing" {
                files.extend(rust_files(&path));
            }
        } else if path.extension().is_some_and(|e| e == "rs") && !is_test_file(name) {
            files.push(path);
        }
    }
    files
}

fn is_test_file(name: &str) -> bool {
    name == "tests" || name.ends_with("_tests") || name == "fixtures" || name == "testing" || name == "hostile"
}

/// By the habit of this tree tests are the last thing in a file.
fn without_tests(text: &str) -> &str {
    let is_module = |next: &str| {
        let line = next.lines().next().unwrap_or_default();
        line.ends_with('{') && line.split_whitespace().any(|word| word == "mod")
    };
    let marks = text.match_indices("#[cfg(test)]");
    let mut modules = marks.filter(|(at, mark)| is_module(text[at + mark.len()..].trim_start()));
    modules.next().map_or(text, |(at, _)| &text[..at])
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The statements that begin a line, from behind `use` to the semicolon; whether they are visible elsewhere.
fn use_statements(code: &str) -> impl Iterator<Item = (bool, &str)> {
    let starts = code.match_indices('\n').map(|(at, _)| at + 1).chain([0]);
    starts.filter_map(|at| {
        let line = code[at..].trim_start_matches([' ', '\t']);
        let is_public = line.starts_with("pub");
        let rest = match line.strip_prefix("pub(in ") {
            Some(rest) => rest.split_once(") ")?.1,
            None if is_public => line.split_once(' ')?.1,
            None => line,
        };
        Some((is_public, rest.strip_prefix("use ")?.split(';').next()?))
    })
}

/// `a::{b, c::{self, D}}` as `a::b`, `a::c`, `a::c::D`.
fn flatten(text: &str) -> Vec<String> {
    let text = text.trim();
    let Some(open) = text.find('{') else {
        return vec![text.to_owned()];
    };
    let (prefix, body) = (&text[..open], &text[open + 1..text.rfind('}').unwrap_or(text.len())]);
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in body.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&body[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&body[start..]);
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts
        .flat_map(|part| flatten(part))
        .map(|part| match part.strip_prefix("self") {
            Some(rest) => format!("{}{rest}", prefix.trim_end_matches(':')),
            None => format!("{prefix}{part}"),
        })
        .collect()
}

/// A path as seen from `module`, from the root of the crate; `None` for those of other crates.
fn absolute(module: &str, path: &str) -> Option<String> {
    let (first, mut rest) = path.split_once("::").unwrap_or((path, ""));
    let mut base = match first {
        "crate" => String::new(),
        "self" => module.to_owned(),
        "super" => parent(module),
        // A child of this module, in its `mod.rs`.
        _ if path.starts_with(|c: char| c.is_lowercase()) && CHILDREN_LIKE.contains(&first) => return None,
        _ => format!("{module}::{first}"),
    };
    while let Some(after) = rest.strip_prefix("super::") {
        (base, rest) = (parent(&base), after);
    }
    let full = if rest.is_empty() {
        base
    } else {
        format!("{base}::{rest}")
    };
    Some(full.trim_start_matches(':').trim_end_matches("::*").to_owned())
}

/// Crates whose names could be taken for modules here.
const CHILDREN_LIKE: &[&str] = &["std", "core"];

fn parent(module: &str) -> Module {
    module
        .rsplit_once("::")
        .map_or(String::new(), |(parent, _)| parent.to_owned())
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

/// Arrows that go up, one line each.
fn upward(arrows: &BTreeSet<(Module, Module)>) -> Vec<String> {
    let is_allowed =
        |from: &str, to: &str| from == to || ROOMS.iter().any(|(name, below)| *name == from && below.contains(&to));
    let bad = arrows.iter().filter(|(from, to)| !is_allowed(room(from), room(to)));
    bad.map(|(from, to)| format!("{from} -> {to}")).collect()
}

/// Circles between the children of each module, one line each. A module and its children may use each other.
fn circles(arrows: &BTreeSet<(Module, Module)>) -> Vec<String> {
    let mut levels: BTreeMap<Module, BTreeMap<Module, BTreeMap<Module, String>>> = BTreeMap::new();
    for (from, to) in arrows {
        let (from_parts, to_parts): (Vec<_>, Vec<_>) = (from.split("::").collect(), to.split("::").collect());
        let common = from_parts.iter().zip(&to_parts).take_while(|(a, b)| a == b).count();
        if common == from_parts.len() || common == to_parts.len() {
            continue;
        }
        let child = |parts: &[&str]| parts[..=common].join("::");
        let level = levels.entry(from_parts[..common].join("::")).or_default();
        let targets = level.entry(child(&from_parts)).or_default();
        targets
            .entry(child(&to_parts))
            .or_insert_with(|| format!("{from} -> {to}"));
    }
    let mut found = Vec::new();
    for graph in levels.values() {
        // What can be left for ever belongs to no circle; nor does what nothing that is left leads to.
        let mut left: BTreeSet<&Module> = graph.keys().collect();
        loop {
            let before = left.len();
            let kept = left.clone();
            left.retain(|node| graph[*node].keys().any(|to| kept.contains(to)));
            let kept = left.clone();
            left.retain(|node| kept.iter().any(|from| graph[*from].contains_key(*node)));
            if left.len() == before {
                break;
            }
        }
        if !left.is_empty() {
            let arrows = left
                .iter()
                .flat_map(|node| graph[*node].iter().filter(|(to, _)| left.contains(to)));
            found.extend(arrows.map(|(_, arrow)| arrow.clone()));
        }
    }
    found
}

fn house() -> BTreeSet<(Module, Module)> {
    House::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).arrows()
}

#[test]
fn arrows_between_rooms_go_down() {
    let up = upward(&house());
    assert!(
        up.is_empty(),
        "these arrows go up or to an unknown room:\n{}",
        up.join("\n")
    );
}

#[test]
fn nothing_goes_in_a_circle() {
    let circles = circles(&house());
    assert!(circles.is_empty(), "these arrows make circles:\n{}", circles.join("\n"));
}

fn arrows_of(files: &[(&str, &str)]) -> BTreeSet<(Module, Module)> {
    let files = files
        .iter()
        .map(|(module, text)| (module.to_string(), File::parse(module, text)));
    House(files.collect()).arrows()
}

#[test]
fn an_arrow_that_goes_up_or_in_a_circle_is_found() {
    let arrows = arrows_of(&[
        ("net", "pub use firewall::Firewall;\nmod firewall;"),
        ("net::firewall", "use crate::workload::pod::{self, Status};"),
        ("workload", ""),
        ("workload::pod", "use super::bottle::Bottle;\nuse crate::net::Firewall;"),
        (
            "workload::bottle",
            "fn f() { crate::workload::pod::start() }\n#[cfg(test)]\npub(super) mod tests {\n    use crate::api::X;\n}",
        ),
    ]);
    assert_eq!(upward(&arrows), ["net::firewall -> workload::pod"]);
    let inside: Vec<_> = circles(&arrows)
        .into_iter()
        .filter(|arrow| !arrow.contains("net"))
        .collect();
    assert_eq!(
        inside,
        ["workload::bottle -> workload::pod", "workload::pod -> workload::bottle"]
    );
}

#[test]
fn an_arrow_is_found_however_it_is_written() {
    let back = ("net::b", "pub struct B;\nuse super::a;");
    for (parent, text) in [
        ("", "use super::b::B;"),
        ("", "fn f() {\n    use super::b::B;\n}"),
        ("", "fn f() { super::b::f(); }"),
        ("", "fn f(b: &super::b::B) {}"),
        ("", "pub(in crate::net) use super::b::B;"),
        ("pub use b::B;", "use super::{\n    B,\n};"),
        ("pub use b::B as Renamed;", "fn f() { super::Renamed; }"),
        ("pub use b::*;", "use super::B;"),
        ("pub use b::*;", "fn f(b: crate::net::B) {}"),
    ] {
        let found = circles(&arrows_of(&[("net", parent), ("net::a", text), back]));
        assert_eq!(found, ["net::a -> net::b", "net::b -> net::a"], "{parent} {text}");
    }
    let none = [
        "// super::b\nuse super::c;",
        "#[cfg(test)]\nmod tests {\n    use super::super::b::B;\n}",
    ];
    for text in none {
        assert!(
            circles(&arrows_of(&[("net", ""), ("net::a", text), back])).is_empty(),
            "{text}"
        );
    }
}
