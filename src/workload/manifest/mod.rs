//! Manifests: Kubernetes-style descriptions of pods, replica sets and services (`docs/spec/api.md` 11).
//!
//! Text becomes trees that know their lines (`yaml`), trees become resources (`resource`, `pod`, `container`, …). A field
//! that we support acts; one that would change what runs and that we do not support is an error that names it; any other
//! is named in a [`Warning`]. `docs/manifests.md` has the table. All of this is pure: what is said about a manifest here
//! depends on nothing but its text.

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

/// What pods are made from, without the identity of a template.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodManifest {
    /// `metadata.name`; never empty for a `Pod`.
    pub name: String,
    /// `metadata.namespace`; empty when not written.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// What runs in it.
    pub spec: PodSpec,
}

/// Namespace of what names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Choices of a container, checked as those of a create request are.
fn checked(field: &reader::Field<'_>, request: &OptionsRequest) -> Result<ContainerOptions, ManifestError> {
    check_options(request).map_err(|error| field.error(error.to_string()))
}

#[cfg(test)]
mod tests;
