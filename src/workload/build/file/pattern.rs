//! Wildcards in paths.

use super::error::shown;

/// A path with the wildcards of Go's `filepath.Match`: `*` and `?` match no `/`, `[a-z]` and `[^a-z]` one character,
/// `\` makes the next character an ordinary one. For the sources of `COPY` and `ADD`.
///
/// It matches paths with as many components as it has: without a final slash, and `.`, `..` and a slash at its beginning
/// are resolved as at a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Vec<Token>>);

/// A pattern that is none, such as `[a`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Wrong syntax.
    #[error("{}: not a valid pattern; it has a [ without ], or ends with a \\", shown(.0))]
    Syntax(String),
    /// Too much of it.
    #[error("there are more than {0} patterns")]
    TooMany(usize),
    /// Too long a file, or not text.
    #[error("{0}")]
    File(String),
}

/// What matches one character or more, none of them `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Star,
    Any,
    Is(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Pattern {
    /// Parses one.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let mut components: Vec<Vec<Token>> = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(components.pop()),
                part => components.push(tokens(part).ok_or_else(|| PatternError::Syntax(text.to_owned()))?),
            }
        }
        Ok(Self(components))
    }

    /// Whether this text has a wildcard or an escape, so that it is not simply a path.
    pub fn has_wildcards(text: &str) -> bool {
        text.contains(['*', '?', '[', '\\'])
    }

    /// How many components a path that it matches has; 0 for the root itself.
    #[cfg(test)]
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// Whether it matches the whole of `path`: relative to the root, clean.
    pub fn matches(&self, path: &[u8]) -> bool {
        components(path).count() == self.0.len() && self.fits(path)
    }

    /// Whether something beneath the directory `path` may match, so that it has to be read.
    #[cfg(test)]
    pub fn may_match_in(&self, path: &[u8]) -> bool {
        components(path).count() < self.0.len() && self.fits(path)
    }

    fn fits(&self, path: &[u8]) -> bool {
        self.0
            .iter()
            .zip(components(path))
            .all(|(pattern, name)| component(pattern, name))
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|name| !name.is_empty())
}

/// Whether a pattern without slashes matches a name. One `*` is extended at a time, the last one: it is enough.
fn component(pattern: &[Token], name: &[u8]) -> bool {
    let name: Vec<char> = String::from_utf8_lossy(name).chars().collect();
    let (mut at, mut token) = (0, 0);
    let mut star = None;
    while at < name.len() {
        match pattern.get(token) {
            Some(Token::Star) => {
                star = Some((token, at));
                token += 1;
                continue;
            }
            Some(own) if own.is(name[at]) => {
                at += 1;
                token += 1;
                continue;
            }
            _ => {}
        }
        let Some((back, from)) = star else { return false };
        star = Some((back, from + 1));
        token = back + 1;
        at = from + 1;
    }
    pattern[token..].iter().all(|token| *token == Token::Star)
}

impl Token {
    /// Whether it matches this character, which is no `/`.
    pub(super) fn is(&self, c: char) -> bool {
        match self {
            Self::Star | Self::Any => true,
            Self::Is(own) => *own == c,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)) != *negated
            }
        }
    }
}

/// The tokens of a component. `None` if it is not valid.
pub(super) fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Is(characters.next()?),
            '[' => class(&mut characters)?,
            c => Token::Is(c),
        });
    }
    Some(tokens)
}

/// From after its `[` to its `]`. It is not empty; `-` and `]` need a `\`.
pub(super) fn class(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = characters.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && characters.next_if_eq(&']').is_some() {
            return Some(Token::Class { negated, ranges });
        }
        let first = bound(characters)?;
        let last = match characters.next_if_eq(&'-') {
            Some(_) => bound(characters)?,
            None => first,
        };
        ranges.push((first, last));
    }
}

fn bound(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match characters.next()? {
        '-' | ']' => None,
        '\\' => characters.next(),
        c => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("abc", "abc", true)]
    #[case("*", "abc", true)]
    #[case("*", "a/b", false)]
    #[case("*c", "abc", true)]
    #[case("a*", "ab/c", false)]
    #[case("a*/b", "abc/b", true)]
    #[case("a*b*c*d*e*/f", "axbxcxdxexxx/f", true)]
    #[case("a*b?c*x", "abxbbxdbxebxczzx", true)]
    #[case("a*b?c*x", "abxbbxdbxebxczzy", false)]
    #[case("ab[c]", "abc", true)]
    #[case("ab[b-d]", "abc", true)]
    #[case("ab[e-g]", "abc", false)]
    #[case("ab[^c]", "abc", false)]
    #[case("ab[^e-g]", "abc", true)]
    #[case("a\\*b", "a*b", true)]
    #[case("a\\*b", "ab", false)]
    #[case("a?b", "a☺b", true)]
    #[case("a[^a]b", "a☺b", true)]
    #[case("a???b", "a☺b", false)]
    #[case("[a-ζ]*", "α", true)]
    #[case("*[a-ζ]", "A", false)]
    #[case("a?b", "a/b", false)]
    #[case("[\\]a]", "]", true)]
    #[case("[\\-x]", "-", true)]
    #[case("./x/../y*", "yes", true)]
    #[case("/y*/", "yes", true)]
    #[case("../y*", "yes", true)]
    #[case("", "", true)]
    #[case("a**b", "axxb", true)]
    fn matches_as_go_does(#[case] pattern: &str, #[case] path: &str, #[case] matches: bool) {
        assert_eq!(Pattern::parse(pattern).unwrap().matches(path.as_bytes()), matches);
    }

    #[rstest]
    #[case("[]a]")]
    #[case("[-]")]
    #[case("[x-]")]
    #[case("[a")]
    #[case("[")]
    #[case("[^")]
    #[case("[^bc")]
    #[case("a\\")]
    #[case("x/[a/b]")]
    fn what_is_no_pattern(#[case] pattern: &str) {
        let message = Pattern::parse(pattern).unwrap_err().to_string();
        assert!(message.contains("not a valid pattern"), "{message}");
    }

    #[test]
    fn directories_that_may_have_matches() {
        let pattern = Pattern::parse("src/*/lib?.rs").unwrap();
        assert_eq!(pattern.depth(), 3);
        let in_directory = |path: &str| pattern.may_match_in(path.as_bytes());
        assert!(in_directory("") && in_directory("src") && in_directory("src/x"));
        assert!(!in_directory("source") && !in_directory("src/x/lib1.rs"));
        assert!(Pattern::parse("*").unwrap().matches(b"\xff\xfe"));
        assert!(Pattern::has_wildcards("a[b]") && !Pattern::has_wildcards("a b/c"));
    }
}
