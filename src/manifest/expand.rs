//! References to environment variables in commands and values: `$(NAME)`, as in Kubernetes. Pure.
//!
//! Only variables that the manifest itself gives the container are known. `$$(NAME)` of a known one is the text `$(NAME)`.
//! Everything else, such as `$(date)` in a shell script, stays as it is.

/// Replaces references to the variables of `env` (`KEY=VALUE`; of several with one key the last counts).
pub(super) fn expand(text: &str, env: &[String]) -> String {
    let value = |name: &str| {
        let mut entries = env.iter().rev().filter_map(|entry| entry.split_once('='));
        entries.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("$(") {
        let (before, reference) = rest.split_at(at);
        let Some(end) = reference.find(')') else { break };
        let (whole, after) = reference.split_at(end + 1);
        rest = after;
        match value(&whole[2..end]) {
            // What follows the `$(` may hold a reference.
            None => {
                out += before;
                out += "$(";
                rest = &reference[2..];
            }
            // The dollar before it says that it is meant as it stands.
            Some(_) if before.ends_with('$') => {
                out += &before[..at - 1];
                out += whole;
            }
            Some(value) => {
                out += before;
                out += value;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_replaced_and_nothing_else() {
        let env = ["A=1", "B=two words", "A=3", "E="].map(str::to_owned);
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
            assert_eq!(expand(text, &env), expanded, "{text}");
        }
    }
}
