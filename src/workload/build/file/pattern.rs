//! Wildcards in paths.

/// A path with the wildcards of Go's `filepath.Match`: `*` and `?` match no `/`, `[a-z]` and `[^a-z]` one character,
/// `\` the next character as it is. For the sources of `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern;

/// A pattern that is none, as `[a`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: not a valid pattern; it has a [ without ], or ends with a \\")]
pub struct PatternError(pub String);

impl Pattern {
    /// Parses one.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let _ = text;
        unimplemented!()
    }

    /// Whether it has a wildcard or an escape, so that it is not simply a path.
    pub fn has_wildcards(text: &str) -> bool {
        text.contains(['*', '?', '[', '\\'])
    }

    /// Whether it matches the whole of `path`.
    pub fn matches(&self, path: &[u8]) -> bool {
        let _ = path;
        unimplemented!()
    }
}
