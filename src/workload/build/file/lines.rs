//! From the text of a build file to its instructions: directives, comments, continued lines and heredocs.

use std::str::SplitInclusive;

use super::error::{Problem, shown};
use super::heredoc::{self, Mark};

/// An instruction as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Number of its first line, from 1.
    pub number: u32,
    /// The joined lines, without blanks around them.
    pub text: String,
    /// The heredocs that follow, in order.
    pub heredocs: Vec<(Mark, String)>,
}

/// The instructions of a file.
pub(super) struct Lines<'a> {
    text: SplitInclusive<'a, char>,
    number: u32,
    directives: Directives,
}

/// `# name=value` before anything else.
struct Directives {
    escape: char,
    seen: Vec<&'static str>,
    done: bool,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text: text.strip_prefix('\u{feff}').unwrap_or(text).split_inclusive('\n'),
            number: 0,
            directives: Directives {
                escape: '\\',
                seen: Vec::new(),
                done: false,
            },
        }
    }

    /// The escape character: final when the first instruction has been read.
    pub(super) fn escape(&self) -> char {
        self.directives.escape
    }

    /// The next instruction, or what is wrong in which line.
    pub(super) fn next(&mut self) -> Result<Option<Line>, (u32, Problem)> {
        while let Some(first) = self.line() {
            let first = first.trim_start();
            self.directives.read(first).map_err(|problem| (self.number, problem))?;
            if first.is_empty() || first.starts_with('#') {
                continue;
            }
            let number = self.number;
            let text = self.joined(first);
            if text.trim().is_empty() {
                continue;
            }
            let mut line = Line {
                number,
                text: text.trim().to_owned(),
                heredocs: Vec::new(),
            };
            if heredoc::may_have(&line.text, self.escape()) {
                self.read_heredocs(&mut line).map_err(|problem| (number, problem))?;
            }
            return Ok(Some(line));
        }
        Ok(None)
    }

    /// The next line without its end.
    fn line(&mut self) -> Option<&'a str> {
        let line = self.text.next()?;
        self.number += 1;
        Some(line.trim_end_matches(['\r', '\n']))
    }

    /// A line and those that continue it. Nothing is put between them; comments and empty lines among them vanish.
    fn joined(&mut self, first: &str) -> String {
        let escape = self.escape();
        let (begun, mut open) = continued(first, escape);
        let mut joined = begun.to_owned();
        while open {
            let Some(line) = self.line() else { break };
            let content = line.trim_start();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (more, goes_on) = continued(line, escape);
            joined.push_str(more);
            open = goes_on;
        }
        joined
    }

    fn read_heredocs(&mut self, line: &mut Line) -> Result<(), Problem> {
        for mark in heredoc::marks(&line.text) {
            let mut content = String::new();
            loop {
                let Some(next) = self.text.next() else {
                    let name = shown(&mark.name);
                    let message = format!("the heredoc {name} does not end; end it with a line that is only {name}");
                    return Err(Problem::new(message));
                };
                self.number += 1;
                let end = next.trim_end_matches(['\r', '\n']);
                let end = if mark.strips_tabs {
                    end.trim_start_matches('\t')
                } else {
                    end
                };
                if end == mark.name {
                    break;
                }
                content.push_str(next);
            }
            line.heredocs.push((mark, content));
        }
        Ok(())
    }
}

/// The line without the escape character at its end that continues it, and whether there was one. An escaped escape
/// character is none.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let end = line.trim_end_matches([' ', '\t']);
    match end.strip_suffix(escape) {
        Some(begun) if !begun.ends_with(escape) => (begun, true),
        _ => (line, false),
    }
}

impl Directives {
    /// Of a line without blanks before it.
    fn read(&mut self, line: &str) -> Result<(), Problem> {
        if self.done {
            return Ok(());
        }
        let directive = line.strip_prefix('#').and_then(|line| line.trim().split_once('='));
        let known = directive.and_then(|(name, value)| {
            let name = name.trim_end();
            let known = ["syntax", "escape", "check"].into_iter();
            let mut known = known.filter(|known| known.eq_ignore_ascii_case(name));
            known
                .next()
                .map(|name| (name, value.trim()))
                .filter(|(_, value)| !value.is_empty())
        });
        let Some((name, value)) = known else {
            self.done = true;
            return Ok(());
        };
        if self.seen.contains(&name) {
            let message = format!("a second directive {name}; only one can be used");
            return Err(Problem::new(message));
        }
        self.seen.push(name);
        match (name, value) {
            ("escape", "\\") => self.escape = '\\',
            ("escape", "`") => self.escape = '`',
            ("escape", other) => {
                let message = format!("the directive escape is \\ or `, not {}", shown(other));
                return Err(Problem::new(message));
            }
            _ => {}
        }
        Ok(())
    }
}
