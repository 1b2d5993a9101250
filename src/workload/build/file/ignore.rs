//! `.dockerignore`, and `--exclude`.

use super::limits::{IGNORE_BYTES, PATTERNS};
use super::pattern::{PatternError, Token, class, tokens};

/// Which paths are left out: patterns of which the last match counts.
///
/// A pattern has the wildcards of [`Pattern`](super::Pattern), and `**` for any number of directories; it matches a path
/// if it matches the whole of it, or of a directory above it. `!` before it takes paths in again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// `!`.
    takes_in: bool,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    One(Token),
    Slash,
    /// `**` with something after it: any number of directories, each with its slash.
    Directories,
    /// `**` at the end, or at the beginning before nothing but characters: anything.
    Anything,
}

impl Ignore {
    /// From the text of an ignore file: one pattern a line; `#` at the beginning of a line begins a comment. Patterns
    /// are relative to the root, with or without a slash before them.
    pub fn parse(text: &[u8]) -> Result<Self, PatternError> {
        if text.len() as u64 > IGNORE_BYTES {
            let message = format!("it is longer than {IGNORE_BYTES} bytes");
            return Err(PatternError::File(message));
        }
        let text = std::str::from_utf8(text).map_err(|_| PatternError::File("it is not UTF-8 text".into()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self::new(text.lines().filter(|line| !line.starts_with('#')))
    }

    /// From patterns as in a file, without comments.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let mut rules = Vec::new();
        for written in patterns {
            let pattern = written.trim();
            let (takes_in, pattern) = match pattern.strip_prefix('!') {
                Some(pattern) => (true, pattern.trim()),
                None => (false, pattern),
            };
            if pattern.is_empty() && !takes_in {
                continue;
            }
            let parts = Some(clean(pattern)).filter(|clean| !clean.is_empty() || !pattern.is_empty());
            let parts = parts.and_then(|clean| parts_of(&clean));
            let parts = parts.ok_or_else(|| PatternError::Syntax(written.to_owned()))?;
            if rules.len() == PATTERNS {
                return Err(PatternError::TooMany(PATTERNS));
            }
            rules.push(Rule { takes_in, parts });
        }
        Ok(Self(rules))
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the path is left out: itself, or because a directory above it is. Clean, relative to the root, without a
    /// final `/`. A directory may be left out and yet have things in it that are not ([`Ignore::skips`]).
    pub fn is_ignored(&self, path: &[u8]) -> bool {
        let path = String::from_utf8_lossy(path);
        let mut ignored = false;
        for rule in &self.0 {
            // Only what changes the answer has to be looked at.
            if rule.takes_in == ignored && rule.walk(&path).matched {
                ignored = !ignored;
            }
        }
        ignored && !path.is_empty()
    }

    /// Whether nothing below the directory `path` can be taken in, so that it need not be read.
    pub fn skips(&self, path: &[u8]) -> bool {
        if !self.is_ignored(path) {
            return false;
        }
        let below = format!("{}/", String::from_utf8_lossy(path));
        let mut takes_in = self.0.iter().filter(|rule| rule.takes_in);
        !takes_in.any(|rule| rule.walk(&below).goes_on)
    }
}

/// What a rule makes of a path.
struct Walk {
    /// It matches the path or a directory above it.
    matched: bool,
    /// It may match something longer.
    goes_on: bool,
}

impl Rule {
    fn walk(&self, path: &str) -> Walk {
        let mut states = vec![false; self.parts.len() + 1];
        self.enter(0, &mut states);
        let mut matched = false;
        for c in path.chars() {
            matched |= c == '/' && states[self.parts.len()];
            if !states.contains(&true) {
                break;
            }
            let mut next = vec![false; states.len()];
            for (state, part) in self.parts.iter().enumerate().filter(|(state, _)| states[*state]) {
                match part {
                    Part::One(Token::Star) if c != '/' => self.enter(state, &mut next),
                    Part::One(token) if c != '/' && token.is(c) => self.enter(state + 1, &mut next),
                    Part::One(_) => {}
                    Part::Slash if c == '/' => self.enter(state + 1, &mut next),
                    Part::Slash => {}
                    Part::Directories => {
                        next[state] = true;
                        if c == '/' {
                            self.enter(state + 1, &mut next);
                        }
                    }
                    Part::Anything => self.enter(state, &mut next),
                }
            }
            states = next;
        }
        Walk {
            matched: matched || states[self.parts.len()],
            goes_on: states.contains(&true),
        }
    }

    /// Adds a state, and those after what may match nothing.
    fn enter(&self, mut state: usize, states: &mut [bool]) {
        loop {
            states[state] = true;
            match self.parts.get(state) {
                Some(Part::One(Token::Star) | Part::Directories | Part::Anything) => state += 1,
                _ => return,
            }
        }
    }
}

/// A relative path without `.`, double slashes, and `..` where something is before it.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if pattern.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The parts of a clean pattern. `None` if it is not valid.
fn parts_of(pattern: &str) -> Option<Vec<Part>> {
    // `**name` is anything that ends so; with a slash or a wildcard in it, `**` means directories again.
    if let Some(end) = pattern.strip_prefix("**")
        && !end.contains(['*', '?', '[', ']', '\\', '/'])
    {
        let end = tokens(end)?.into_iter().map(Part::One);
        return Some(std::iter::once(Part::Anything).chain(end).collect());
    }
    let mut parts = Vec::new();
    let mut characters = pattern.chars().peekable();
    while let Some(c) = characters.next() {
        parts.push(match c {
            '*' if characters.next_if_eq(&'*').is_some() => {
                let _ = characters.next_if_eq(&'/');
                match characters.peek() {
                    None => Part::Anything,
                    Some(_) => Part::Directories,
                }
            }
            '*' => Part::One(Token::Star),
            '?' => Part::One(Token::Any),
            '\\' => Part::One(Token::Is(characters.next()?)),
            '[' => Part::One(class(&mut characters)?),
            '/' => Part::Slash,
            c => Part::One(Token::Is(c)),
        });
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn ignored(patterns: &[&str], path: &str) -> bool {
        Ignore::new(patterns.iter().copied())
            .unwrap()
            .is_ignored(path.as_bytes())
    }

    #[rstest]
    #[case(&["docs"], "docs", true)]
    #[case(&["docs"], "docs/a/b", true)]
    #[case(&["docs"], "x/docs", false)]
    #[case(&["docs"], "docs2", false)]
    #[case(&["/docs/"], "docs/a", true)]
    #[case(&["./a/../docs"], "docs", true)]
    #[case(&["../docs"], "docs", false)]
    #[case(&["*.md"], "a.md", true)]
    #[case(&["*.md"], "x/a.md", false)]
    #[case(&["*/a.md"], "x/a.md", true)]
    #[case(&["*/temp*"], "some/temporary/x", true)]
    #[case(&["temp?"], "tempa", true)]
    #[case(&["temp?"], "temp", false)]
    #[case(&["**/*.go"], "a.go", true)]
    #[case(&["**/*.go"], "x/y/a.go", true)]
    #[case(&["**/x"], "a/b/x/c", true)]
    #[case(&["**/x"], "ax", false)]
    #[case(&["**x"], "a/bx", true)]
    #[case(&["x/**"], "x/y", true)]
    #[case(&["x/**"], "x", false)]
    #[case(&["x/**/y"], "x/y", true)]
    #[case(&["x/**/y"], "x/a/b/y", true)]
    #[case(&["x/**/y"], "xy", false)]
    #[case(&["**"], "x/y", true)]
    #[case(&["a**b"], "ab", true)]
    #[case(&["a**b"], "ax/b", true)]
    #[case(&["**/node_modules", "!**/node_modules/keep"], "a/node_modules/keep/x", false)]
    #[case(&["*.md", "!README*.md", "README-secret.md"], "README.md", false)]
    #[case(&["*.md", "!README*.md", "README-secret.md"], "README-secret.md", true)]
    #[case(&["*.md", "README-secret.md", "!README*.md"], "README-secret.md", false)]
    #[case(&["*", "!a"], "a/b", false)]
    #[case(&["*", "!a"], "b", true)]
    #[case(&["*", "! /a "], "a", false)]
    #[case(&["!a"], "a", false)]
    #[case(&["a[b-d]e"], "ace", true)]
    #[case(&["a\\*b"], "a*b", true)]
    #[case(&["a\\*b"], "axb", false)]
    #[case(&["a.b"], "axb", false)]
    #[case(&["ä?"], "äö", true)]
    #[case(&["."], "a", false)]
    #[case(&["*"], "", false)]
    fn the_last_match_counts(#[case] patterns: &[&str], #[case] path: &str, #[case] is_ignored: bool) {
        assert_eq!(ignored(patterns, path), is_ignored);
    }

    #[test]
    fn a_file_has_comments_and_blank_lines() {
        let text = b"\xef\xbb\xbf# a comment\n\n  a  \r\n #b\n!a/keep\n";
        let ignore = Ignore::parse(text).unwrap();
        for (path, is_ignored) in [("a", true), ("a/keep", false), ("#b", true), ("# a comment", false)] {
            assert_eq!(ignore.is_ignored(path.as_bytes()), is_ignored, "{path}");
        }
        assert!(Ignore::parse(b"# nothing\n\n").unwrap().is_empty());
        assert!(!ignore.is_empty());
    }

    #[rstest]
    #[case(b"[a", "[a: not a valid pattern")]
    #[case(b"!", "!: not a valid pattern")]
    #[case(b"a\\", "a\\: not a valid pattern")]
    #[case(b"\xff", "it is not UTF-8 text")]
    fn what_is_no_ignore_file(#[case] text: &[u8], #[case] message: &str) {
        let error = Ignore::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[test]
    fn its_size_is_bounded() {
        assert!(Ignore::parse(&vec![b'\n'; (256 << 10) + 1]).is_err());
        assert!(Ignore::parse("a\n".repeat(4096).as_bytes()).is_ok());
        assert!(Ignore::parse("a\n".repeat(4097).as_bytes()).is_err());
    }

    #[rstest]
    #[case(&["a"], "a", true)]
    #[case(&["a"], "b", false)]
    #[case(&["a", "!b"], "a", true)]
    #[case(&["a", "!a/b/c"], "a", false)]
    #[case(&["a", "!a/b/c"], "a/b", false)]
    #[case(&["a", "!a/b/c"], "a/d", true)]
    #[case(&["a", "!**/keep"], "a/b", false)]
    #[case(&["*", "!src"], "docs", true)]
    #[case(&["*", "!src"], "src", false)]
    #[case(&["*", "!*.md"], "docs", true)]
    #[case(&["*", "!*/x"], "docs", false)]
    fn directories_without_anything_need_not_be_read(
        #[case] patterns: &[&str],
        #[case] path: &str,
        #[case] skips: bool,
    ) {
        let ignore = Ignore::new(patterns.iter().copied()).unwrap();
        assert_eq!(ignore.skips(path.as_bytes()), skips);
    }
}
