//! `metadata`: name and namespace.

use super::DEFAULT_NAMESPACE;
use super::error::ManifestError;
use super::reader::{Field, Object};
use crate::model::names::{MAX_NAME, is_name};

type Result<T> = std::result::Result<T, ManifestError>;

/// Name and namespace, empty if absent.
pub(super) fn identity(metadata: &mut Object<'_>) -> Result<(String, String)> {
    let name = |field: &Field<'_>| {
        let name = field.string()?;
        match name.is_empty() || is_name(&name, MAX_NAME) {
            true => Ok(name),
            false => Err(field.error(format!(
                "{name:?} is not up to 128 letters, digits, '_', '.' and '-' that begin with a letter or digit"
            ))),
        }
    };
    Ok((metadata.get("name", name)?, metadata.get("namespace", name)?))
}

/// The namespace of an object for which it is optional.
pub(super) fn or_default(namespace: String) -> String {
    if namespace.is_empty() {
        DEFAULT_NAMESPACE.to_owned()
    } else {
        namespace
    }
}
