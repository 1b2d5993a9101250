//! Splits command lines into words like a shell (POSIX.1-2017, Shell Command Language 2.2 and 2.6.5), but without
//! expansions: a dollar is literal. Pure.

/// Why a text is not a valid command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WordsError {
    #[error("a quote is not closed")]
    Quote,
    #[error("it ends with a backslash")]
    Backslash,
}

/// The words of a command line.
pub(super) fn words(text: &str) -> Result<Vec<String>, WordsError> {
    let mut words = Vec::new();
    // `None` between words; quotes can produce an empty word.
    let mut word: Option<String> = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => quoted(&mut rest, word.get_or_insert_default())?,
            '"' => double_quoted(&mut rest, word.get_or_insert_default())?,
            '\\' => match rest.next() {
                // Line continuation.
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err(WordsError::Backslash),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(rest: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), WordsError> {
    for c in rest {
        match c {
            '\'' => return Ok(()),
            c => word.push(c),
        }
    }
    Err(WordsError::Quote)
}

fn double_quoted(rest: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), WordsError> {
    while let Some(c) = rest.next() {
        match c {
            '"' => return Ok(()),
            '\\' => match rest.next() {
                Some('\n') => {}
                Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                Some(c) => word.extend(['\\', c]),
                None => return Err(WordsError::Quote),
            },
            c => word.push(c),
        }
    }
    Err(WordsError::Quote)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", &[])]
    #[case("  \t\n ", &[])]
    #[case("nginx -g 'daemon off;'", &["nginx", "-g", "daemon off;"])]
    #[case(r#"sh -c "echo \"$HOME\" it's""#, &["sh", "-c", "echo \"$HOME\" it's"])]
    #[case(r#"a'b'"c"d"#, &["abcd"])]
    #[case("'' \"\" x", &["", "", "x"])]
    #[case(r"a\ b \'c\\", &["a b", r"'c\"])]
    #[case(r#""a\b""#, &[r"a\b"])]
    #[case("a \\\n b", &["a", "b"])]
    #[case("a # b", &["a", "#", "b"])]
    #[case("é 'ü ß'", &["é", "ü ß"])]
    fn a_command_line(#[case] text: &str, #[case] expected: &[&str]) {
        assert_eq!(words(text).unwrap(), expected);
    }

    #[rstest]
    #[case("a 'b", WordsError::Quote)]
    #[case("a \"b", WordsError::Quote)]
    #[case("a \"b\\", WordsError::Quote)]
    #[case("a \\", WordsError::Backslash)]
    fn what_is_none(#[case] text: &str, #[case] error: WordsError) {
        assert_eq!(words(text), Err(error));
    }
}
