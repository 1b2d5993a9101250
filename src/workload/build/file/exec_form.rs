//! `["a", "b"]`: JSON lists of strings instead of a line or of words.

use super::error::Problem;

/// The words of a JSON list. `None` if the text is no JSON list, and is then what instructions make of other text; an
/// error if it is one with something else than strings.
pub(super) fn list(text: &str) -> Result<Option<Vec<String>>, Problem> {
    let Some(values) = values(text) else {
        return Ok(None);
    };
    let words = values.into_iter().map(|value| match value {
        serde_json::Value::String(word) if word.contains('\0') => Err(Problem::not_text()),
        serde_json::Value::String(word) => Ok(word),
        other => {
            let other = super::error::shown(&other.to_string());
            let message = format!("invalid exec form: a JSON list of words has only strings, not {other}");
            Err(Problem::new(message))
        }
    });
    words.collect::<Result<_, _>>().map(Some)
}

/// Whether it is a JSON list.
pub(super) fn is_list(text: &str) -> bool {
    values(text).is_some()
}

fn values(text: &str) -> Option<Vec<serde_json::Value>> {
    let text = text.trim_start();
    // Else numbers and objects would be parsed in vain.
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}
