//! Resolves single words.

use super::budget::Budget;
use super::error::{Problem, shown};
use super::lexer::{Lexer, Lookup, Quotes};
use super::limits::WORD_BYTES;

/// Resolves the words of one instruction.
pub(super) struct Resolver<'a> {
    pub lexer: Lexer<'a>,
    pub budget: Budget,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(escape: char, lookup: Lookup<'a>) -> Self {
        Self {
            lexer: Lexer {
                escape,
                quotes: Quotes::Removed,
                keep_escapes: false,
                lookup,
            },
            budget: Budget::default(),
        }
    }

    /// Whether the meaning of what this word resolves to can be checked.
    pub(super) fn knows(&self, written: &str) -> bool {
        !matches!(self.lexer.lookup, Lookup::Syntax) || !written.contains('$')
    }

    /// One word.
    pub(super) fn word(&mut self, written: &str) -> Result<String, Problem> {
        let word = self.lexer.word(written, &mut self.budget);
        let word = word.map_err(|problem| Problem::new(format!("{problem}, in {}", shown(written))))?;
        if word.len() > WORD_BYTES {
            let message = format!(
                "with its variables, {} has more than {WORD_BYTES} bytes",
                shown(written)
            );
            return Err(Problem::new(message));
        }
        // From a value that is given for the build.
        if word.contains('\0') {
            return Err(Problem::new(format!("{} has a value with NUL", shown(written))));
        }
        Ok(word)
    }

    /// The words that one becomes.
    pub(super) fn words(&mut self, written: &str) -> Result<Vec<String>, Problem> {
        let words = self.lexer.words(written, &mut self.budget);
        words.map_err(|problem| Problem::new(format!("{problem}, in {}", shown(written))))
    }

    pub(super) fn all(&mut self, written: &[String]) -> Result<Vec<String>, Problem> {
        written.iter().map(|word| self.word(word)).collect()
    }

    pub(super) fn some(&mut self, written: Option<&String>) -> Result<Option<String>, Problem> {
        written.map(|word| self.word(word)).transpose()
    }

    pub(super) fn stage(mut self, base: &str, platform: Option<&str>) -> Result<(String, Option<String>), Problem> {
        let resolved = self.word(base)?;
        if resolved.is_empty() && self.knows(base) {
            let message = format!("FROM requires an image, and {} is empty", shown(base));
            return Err(Problem::new(message));
        }
        let Some(written) = platform else {
            return Ok((resolved, None));
        };
        let platform = self.word(written)?;
        if platform.is_empty() && self.knows(written) {
            let message = format!("--platform is empty: {}", shown(written));
            return Err(Problem::new(message));
        }
        Ok((resolved, Some(platform)))
    }
}
