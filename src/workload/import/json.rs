//! The JSON of the original (`docs/spec/storage.md` 2) and how we read it: `null` and absent are empty, the year 1 is
//! never, unknown members are skipped with a warning. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::ImportError;
use super::files::Files;

/// How many unknown members of a file to name.
const NAMED: usize = 8;

/// Reads one of the files; `None` if it does not exist.
pub(super) fn parse<S: DeserializeOwned + Serialize>(
    files: &Files,
    name: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<S>, ImportError> {
    let Some(content) = files.contents.get(name) else {
        return Ok(None);
    };
    let broken = |error: serde_json::Error| ImportError::Broken {
        path: files.directory.join(name),
        message: error.to_string(),
    };
    let stored: S = serde_json::from_slice(content).map_err(broken)?;
    let said: Value = serde_json::from_slice(content).map_err(broken)?;
    // Serialise the parsed value again; members that are missing from the result were not understood.
    let understood = serde_json::to_value(&stored).map_err(broken)?;
    let mut unknown = BTreeSet::new();
    compare(&said, &understood, "", &mut unknown);
    if !unknown.is_empty() {
        let named: Vec<_> = unknown.iter().take(NAMED).map(String::as_str).collect();
        let more = if unknown.len() > NAMED { ", …" } else { "" };
        warnings.push(format!("{name}: ignored unknown members {}{more}", named.join(", ")));
    }
    Ok(Some(stored))
}

fn compare(said: &Value, understood: &Value, path: &str, unknown: &mut BTreeSet<String>) {
    match (said, understood) {
        (Value::Object(said), Value::Object(understood)) => {
            for (name, value) in said {
                let path = format!("{path}{}{name}", if path.is_empty() { "" } else { "." });
                match understood.get(name) {
                    Some(known) => compare(value, known, &path, unknown),
                    None => drop(unknown.insert(path)),
                }
            }
        }
        (Value::Array(said), Value::Array(understood)) => {
            for (value, known) in said.iter().zip(understood) {
                compare(value, known, path, unknown);
            }
        }
        _ => {}
    }
}

/// Reads `null` as the default.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// One of the versions of a store.
pub(super) fn version<'de, D: Deserializer<'de>>(d: D, known: &[&str]) -> Result<String, D::Error> {
    let version = String::deserialize(d)?;
    match known.contains(&&*version) {
        true => Ok(version),
        false => Err(D::Error::custom(format!(
            "version {version:?} is not known (known: {})",
            known.join(", ")
        ))),
    }
}

/// The version of most stores.
pub(super) fn version_0_1<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    version(d, &["0.1.0"])
}

/// A time; the year 1 is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Time(pub Option<Timestamp>);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(d)?.unwrap_or_default();
        if text.is_empty() || text.starts_with("0001-01-01T") {
            return Ok(Self(None));
        }
        let time = text.parse().map_err(|e| D::Error::custom(format!("{text:?}: {e}")))?;
        Ok(Self(Some(time)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Stored {
        #[serde(deserialize_with = "version_0_1")]
        version: String,
        #[serde(default, deserialize_with = "nullable")]
        entries: BTreeMap<String, Entry>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Entry {
        at: Time,
        #[serde(deserialize_with = "nullable")]
        words: Vec<String>,
    }

    fn read(text: &str) -> Result<(Stored, Vec<String>), String> {
        let mut warnings = Vec::new();
        let files = Files {
            directory: "/store".into(),
            contents: [("x.json".to_owned(), text.as_bytes().to_vec())].into(),
        };
        let stored = parse(&files, "x.json", &mut warnings).map_err(|e| e.to_string())?;
        Ok((stored.unwrap(), warnings))
    }

    #[test]
    fn null_absent_and_never_are_empty() {
        let (stored, warnings) = read(
            r#"{"version":"0.1.0","entries":{"a":{"at":"0001-01-01T00:00:00Z","words":null},
                "b":{"at":"2026-01-28T16:00:00.123456789+09:00"},"c":{}}}"#,
        )
        .unwrap();
        assert_eq!(stored.entries["a"], Entry::default());
        assert_eq!(stored.entries["c"], Entry::default());
        assert_eq!(
            stored.entries["b"].at.0.unwrap().to_string(),
            "2026-01-28T07:00:00.123456789Z"
        );
        assert!(warnings.is_empty());
        assert!(
            read(r#"{"version":"0.1.0","entries":null}"#)
                .unwrap()
                .0
                .entries
                .is_empty()
        );
    }

    #[test]
    fn unknown_members_are_told_and_skipped() {
        let (_, warnings) =
            read(r#"{"version":"0.1.0","later":1,"entries":{"a":{"words":["x"],"new":{"deep":true}}}}"#).unwrap();
        assert_eq!(warnings, ["x.json: ignored unknown members entries.a.new, later"]);
    }

    #[test]
    fn what_is_broken_is_told_with_its_place() {
        for (text, said) in [
            ("", "/store/x.json: EOF while parsing a value at line 1 column 0"),
            ("{\n  \"version\": \"0.1.0\",\n", "at line 3 column 0"),
            ("{\"version\":\"0.1.0\"}\n}", "trailing characters at line 2 column 1"),
            (
                "{\n\"version\": \"0.2.0\"}",
                "version \"0.2.0\" is not known (known: 0.1.0) at line 2 column",
            ),
            ("{}", "missing field `version` at line 1 column 2"),
            ("[]", "at line 1 column"),
            (
                "{\"version\":\"0.1.0\",\"entries\":{\"a\":{\"at\":\"soon\"}}}",
                "\"soon\"",
            ),
            (
                "{\"version\":\"0.1.0\",\"entries\":{\"a\":\n{\"words\":1}}}",
                "at line 2 column",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text:?}: {error}");
            assert!(error.contains("nothing was changed"), "{error}");
        }
    }
}
