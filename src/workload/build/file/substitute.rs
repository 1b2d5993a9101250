//! Patterns within variables: `${x#a*}`, `${x%%.*}`, `${x/a?/b}`.

use super::budget::Budget;

/// `*`, `?` and characters. Neither wildcard matches a line feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob(Vec<Token>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Star,
    Any,
    Is(char),
}

impl Glob {
    /// `\` escapes `*`, `?` and itself, and what ends the pattern.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut characters = text.chars();
        while let Some(c) = characters.next() {
            tokens.push(match c {
                '*' => Token::Star,
                '?' => Token::Any,
                '\\' => match characters.next() {
                    Some(c @ ('*' | '?' | '\\' | '}' | '/')) => Token::Is(c),
                    _ => return Err(format!("invalid escape in the pattern {}", super::error::shown(text))),
                },
                c => Token::Is(c),
            });
        }
        tokens.dedup_by(|a, b| *a == Token::Star && *b == Token::Star);
        Ok(Self(tokens))
    }

    /// The value without the shortest or longest beginning that matches.
    pub(super) fn without_prefix(&self, value: &str, longest: bool, budget: &mut Budget) -> Result<String, String> {
        let characters: Vec<char> = value.chars().collect();
        let length = self.beginning(&characters, longest, budget)?.unwrap_or(0);
        Ok(characters[length..].iter().collect())
    }

    /// The value without the shortest or longest end that matches.
    pub(super) fn without_suffix(&self, value: &str, longest: bool, budget: &mut Budget) -> Result<String, String> {
        let characters: Vec<char> = value.chars().rev().collect();
        let reversed = Self(self.0.iter().rev().copied().collect());
        let length = reversed.beginning(&characters, longest, budget)?.unwrap_or(0);
        Ok(characters[length..].iter().rev().collect())
    }

    /// The value with the first match, or all of them, replaced; each as long as possible.
    pub(super) fn replace(&self, value: &str, by: &str, all: bool, budget: &mut Budget) -> Result<String, String> {
        let characters: Vec<char> = value.chars().collect();
        let mut replaced = String::new();
        let mut at = 0;
        // Where the last match ended: right there an empty one does not count.
        let mut end = None;
        while at <= characters.len() {
            let found = self.beginning(&characters[at..], true, budget)?;
            if let Some(length) = found.filter(|length| *length > 0 || end != Some(at)) {
                replaced.push_str(by);
                budget.produced(by.len())?;
                at += length;
                end = Some(at);
                if !all {
                    break;
                }
                if length > 0 {
                    continue;
                }
            }
            replaced.extend(characters.get(at));
            at += 1;
        }
        replaced.extend(characters.get(at..).unwrap_or_default());
        Ok(replaced)
    }

    /// How much of the beginning of `text` matches.
    fn beginning(&self, text: &[char], longest: bool, budget: &mut Budget) -> Result<Option<usize>, String> {
        let mut states = Vec::new();
        self.enter(0, &mut states);
        let mut found = None;
        for at in 0..=text.len() {
            budget.work()?;
            if states.last() == Some(&self.0.len()) {
                found = Some(at);
                if !longest {
                    break;
                }
            }
            let Some(c) = text.get(at) else { break };
            let mut next = Vec::new();
            for state in states {
                budget.work()?;
                match self.0.get(state) {
                    Some(Token::Star) if *c != '\n' => self.enter(state, &mut next),
                    Some(Token::Any) if *c != '\n' => self.enter(state + 1, &mut next),
                    Some(Token::Is(own)) if own == c => self.enter(state + 1, &mut next),
                    _ => {}
                }
            }
            states = next;
            if states.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    /// Adds a state, and the one after a `*`. States are added in ascending order.
    fn enter(&self, state: usize, states: &mut Vec<usize>) {
        if states.last().is_none_or(|last| *last < state) {
            states.push(state);
        }
        if self.0.get(state) == Some(&Token::Star) && states.last().is_none_or(|last| *last <= state) {
            states.push(state + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a*", "abcab", "bcab", "")]
    #[case("*b", "abcab", "cab", "")]
    #[case("*", "abc", "abc", "")]
    #[case("a?", "abc", "c", "c")]
    #[case("x*", "abc", "abc", "abc")]
    #[case("*a*b", "xaybzab", "zab", "")]
    #[case("\\*", "*a", "a", "a")]
    #[case("*/", "a/b/c", "b/c", "c")]
    #[case("ä?", "äöü", "ü", "ü")]
    #[case("*x", "a\nx", "a\nx", "a\nx")]
    #[case("", "abc", "abc", "abc")]
    fn beginnings(#[case] pattern: &str, #[case] value: &str, #[case] shortest: &str, #[case] longest: &str) {
        let glob = Glob::parse(pattern).unwrap();
        let cut = |longest| glob.without_prefix(value, longest, &mut Budget::default()).unwrap();
        assert_eq!((&*cut(false), &*cut(true)), (shortest, longest));
    }

    #[rstest]
    #[case(".*", "a.b.c", "a.b", "a")]
    #[case("/*", "a/b/", "a/b", "a")]
    #[case("?c", "abc", "a", "a")]
    #[case("\\*", "a*", "a", "a")]
    fn ends(#[case] pattern: &str, #[case] value: &str, #[case] shortest: &str, #[case] longest: &str) {
        let glob = Glob::parse(pattern).unwrap();
        let cut = |longest| glob.without_suffix(value, longest, &mut Budget::default()).unwrap();
        assert_eq!((&*cut(false), &*cut(true)), (shortest, longest));
    }

    #[rstest]
    #[case("a", "x", "banana", "bxnana", "bxnxnx")]
    #[case("a*n", "x", "banana", "bxa", "bxa")]
    #[case("q", "x", "banana", "banana", "banana")]
    #[case("*", "x", "ab", "x", "x")]
    #[case("", "x", "ab", "xab", "xaxbx")]
    fn replacements(
        #[case] pattern: &str,
        #[case] by: &str,
        #[case] value: &str,
        #[case] one: &str,
        #[case] all: &str,
    ) {
        let glob = Glob::parse(pattern).unwrap();
        let replace = |all| glob.replace(value, by, all, &mut Budget::default()).unwrap();
        assert_eq!((&*replace(false), &*replace(true)), (one, all));
    }

    #[test]
    fn work_is_bounded() {
        let glob = Glob::parse(&"*a".repeat(1000)).unwrap();
        let error = glob.without_prefix(&"a".repeat(100_000), true, &mut Budget::default());
        assert_eq!(error.unwrap_err(), "its patterns (as in ${x#a*b}) take too long");
        let glob = Glob::parse("").unwrap();
        let error = glob.replace(&"a".repeat(100_000), &"x".repeat(100), true, &mut Budget::default());
        assert!(error.unwrap_err().contains("longer than"));
    }
}
