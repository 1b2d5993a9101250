//! YAML text as trees of nodes with line numbers (YAML 1.2.2, over the events of `granit-parser`). Pure.
//!
//! Scalars are not resolved here: a scalar is its text as written and whether it was quoted, so `1.10`, `0x10` and
//! `yes` survive, and the reader of a field decides the type. Anchors and merge keys (`<<`) are followed; a duplicate
//! key in a mapping is an error. The expansion of aliases is limited.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::pieces::pieces;

/// Maximum number of nodes in all documents together, with aliases expanded.
const MAX_NODES: usize = 100_000;
/// Maximum nesting depth, with aliases expanded.
const MAX_DEPTH: usize = 64;

/// A value and its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its line in the text, from 1.
    pub line: usize,
    /// Its value.
    pub value: Value,
    /// Number of nodes, including itself.
    size: usize,
    /// Number of levels, including its own.
    depth: usize,
}

/// The value of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Empty, `~` or `null`.
    Null,
    /// Text.
    Scalar {
        /// As written; escapes, folding and quotes are resolved.
        text: String,
        /// Whether it must be a string: it was quoted or a block scalar.
        quoted: bool,
    },
    /// A sequence.
    List(Vec<Arc<Node>>),
    /// A mapping, in the order of the text; keys are unique.
    Map(Vec<(String, Arc<Node>)>),
}

/// Why a text is not valid YAML.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{problem}")]
pub struct YamlError {
    /// Number of the document, from 1.
    pub document: usize,
    /// Line in the text, from 1.
    pub line: usize,
    /// The error.
    pub problem: String,
}

/// The non-empty documents, numbered from 1; empty ones are counted too.
pub fn documents(text: &str) -> Result<Vec<(usize, Arc<Node>)>, YamlError> {
    let mut builder = Builder::default();
    for piece in pieces(text) {
        builder.lines_before = piece.lines_before;
        for event in Parser::new_from_str(&piece.text) {
            let step = event
                .map_err(|error| (error.marker().line() + piece.lines_before, error.info()))
                .and_then(|(event, span)| builder.take(event, span));
            step.map_err(|(line, problem)| YamlError {
                document: builder.number.max(1),
                line: line.max(1),
                problem,
            })?;
        }
    }
    Ok(builder.done)
}

/// A line and the error there.
type Problem = (usize, String);

#[derive(Default)]
struct Builder {
    number: usize,
    done: Vec<(usize, Arc<Node>)>,
    total: usize,
    /// Number of lines of the text before this piece.
    lines_before: usize,
    open: Vec<Open>,
    anchors: HashMap<usize, Arc<Node>>,
}

/// An open collection.
struct Open {
    line: usize,
    anchor: usize,
    items: Items,
}

