//! The process of a service and its user, in the syntax of compose files. Pure.

use std::collections::BTreeMap;

use super::duration::seconds;
use super::words::words;
use crate::workload::container::{OptionsRequest, check_options};
use crate::workload::manifest::ManifestError;
use crate::workload::manifest::reader::{Field, Object};
use crate::workload::manifest::yaml::Value;

type Result<T> = std::result::Result<T, ManifestError>;

/// Why a variable without a value has no effect.
const NO_VALUE: &str = "has no value and no effect: the daemon has no environment of yours to take it from";

/// `entrypoint`, `user`, `working_dir`, `hostname`, `labels`, `cap_add`, `cap_drop`, `stop_signal` and
/// `stop_grace_period`.
pub(super) fn process(object: &mut Object<'_>) -> Result<OptionsRequest> {
    let mut all = OptionsRequest::default();
    let mut checked =
        |object: &mut Object<'_>, name: &str, read: &dyn Fn(&Field<'_>, &mut OptionsRequest) -> Result<()>| {
            let Some(field) = object.field(name) else { return Ok(()) };
            read(&field, &mut all)?;
            // All preceding fields are valid.
            check_options(&all)
                .map(drop)
                .map_err(|error| field.error(error.to_string()))
        };
    checked(object, "entrypoint", &|field, o| {
        o.entrypoint = command(field)?;
        Ok(())
    })?;
    checked(object, "user", &|field, o| {
        o.user = field.string()?;
        Ok(())
    })?;
    checked(object, "working_dir", &|field, o| {
        o.working_dir = field.string()?;
        Ok(())
    })?;
    checked(object, "hostname", &|field, o| {
        o.hostname = field.string()?;
        Ok(())
    })?;
    checked(object, "labels", &|field, o| {
        o.labels = labels(field)?;
        Ok(())
    })?;
    checked(object, "cap_add", &|field, o| {
        o.cap_add = field.strings()?;
        Ok(())
    })?;
    checked(object, "cap_drop", &|field, o| {
        o.cap_drop = field.strings()?;
        Ok(())
    })?;
    checked(object, "stop_signal", &|field, o| {
        o.stop_signal = field.string()?;
        Ok(())
    })?;
    checked(object, "stop_grace_period", &|field, o| {
        o.stop_timeout = Some(seconds(field)?);
        Ok(())
    })?;
    Ok(all)
}

/// A list of words, or one string that is split into words.
pub(super) fn command(field: &Field<'_>) -> Result<Vec<String>> {
    match field.is_list() {
        true => field.strings(),
        false => words(&field.string()?).map_err(|error| field.error(format!("is not a command line: {error}"))),
    }
}

/// `KEY=VALUE` entries, from a list or a mapping. Variables without a value are reported in a warning.
pub(super) fn environment(field: &Field<'_>) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    for (name, value, place) in pairs(field)? {
        match value {
            None => place.warn(NO_VALUE),
            Some(_) if name.is_empty() || name.contains(['=', '\0']) => {
                return Err(place.error(format!("{name:?} is not the name of a variable")));
            }
            Some(value) if value.contains('\0') => return Err(place.error("a value cannot contain a NUL character")),
            Some(value) => entries.push(format!("{name}={value}")),
        }
    }
    Ok(entries)
}

fn labels(field: &Field<'_>) -> Result<BTreeMap<String, String>> {
    let pairs = pairs(field)?.into_iter();
    Ok(pairs
        .map(|(name, value, _)| (name, value.unwrap_or_default()))
        .collect())
}

/// Names and values from a list of `NAME=VALUE` or `NAME`, or from a mapping, whose values may be `null`.
fn pairs<'a>(field: &Field<'a>) -> Result<Vec<(String, Option<String>, Field<'a>)>> {
    if field.is_list() {
        let pair = |item: Field<'a>| {
            let text = item.string()?;
            Ok(match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned()), item),
                None => (text, None, item),
            })
        };
        return field.items()?.into_iter().map(pair).collect();
    }
    let pair = |(name, value): (&str, Field<'a>)| {
        let text = match value.node().value {
            Value::Null => None,
            _ => Some(value.string()?),
        };
        Ok((name.to_owned(), text, value))
    };
    field.mapping()?.into_iter().map(pair).collect()
}
