//! Splits a command line into arguments, as `spec --command` needs it (`docs/spec/runtime.md` 5.5).

/// The command line ends too early.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// It ends inside quotes.
    #[error("EOF found when expecting closing quote")]
    Quote,
    /// It ends after a backslash.
    #[error("EOF found after escape character")]
    Escape,
}

/// Splits at white space. Single quotes are literal. In double quotes and outside of quotes, a backslash makes the next
/// character literal. `#` at the start of a word begins a comment until the end of the line. `''` is an empty argument.
pub fn split(line: &str) -> Result<Vec<String>, SplitError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '#' if word.is_none() => drop(characters.by_ref().find(|c| *c == '\n')),
            '\'' => literal(&mut characters, word.get_or_insert_default())?,
            '"' => quoted(&mut characters, word.get_or_insert_default())?,
            '\\' => word
                .get_or_insert_default()
                .push(characters.next().ok_or(SplitError::Escape)?),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn literal(characters: &mut impl Iterator<Item = char>, word: &mut String) -> Result<(), SplitError> {
    loop {
        match characters.next().ok_or(SplitError::Quote)? {
            '\'' => return Ok(()),
            other => word.push(other),
        }
    }
}

fn quoted(characters: &mut impl Iterator<Item = char>, word: &mut String) -> Result<(), SplitError> {
    loop {
        match characters.next().ok_or(SplitError::Quote)? {
            '"' => return Ok(()),
            '\\' => word.push(characters.next().ok_or(SplitError::Escape)?),
            other => word.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", &[])]
    #[case(" \t\r\n", &[])]
    #[case("sh -c 'echo \"a\\b\"; sleep 1'", &["sh", "-c", "echo \"a\\b\"; sleep 1"])]
    #[case(r#"a"b c"d 'e'"f"\ g"#, &["ab cd", "ef g"])]
    #[case(r#""a\"b\\c\d""#, &[r#"a"b\cd"#])]
    #[case("a '' b", &["a", "", "b"])]
    #[case("a # b 'c\nd e#f \\#g", &["a", "d", "e#f", "#g"])]
    fn words(#[case] line: &str, #[case] expected: &[&str]) {
        assert_eq!(split(line).unwrap(), expected);
    }

    #[rstest]
    #[case("sh -c 'echo", SplitError::Quote)]
    #[case("\"a\\\"", SplitError::Quote)]
    #[case("a \\", SplitError::Escape)]
    fn ends_too_early(#[case] line: &str, #[case] error: SplitError) {
        assert_eq!(split(line), Err(error));
    }

    proptest! {
        #[test]
        fn what_was_quoted_comes_back(words in prop::collection::vec(".*", 0..5)) {
            let quoted: Vec<String> = words.iter().map(|w| format!("'{}'", w.replace('\'', r"'\''"))).collect();
            prop_assert_eq!(split(&quoted.join(" ")).unwrap(), words);
        }
    }
}