enum Items {
    List(Vec<Arc<Node>>),
    Map {
        entries: Vec<(String, Arc<Node>)>,
        keys: BTreeSet<String>,
        /// The key whose value comes next.
        key: Option<String>,
        merged: Option<Arc<Node>>,
    },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let line = span.start.line() + self.lines_before;
        if event.is_node() {
            let copied = event.alias_id().and_then(|anchor| self.anchors.get(&anchor));
            self.total = self.total.saturating_add(copied.map_or(1, |node| node.size));
            if self.total > MAX_NODES {
                let problem = format!("more than {MAX_NODES} values, aliases counted as what they stand for");
                return Err((line, problem));
            }
        }
        match event {
            Event::DocumentStart(..) => {
                self.number += 1;
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain || is_string(tag.as_deref());
                known_tag(tag.as_deref(), line)?;
                let value = match (&*text, quoted) {
                    ("" | "~" | "null" | "Null" | "NULL", false) => Value::Null,
                    _ => Value::Scalar {
                        text: text.into_owned(),
                        quoted,
                    },
                };
                self.complete(line, anchor, value)
            }
            Event::SequenceStart(_, anchor, tag) => self.begin(line, anchor, tag.as_deref(), Items::List(Vec::new())),
            Event::MappingStart(_, anchor, tag) => self.begin(line, anchor, tag.as_deref(), Items::map()),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.place(line, node),
                None => Err((line, "an alias inside what it stands for".into())),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, line: usize, anchor: usize, tag: Option<&Tag>, items: Items) -> Result<(), Problem> {
        known_tag(tag, line)?;
        if self.open.len() >= MAX_DEPTH {
            return Err((line, too_deep()));
        }
        self.open.push(Open { line, anchor, items });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Problem> {
        // The parser guarantees balanced events.
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.items {
            Items::List(items) => Value::List(items),
            Items::Map {
                mut entries,
                keys,
                merged,
                ..
            } => {
                if let Some(merged) = merged {
                    merge(&mut entries, keys, &merged)?;
                }
                Value::Map(entries)
            }
        };
        self.complete(open.line, open.anchor, value)
    }

    fn complete(&mut self, line: usize, anchor: usize, value: Value) -> Result<(), Problem> {
        let node = Arc::new(Node::new(line, value));
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.place(line, node)
    }

    /// Adds a complete node to its parent.
    fn place(&mut self, line: usize, node: Arc<Node>) -> Result<(), Problem> {
        if self.open.len() + node.depth > MAX_DEPTH {
            return Err((line, too_deep()));
        }
        let Some(open) = self.open.last_mut() else {
            if node.value != Value::Null {
                self.done.push((self.number, node));
            }
            return Ok(());
        };
        match &mut open.items {
            Items::List(items) => items.push(node),
            Items::Map {
                entries,
                keys,
                key,
                merged,
            } => match key.take() {
                None => *key = Some(new_key(&node, line, keys)?),
                Some(name) if name == "<<" => *merged = Some(node),
                Some(name) => entries.push((name, node)),
            },
        }
        Ok(())
    }
}

impl Items {
    fn map() -> Self {
        Self::Map {
            entries: Vec::new(),
            keys: BTreeSet::new(),
            key: None,
            merged: None,
        }
    }
}

impl Node {
    fn new(line: usize, value: Value) -> Self {
        let (mut size, mut depth) = (1usize, 1);
        let mut count = |node: &Arc<Node>| {
            size = size.saturating_add(node.size);
            depth = depth.max(node.depth + 1);
        };
        match &value {
            Value::Null | Value::Scalar { .. } => {}
            Value::List(items) => items.iter().for_each(&mut count),
            Value::Map(entries) => entries.iter().for_each(|(_, node)| count(node)),
        }
        Self {
            line,
            value,
            size,
            depth,
        }
    }
}

fn new_key(node: &Node, line: usize, keys: &mut BTreeSet<String>) -> Result<String, Problem> {
    let text = match &node.value {
        Value::Scalar { text, .. } => text.clone(),
        Value::Null => String::new(),
        _ => return Err((line, "a key must be a scalar".into())),
    };
    match keys.insert(text.clone()) {
        true => Ok(text),
        false => Err((line, format!("the key {text:?} stands twice in one mapping"))),
    }
}

/// Adds the merged keys that the mapping itself does not set. Of several merged mappings the first one wins.
fn merge(entries: &mut Vec<(String, Arc<Node>)>, mut keys: BTreeSet<String>, merged: &Node) -> Result<(), Problem> {
    let not_a_mapping = |node: &Node| {
        (
            node.line,
            "a merge key (<<) takes a mapping or a list of mappings".into(),
        )
    };
    let one = std::slice::from_ref(merged).iter().collect();
    let sources: Vec<&Node> = match &merged.value {
        Value::List(items) => items.iter().map(AsRef::as_ref).collect(),
        _ => one,
    };
    for source in sources {
        let Value::Map(more) = &source.value else {
            return Err(not_a_mapping(source));
        };
        entries.extend(more.iter().filter(|(key, _)| keys.insert(key.clone())).cloned());
    }
    Ok(())
}

fn is_string(tag: Option<&Tag>) -> bool {
    tag.is_some_and(|tag| tag.core_suffix() == Some("str") || tag.original() == "!")
}

/// An unknown tag could change the meaning of a value.
fn known_tag(tag: Option<&Tag>, line: usize) -> Result<(), Problem> {
    match tag {
        Some(tag) if tag.core_suffix().is_none() && tag.original() != "!" => {
            Err((line, format!("the tag {:?} is not supported", tag.original())))
        }
        _ => Ok(()),
    }
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// A tree in a notation without lines.
    fn shown(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".into(),
            Value::Scalar { text, quoted: true } => format!("{text:?}"),
            Value::Scalar { text, .. } => text.clone(),
            Value::List(items) => format!("[{}]", items.iter().map(|n| shown(n)).collect::<Vec<_>>().join(", ")),
            Value::Map(entries) => {
                let entry = |(key, node): &(String, Arc<Node>)| format!("{key}: {}", shown(node));
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn trees(text: &str) -> Vec<(usize, String)> {
        let documents = documents(text).unwrap_or_else(|e| panic!("{e:?}"));
        documents.iter().map(|(number, node)| (*number, shown(node))).collect()
    }

    #[rstest]
    #[case(
        "a: 1.10\nb: 0x10\nc: yes\nd: 2024-01-01\ne: 010\nf: 1e3",
        "{a: 1.10, b: 0x10, c: yes, d: 2024-01-01, e: 010, f: 1e3}"
    )]
    #[case(
        "a: '5'\nb: \"x\\ty\"\nc: !!str null\nd: |\n  t\n",
        "{a: \"5\", b: \"x\\ty\", c: \"null\", d: \"t\\n\"}"
    )]
    #[case("a: ~\nb: null\nc:\nd: ''", "{a: null, b: null, c: null, d: \"\"}")]
    #[case("{\"a\": [1, {\"b\": true}], \"c\": []}", "{a: [1, {b: true}], c: []}")]
    #[case("a: &x [1]\nb: *x", "{a: [1], b: [1]}")]
    #[case("base: &b {x: 1, y: 2}\nd: {y: 3, <<: *b}", "{base: {x: 1, y: 2}, d: {y: 3, x: 1}}")]
    #[case(
        "p: &p {x: 1}\nq: &q {x: 2, z: 3}\nd: {<<: [*p, *q]}",
        "{p: {x: 1}, q: {x: 2, z: 3}, d: {x: 1, z: 3}}"
    )]
    fn one_document(#[case] text: &str, #[case] tree: &str) {
        assert_eq!(trees(text), [(1, tree.to_owned())]);
    }

    #[test]
    fn empty_documents_are_skipped_but_counted() {
        assert_eq!(trees(""), []);
        assert_eq!(trees("---\n---\n# nothing\n---\na: 1\n---\n"), [(3, "{a: 1}".into())]);
    }

    #[test]
    fn files_behind_one_another_are_documents_of_one_stream() {
        let two = [(1, "{a: 1}".to_owned()), (2, "{b: 2}".to_owned())];
        for text in [
            "\u{feff}a: 1\n---\n\u{feff}b: 2\n",
            "\u{feff}---\na: 1\n\u{feff}---\nb: 2\n",
            "{\"a\": 1}\n{\"b\": 2}\n",
            "{\"a\": 1}{\"b\": 2}",
            "\u{feff}{\"a\": 1}\n\u{feff}{\"b\": 2}\n",
            "{\"a\": 1}\n---\nb: 2\n",
            "a: 1\n---\n{\"b\": 2}\n",
        ] {
            assert_eq!(trees(text), two, "{text:?}");
        }
        let three = trees("a: 1\n---\n{\"b\": 2}\n{\"c\": 3}\n---\n");
        assert_eq!(three.last(), Some(&(3, "{c: 3}".to_owned())));
        let error = documents("{\"a\": 1}\n\n{\"b\":\n 2,\n \"b\": 3}\n").unwrap_err();
        assert_eq!((error.document, error.line), (2, 5), "{error}");
        let error = documents("{\"a\": 1}\n{\"b\": [}\n").unwrap_err();
        assert_eq!(error.line, 2, "{error}");
        let marked = documents("a: 1\n---\n\u{feff}b:\n  c: 2\n").unwrap();
        assert_eq!(marked[1].1.line, 3);
    }

    #[test]
    fn a_mark_within_a_text_stays() {
        assert_eq!(trees("a: 'x\u{feff}y'\n"), [(1, "{a: \"x\\u{feff}y\"}".into())]);
        assert_eq!(
            trees("a: |\n  x\n  \u{feff}y\n"),
            [(1, "{a: \"x\\n\\u{feff}y\\n\"}".into())]
        );
    }

    #[rstest]
    #[case("a: [", 1, 1, "")]
    #[case("x: 1\n---\na: 1\nb: 2\na: 3\n", 2, 5, "the key \"a\" stands twice")]
    #[case("a: &x [*x]", 1, 1, "inside what it stands for")]
    #[case("a: *nobody", 1, 1, "")]
    #[case("? [a]\n: 1", 1, 1, "a key must be a scalar")]
    #[case("a: !thing 1", 1, 1, "the tag \"!thing\"")]
    #[case("\na:\n  <<: 5", 1, 3, "a merge key")]
    #[case("a: b: c", 1, 1, "")]
    fn errors_say_where(#[case] text: &str, #[case] document: usize, #[case] line: usize, #[case] problem: &str) {
        let error = documents(text).unwrap_err();
        assert_eq!((error.document, error.line), (document, line), "{error}");
        assert!(error.problem.contains(problem), "{error}");
    }

    #[test]
    fn small_inputs_do_not_unfold_to_large_ones() {
        let mut laughs = "l0: &l0 [a, a, a, a, a, a, a, a, a, a]\n".to_owned();
        for level in 1..10 {
            let aliases = vec![format!("*l{}", level - 1); 10].join(", ");
            laughs += &format!("l{level}: &l{level} [{aliases}]\n");
        }
        assert!(documents(&laughs).unwrap_err().problem.contains("values"));

        let mut stairs = "a0: &a0 [x]\n".to_owned();
        for level in 1..1000 {
            stairs += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
        }
        assert!(documents(&stairs).unwrap_err().problem.contains("nested deeper"));
        for text in ["[".repeat(1 << 20), "- ".repeat(1 << 19), "{a: ".repeat(1 << 18)] {
            documents(&text).unwrap_err();
        }
    }
}
