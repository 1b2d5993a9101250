//! References to environment variables in commands and values, by the rules of Kubernetes (`Container.command` of the
//! core API). Pure.
//!
//! `$(NAME)` of a known variable becomes its value; of an unknown one it is unchanged. `$$` is one dollar, so
//! `$$(NAME)` gives the text `$(NAME)`. Every other dollar is literal. Only variables that the manifest itself sets for
//! the container are known, and values are not expanded again.

use std::collections::HashMap;

/// Expands references to known variables. `None` if the result would be longer than `most` bytes: nested references
/// would otherwise grow without limit.
pub(super) fn expand(text: &str, known: &HashMap<String, String>, most: usize) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    // If there is no closing bracket ahead, stop: searching again at every dollar would take quadratic time.
    let mut closes = true;
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        let after = &rest[at + 1..];
        let end = match after.strip_prefix('(') {
            Some(name) if closes => name.find(')'),
            _ => None,
        };
        closes &= end.is_some() || !after.starts_with('(');
        rest = if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            after
        } else if let Some(end) = end {
            // The reference consists of `(`, the name and `)`.
            match known.get(&after[1..=end]) {
                Some(value) => out += value,
                None => out += &rest[at..at + end + 3],
            }
            &after[end + 2..]
        } else {
            out.push('$');
            after
        };
        if out.len() > most {
            return None;
        }
    }
    out += rest;
    (out.len() <= most).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_replaced_and_two_dollars_are_one() {
        let known = [("A", "3"), ("B", "two words"), ("E", ""), ("D", "$(A)$$")];
        let known = known.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let known = HashMap::from(known);
        for (text, expanded) in [
            ("$(A)", "3"),
            ("--x=$(B)/$(A)", "--x=two words/3"),
            ("$(E)|", "|"),
            ("$(C) $(date) $A ${A} $", "$(C) $(date) $A ${A} $"),
            ("echo $$(date)", "echo $(date)"),
            ("a$$b", "a$b"),
            ("$$(A) $$(C) $$$(A) $$$$(A)", "$(A) $(C) $3 $$(A)"),
            ("$$", "$"),
            ("$$$", "$$"),
            ("$(A", "$(A"),
            ("$(A $$(A", "$(A $(A"),
            ("$($(A))", "$($(A))"),
            ("$()", "$()"),
            ("$(D)", "$(A)$$"),
            ("é$(A)é$$é", "é3é$é"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &known, 100).as_deref(), Some(expanded), "{text}");
        }
        assert_eq!(expand("$(B)$(B)", &known, 17), None);
        assert_eq!(expand("$(B)$(B)", &known, 18).map(|text| text.len()), Some(18));
    }

    #[test]
    fn brackets_that_never_close_take_the_time_of_their_length() {
        let text = "$(".repeat(1 << 19);
        let begun = std::time::Instant::now();
        assert_eq!(expand(&text, &HashMap::new(), text.len()).as_deref(), Some(&text[..]));
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }
}
