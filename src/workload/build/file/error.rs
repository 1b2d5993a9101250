//! What is wrong with a build file.

use std::fmt;

/// Why a build file is refused: where, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
}
