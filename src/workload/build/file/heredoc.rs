//! `<<EOF`: which words of a line begin a text within the file.

use super::ast::Heredoc;
use super::budget::Budget;
use super::exec_form;
use super::flags;
use super::lexer::{Lexer, Lookup, Quotes};
use super::words::split_name;

/// A word that begins a heredoc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub name: String,
    /// Not quoted.
    pub expand: bool,
    /// `<<-`: tabs at the beginning of lines are not part of the text.
    pub strips_tabs: bool,
}

/// Whether the instruction can have heredocs: `RUN`, `COPY` and `ADD` that are no JSON list, also as triggers.
pub(super) fn may_have(line: &str, escape: char) -> bool {
    if !line.contains("<<") {
        return false;
    }
    let (name, rest) = split_name(line);
    let (_, arguments) = flags::take(rest, escape);
    let (name, arguments) = match name.eq_ignore_ascii_case("ONBUILD") {
        true => {
            let (name, rest) = split_name(arguments.trim());
            (name, flags::take(rest, escape).1)
        }
        false => (name, arguments),
    };
    let takes = ["RUN", "COPY", "ADD"];
    takes.iter().any(|takes| takes.eq_ignore_ascii_case(name)) && !exec_form::is_list(arguments.trim())
}

/// The heredocs that a line begins, in order.
pub(super) fn marks(line: &str) -> Vec<Mark> {
    let lexer = Lexer {
        keep_escapes: true,
        ..lexer(Quotes::Kept)
    };
    // What cannot be read has none.
    let words = lexer.words(line, &mut Budget::default()).unwrap_or_default();
    words.iter().filter_map(|word| mark(word)).collect()
}

/// The heredoc that this word begins: digits, `<<`, perhaps `-`, and one word.
pub(super) fn mark(word: &str) -> Option<Mark> {
    let rest = word
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .strip_prefix("<<")?;
    let (strips_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches([' ', '\t', '\r', '\u{b}', '\u{c}']);
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let words = |quotes| lexer(quotes).words(rest, &mut Budget::default()).ok();
    let (plain, raw) = (words(Quotes::Removed)?, words(Quotes::Kept)?);
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    match (&plain[..], &raw[..]) {
        ([name], [raw]) => Some(Mark {
            name: name.clone(),
            expand: quotes(name) == quotes(raw),
            strips_tabs,
        }),
        _ => None,
    }
}

fn lexer(quotes: Quotes) -> Lexer<'static> {
    Lexer {
        escape: '\\',
        quotes,
        keep_escapes: false,
        lookup: Lookup::Written,
    }
}

impl Mark {
    /// The heredoc with this content.
    pub(super) fn with(&self, content: &str) -> Heredoc {
        let content = match self.strips_tabs {
            true => content
                .split_inclusive('\n')
                .map(|line| line.trim_start_matches('\t'))
                .collect(),
            false => content.to_owned(),
        };
        Heredoc {
            name: self.name.clone(),
            content,
            expand: self.expand,
        }
    }
}
