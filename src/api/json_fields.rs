//! Deserializes JSON so that an error names the field and the expected type.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Names of types in error messages: serde's wording and ours.
const KINDS: [(&str, &str); 12] = [
    ("a sequence", "a list"),
    ("a map", "an object"),
    ("a boolean", "true or false"),
    ("u8", "a whole number from 0 to 255"),
    ("u16", "a whole number from 0 to 65535"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("u64", "a whole number, 0 or more"),
    ("usize", "a whole number, 0 or more"),
    ("i32", "a whole number"),
    ("i64", "a whole number"),
    ("f32", "a number"),
    ("f64", "a number"),
];

/// A JSON value without duplicate keys. Duplicate keys are an error, because parsers disagree about the value that is
/// used.
pub(super) struct Distinct(pub(super) Value);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Distinctly)
    }
}

struct Distinctly;

impl<'de> Visitor<'de> for Distinctly {
    type Value = Distinct;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Distinct, E> {
        Ok(Distinct(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Distinct, E> {
        Ok(Distinct(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Distinct, E> {
        Ok(Distinct(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Distinct, E> {
        Ok(Distinct(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Distinct, E> {
        Ok(Distinct(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Distinct, E> {
        Ok(Distinct(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Distinct, E> {
        Ok(Distinct(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Distinct, A::Error> {
        let mut items = Vec::new();
        while let Some(Distinct(item)) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Distinct(items.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut mapping: A) -> Result<Distinct, A::Error> {
        let mut members = Map::new();
        while let Some(name) = mapping.next_key::<String>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format_args!("{name:?} is there twice")));
            }
            let Distinct(member) = mapping.next_value()?;
            members.insert(name, member);
        }
        Ok(Distinct(members.into()))
    }
}

/// The value of that type, or an error like `port[1]: invalid type: integer 8, expected a string`.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let reason = plain(&error.inner().to_string());
        // For an unknown field, the reason already has the name.
        let path = match reason.starts_with("unknown field") {
            true => path.rsplit_once('.').map_or("", |(object, _)| object),
            false => &path,
        };
        match path {
            // The error is about the whole document.
            "" | "." => reason,
            path => format!("{path}: {reason}"),
        }
    })
}

/// Strings in a request must not contain NUL, because arguments, variables, paths and names cannot.
pub(super) fn refuse_nul(value: &Value) -> Result<(), String> {
    match first_nul(value, String::new()) {
        Some(path) => Err(format!("{path} contains a NUL character")),
        None => Ok(()),
    }
}

fn first_nul(value: &Value, path: String) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then_some(path),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(n, item)| first_nul(item, format!("{path}[{n}]")))
        }
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            if name.contains('\0') {
                return Some("a name".to_owned());
            }
            let dot = if path.is_empty() { "" } else { "." };
            first_nul(member, format!("{path}{dot}{name}"))
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// The reason without the names of Rust types.
fn plain(reason: &str) -> String {
    let Some((found, expected)) = reason.rsplit_once(", expected ") else {
        return reason.to_owned();
    };
    let kind = match expected {
        expected if expected.starts_with("struct ") => "an object",
        expected => KINDS
            .iter()
            .find(|(kind, _)| *kind == expected)
            .map_or(expected, |k| k.1),
    };
    format!("{found}, expected {kind}")
}
