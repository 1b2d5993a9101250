//! `--name=value` after the name of an instruction.

use super::error::{Problem, shown};
use super::nearest;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// `--name`, `--name=true`, `--name=false`.
    Switch,
    /// `--name=value`, once.
    Value,
    /// `--name=value`, any number.
    Values,
}

/// The flags of one instruction.
#[derive(Debug, Default)]
pub(super) struct Flags(Vec<(&'static str, String)>);

/// The flags at the beginning of `text`, without their quotes and escapes, and the rest. `--` ends them.
pub(super) fn take(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let (flag, after) = word(rest, escape);
        rest = after.trim_start();
        if flag == "--" {
            break;
        }
        flags.push(flag);
    }
    (flags, rest)
}

/// The first word, and what follows.
fn word(text: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match quote {
            None if c.is_whitespace() => return (word, &text[at..]),
            None if matches!(c, '\'' | '"') => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == escape => word.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => word.push(c),
        }
    }
    (word, "")
}

impl Flags {
    /// Checks the flags of an instruction against those that it has.
    pub(super) fn new(words: &[String], known: &[(&'static str, Takes)]) -> Result<Self, Problem> {
        let mut flags = Self::default();
        for word in words {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (&word[..], None),
            };
            let name = name.strip_prefix("--").unwrap_or(name);
            let Some((name, takes)) = known.iter().find(|(known, _)| *known == name) else {
                return Err(unknown(name, known));
            };
            if *takes != Takes::Values && flags.one(name).is_some() {
                return Err(Problem::new(format!("the flag --{name} can be given once")));
            }
            let value = match (takes, value) {
                (Takes::Switch, None) => "true".to_owned(),
                (Takes::Switch, Some(value)) => match value.to_ascii_lowercase() {
                    value if value == "true" || value == "false" => value,
                    _ => {
                        let message = format!("the flag --{name} is true or false, not {}", shown(value));
                        return Err(Problem::new(message));
                    }
                },
                (_, None) => return Err(Problem::new(format!("the flag --{name} needs a value: --{name}=…"))),
                (_, Some(value)) => value.to_owned(),
            };
            flags.0.push((name, value));
        }
        Ok(flags)
    }

    /// The value of a flag.
    pub(super) fn one(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|(own, _)| *own == name);
        found.map(|(_, value)| value.clone())
    }

    /// The values of a flag.
    pub(super) fn many(&self, name: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(own, _)| *own == name);
        found.map(|(_, value)| value.clone()).collect()
    }

    /// The value of a switch.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.one(name).map(|value| value == "true")
    }
}

fn unknown(name: &str, known: &[(&'static str, Takes)]) -> Problem {
    let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let hint = match &known[..] {
        [] => "; this instruction has no flags".to_owned(),
        _ => nearest::hint(name, &known, "--"),
    };
    Problem::new(format!("unknown flag: --{}{hint}", shown(name)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("--a=b c", &["--a=b"], "c")]
    #[case("--a=b  --c=d\te", &["--a=b", "--c=d"], "e")]
    #[case("--a='b c' d", &["--a=b c"], "d")]
    #[case(r#"--a="b\"c" d"#, &[r#"--a=b"c"#], "d")]
    #[case(r"--a=b\ c d", &["--a=b c"], "d")]
    #[case("--a -- --b c", &["--a"], "--b c")]
    #[case("a --b", &[], "a --b")]
    #[case("--a", &["--a"], "")]
    #[case("--", &[], "")]
    #[case("--ä='ö", &["--ä=ö"], "")]
    fn flags_are_what_begins_with_hyphens(#[case] text: &str, #[case] flags: &[&str], #[case] rest: &str) {
        let (found, left) = take(text, '\\');
        assert_eq!((found, left), (flags.iter().map(|f| f.to_string()).collect(), rest));
    }

    #[rstest]
    #[case("--chwn=1", "unknown flag: --chwn; did you mean --chown?")]
    #[case("--Chown=1", "unknown flag: --Chown; did you mean --chown?")]
    #[case("--zzz", "unknown flag: --zzz")]
    #[case("--chown", "the flag --chown needs a value: --chown=…")]
    #[case("--link=x", "the flag --link is true or false, not x")]
    #[case("--link --link", "the flag --link can be given once")]
    #[case("--a\u{1b}b", "unknown flag: --a\\u{1b}b")]
    fn what_is_no_flag(#[case] text: &str, #[case] problem: &str) {
        let known = [
            ("chown", Takes::Value),
            ("link", Takes::Switch),
            ("exclude", Takes::Values),
        ];
        assert_eq!(Flags::new(&take(text, '\\').0, &known).unwrap_err().0, problem);
    }
}
