//! `.dockerignore`, and `--exclude`.

use super::pattern::PatternError;

/// Which paths are left out: patterns of which the last match counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore;

impl Ignore {
    /// From the text of an ignore file: one pattern a line, `#` begins a comment, `!` takes paths in again.
    pub fn parse(text: &[u8]) -> Result<Self, PatternError> {
        let _ = text;
        unimplemented!()
    }

    /// From patterns as in a file, without comments.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let _ = patterns.into_iter().count();
        unimplemented!()
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }

    /// Whether the path is left out: itself, or because a directory above it is. Clean, relative to the root, without a
    /// final `/`. A directory may be left out and yet have things in it that are not ([`Ignore::skips`]).
    pub fn is_ignored(&self, path: &[u8]) -> bool {
        let _ = path;
        unimplemented!()
    }

    /// Whether nothing below the directory `path` can be taken in, so that it need not be read.
    pub fn skips(&self, path: &[u8]) -> bool {
        let _ = path;
        unimplemented!()
    }
}
