//! Manifests: Kubernetes-style descriptions of pods, replica sets and services (`docs/spec/api.md` 11).
//!
//! Text is parsed into trees with line numbers (`yaml`), trees into resources (`resource`, `pod`, `container`, …).
//! Supported fields take effect; an unsupported field that would change what runs is an error that names it; any other
//! is reported in a [`Warning`]. `docs/manifests.md` has the table. All of this is pure: the result depends only on the
//! text of the manifest.

mod container;
mod error;
mod expand;
mod metadata;
mod pieces;
mod pod;
mod probe;
mod protocol;
mod quantity;
pub(crate) mod reader;
mod resource;
mod service;
mod set;
pub(crate) mod yaml;

pub use error::{ManifestError, Problem};
pub use reader::Warning;
pub use resource::{Document, Reference, Resource, ResourceKind, parse, references, service};
pub use set::SetManifest;

use std::collections::BTreeMap;

use crate::model::{ContainerOptions, PodSpec};
use crate::workload::container::{OptionsRequest, check_options};

/// A pod template without its id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodManifest {
    /// `metadata.name`; never empty for a `Pod`.
    pub name: String,
    /// `metadata.namespace`; empty if absent.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The pod spec.
    pub spec: PodSpec,
}

/// Default namespace.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Options of a container, validated like those of a create request.
fn checked(field: &reader::Field<'_>, request: &OptionsRequest) -> Result<ContainerOptions, ManifestError> {
    check_options(request).map_err(|error| field.error(error.to_string()))
}

#[cfg(test)]
mod tests;
