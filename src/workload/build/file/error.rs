//! What is wrong with a build file.

use std::fmt;

/// How much of the file's own text a sentence repeats.
const SHOWN: usize = 120;

/// Why a build file is refused: where, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// Name of the file.
    pub file: String,
    /// Line, from 1; 0 if it is of the whole file, or of a trigger of the base image.
    pub line: u32,
    /// The instruction, in upper case; empty if it is of none.
    pub instruction: String,
    /// The sentence.
    pub problem: Problem,
}

impl std::error::Error for FileError {}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, " line {}", self.line)?;
        }
        if !self.instruction.is_empty() {
            write!(f, " ({})", self.instruction)?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// What is wrong, without its place. The first words are part of the contract (`docs/spec/api.md` 7.4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(pub String);

impl Problem {
    /// With this sentence.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }

    pub(super) fn not_text() -> Self {
        Self::new("the build file is not UTF-8 text without NUL")
    }

    pub(super) fn at(self, file: &str, line: u32, instruction: &str) -> FileError {
        FileError {
            file: file.to_owned(),
            line,
            instruction: instruction.to_owned(),
            problem: self,
        }
    }
}

/// Text of the file within a sentence: short, and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN) {
        match c.is_control() {
            true => shown.extend(c.escape_debug()),
            false => shown.push(c),
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}
