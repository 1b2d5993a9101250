//! Concatenated files: finds boundaries that YAML itself does not see. Pure.
//!
//! Every document of a stream may begin with a byte order mark (YAML 1.2.2, 5.2), as may every file that an editor
//! saved with one. JSON objects may follow each other without a separator, as `cat *.json` and `kubectl get -o json` in
//! a loop produce them.

use std::borrow::Cow;

use serde::de::IgnoredAny;

const MARK: char = '\u{feff}';

/// A part of a text that is a YAML stream of its own.
#[derive(Debug, PartialEq)]
pub(super) struct Piece<'a> {
    /// The text, without byte order marks before its documents.
    pub text: Cow<'a, str>,
    /// Number of lines of the whole text before it.
    pub lines_before: usize,
}

/// The parts of a text, in order. Usually there is one.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let whole = || Piece {
        text: text.into(),
        lines_before: 0,
    };
    if !text.contains(MARK) && !text.contains('{') {
        return vec![whole()];
    }
    let mut pieces = Vec::new();
    let mut lines = 0;
    let mut yaml = Yaml::default();
    for document in documents(text) {
        // Anchors are local to a document, so documents can be read one by one.
        let (marker, body) = match document.starts_with("---") {
            true => document.split_at(document.find('\n').map_or(document.len(), |end| end + 1)),
            false => ("", document),
        };
        let objects = match marker.trim_end() {
            "" | "---" => json_objects(body),
            _ => Vec::new(),
        };
        match &objects[..] {
            [] | [_] => yaml.push(marker, body, lines),
            objects => {
                pieces.extend(yaml.take());
                let mut line = lines + count(marker);
                for object in objects {
                    pieces.push(Piece {
                        text: without_mark(object),
                        lines_before: line,
                    });
                    line += count(object);
                }
            }
        }
        lines += count(document);
    }
    pieces.extend(yaml.take());
    pieces
}

/// Documents that YAML itself can separate.
#[derive(Default)]
struct Yaml {
    text: String,
    lines_before: usize,
}

impl Yaml {
    fn push(&mut self, marker: &str, body: &str, lines: usize) {
        if self.text.is_empty() {
            self.lines_before = lines;
        }
        self.text += marker;
        self.text += &without_mark(body);
    }

    fn take<'a>(&mut self) -> Option<Piece<'a>> {
        let text = std::mem::take(&mut self.text);
        (!text.is_empty()).then_some(Piece {
            text: text.into(),
            lines_before: self.lines_before,
        })
    }
}

fn count(text: &str) -> usize {
    text.matches('\n').count()
}

/// The text from each document marker to the next one. A line that begins with `---` and a blank is a marker anywhere,
/// even inside a scalar (YAML 1.2.2, 9.1.2).
fn documents(text: &str) -> Vec<&str> {
    let mut cuts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let bare = line.strip_prefix(MARK).unwrap_or(line);
        let is_marker = bare
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker && at > 0 {
            cuts.push(at);
        }
        // Skip the mark itself.
        if is_marker && bare.len() < line.len() {
            let last = cuts.len() - 1;
            cuts[last] = at + MARK.len_utf8();
        }
        at += line.len();
    }
    let ends = cuts.iter().skip(1).copied().chain([text.len()]);
    let cut = |(from, to): (&usize, usize)| text.get(*from..to).map(|part| part.strip_suffix(MARK).unwrap_or(part));
    cuts.iter().zip(ends).filter_map(cut).collect()
}

/// The text without a byte order mark before its first content.
fn without_mark(text: &str) -> Cow<'_, str> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with(MARK) {
            return format!("{}{}", &text[..at], &text[at + MARK.len_utf8()..]).into();
        }
        let said = line.trim();
        if !said.is_empty() && !said.starts_with('#') {
            break;
        }
        at += line.len();
    }
    text.into()
}

/// The objects of a text that consists of JSON objects only, each with the text before it; empty for other text.
fn json_objects(text: &str) -> Vec<&str> {
    let mut objects = Vec::new();
    let mut rest = text;
    loop {
        let said = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == MARK);
        if said.is_empty() {
            return objects;
        }
        let mut values = serde_json::Deserializer::from_str(said).into_iter::<IgnoredAny>();
        let end = match values.next() {
            Some(Ok(_)) if said.starts_with('{') => values.byte_offset(),
            // The parser reports the error.
            _ if !objects.is_empty() && said.starts_with('{') => said.len(),
            _ => return Vec::new(),
        };
        let (object, after) = rest.split_at(rest.len() - said.len() + end);
        objects.push(object);
        rest = after;
    }
}
