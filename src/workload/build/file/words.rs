//! Splits the arguments of instructions. Quotes and escapes stay, for [`super::lexer`].

/// The blanks between words of most instructions.
const BLANKS: [char; 5] = [' ', '\t', '\u{b}', '\u{c}', '\r'];

/// The first word of a line, and the rest.
pub(super) fn split_name(line: &str) -> (&str, &str) {
    match line.split_once(BLANKS) {
        Some((name, rest)) => (name, rest.trim_start_matches(BLANKS)),
        None => (line, ""),
    }
}

/// Words between blanks, whatever the quotes.
pub(super) fn by_blanks(text: &str) -> Vec<String> {
    let words = text.split(BLANKS).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// Words between blanks that are neither quoted nor escaped.
pub(super) fn quoted(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        if c == escape && quote != Some('\'') {
            // Alone at the end it is nothing.
            if let Some(escaped) = characters.next() {
                word.extend([c, escaped]);
            }
            continue;
        }
        word.push(c);
        match quote {
            Some(open) if open == c => quote = None,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ => {}
        }
    }
    words.extend(word.filter(|word| !word.is_empty()));
    words
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(r"a  b", &["a", "b"])]
    #[case(r#"A="b c" D='e f'"#, &[r#"A="b c""#, "D='e f'"])]
    #[case(r"G=h\ i j", &[r"G=h\ i", "j"])]
    #[case(r#"a"\" "b c"#, &[r#"a"\" "b"#, "c"])]
    #[case(r"'\' b", &[r"'\'", "b"])]
    #[case(r#""" b"#, &[r#""""#, "b"])]
    #[case(r#""open b"#, &[r#""open b"#])]
    #[case("a \\", &["a"])]
    #[case("ä\u{3000}ö", &["ä", "ö"])]
    fn blanks_within_quotes_are_kept(#[case] text: &str, #[case] words: &[&str]) {
        assert_eq!(quoted(text, '\\'), words);
    }
}
