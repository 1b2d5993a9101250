//! From text to [`BuildFile`].

use super::ast::{BuildFile, Step};
use super::error::FileError;

/// Parses a build file. `name` is what errors call it.
pub fn parse(name: &str, text: &[u8]) -> Result<BuildFile, FileError> {
    let _ = (name, text);
    unimplemented!()
}

/// Parses an `ONBUILD` of a base image, such as `COPY . /app`: one instruction, and not `FROM`, `MAINTAINER` or
/// `ONBUILD`.
pub fn parse_trigger(name: &str, text: &str) -> Result<Step, FileError> {
    let _ = (name, text);
    unimplemented!()
}
