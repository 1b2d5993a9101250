//! References to environment variables in commands and values: `$(NAME)`, as in Kubernetes. Pure.
//!
//! Only variables that the manifest itself gives the container are known. `$$(NAME)` of a known one is the text `$(NAME)`.
//! Everything else, such as `$(date)` in a shell script, stays as it is.

use std::collections::HashMap;

/// Replaces references to known variables. `None` when the result would be longer than `most` bytes: references to
/// references to references unfold without end otherwise.
pub(super) fn expand(text: &str, known: &HashMap<String, String>, most: usize) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("$(") {
        let (before, reference) = rest.split_at(at);
        let name = &reference[2..];
        // What follows the `$(` may hold a reference itself.
        let end = name.find(['$', '(', ')']).filter(|end| name[*end..].starts_with(')'));
        let found = end.and_then(|end| Some((end, known.get(&name[..end])?)));
        match found {
            None => {
                out += before;
                out += "$(";
                rest = name;
            }
            // The dollar before it says that it is meant as it stands.
            Some((end, _)) if before.ends_with('$') => {
                out += &before[..at - 1];
                out += &reference[..end + 3];
                rest = &name[end + 1..];
            }
            Some((end, value)) => {
                out += before;
                out += value;
                rest = &name[end + 1..];
            }
        }
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
    fn known_names_are_replaced_and_nothing_else() {
        let known = [("A", "3"), ("B", "two words"), ("E", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let known = HashMap::from(known);
        for (text, expanded) in [
            ("$(A)", "3"),
            ("--x=$(B)/$(A)", "--x=two words/3"),
            ("$(E)|", "|"),
            ("$(C) $(date) $A ${A} $$ $", "$(C) $(date) $A ${A} $$ $"),
            ("$$(A) $$(C)", "$(A) $$(C)"),
            ("$(A", "$(A"),
            ("$($(A))", "$(3)"),
            ("é$(A)é", "é3é"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &known, 100).as_deref(), Some(expanded), "{text}");
        }
        assert_eq!(expand("$(B)$(B)", &known, 17), None);
        assert_eq!(expand("$(B)$(B)", &known, 18).map(|text| text.len()), Some(18));
    }
}
