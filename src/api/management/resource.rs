//! `/v1/resource/apply` and `/v1/resource/delete`: manifests (`docs/spec/api.md` 11.5, 11.6).

use std::string::FromUtf8Error;

use axum::extract::{Request, State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Management;
use crate::api::extract::{BODY_LIMIT, read_body};
use crate::api::{ApiError, AuditEntry, Code, Failure, Success, SuccessBody, success};
use crate::workload::apply::{Applied, AppliedResource, Deleted, DocumentWarning};
use crate::workload::manifest::{Reference, ResourceKind};

/// What became of a manifest.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct AppliedView {
    /// Pods and replica sets, in the order of the manifest.
    pods: Vec<AppliedPodView>,
    /// Services, in the order of the manifest.
    services: Vec<ServiceRef>,
    /// Fields that have no effect; absent when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<WarningView>,
}

/// A pod or a replica set.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppliedPodView {
    /// Id of the pod; empty for a replica set.
    pod_id: String,
    /// Id of the replica set; absent for a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica_set_id: Option<String>,
    /// Name.
    name: String,
    /// Namespace.
    namespace: String,
    /// Ids of the pod's members in the order of the manifest.
    container_ids: Vec<String>,
}

/// A service.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Id.
    service_id: String,
    /// Name.
    name: String,
    /// Namespace.
    namespace: String,
}

/// A field of a manifest that has no effect.
#[derive(Debug, Serialize, ToSchema)]
pub struct WarningView {
    /// Number of its document, from 1.
    document: usize,
    /// Kind of the resource as written.
    kind: String,
    /// Name of the resource.
    name: String,
    /// Path of the field, as in `spec.containers[0].stdin`.
    field: String,
    /// Its line in the manifest, from 1.
    line: usize,
    /// Why it has none.
    message: String,
}

/// What was deleted.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletedView {
    /// Pods.
    pods: Vec<PodRef>,
    /// Replica sets.
    #[serde(rename = "replicasets")]
    replica_sets: Vec<ReplicaSetRef>,
    /// Services.
    services: Vec<ServiceRef>,
    /// What does not exist; absent when everything did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_found: Vec<MissingView>,
}

/// A pod.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Id.
    pod_id: String,
    /// Name.
    name: String,
    /// Namespace.
    namespace: String,
}

/// A replica set.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSetRef {
    /// Id.
    replica_set_id: String,
    /// Name.
    name: String,
    /// Namespace.
    namespace: String,
}

/// Something that does not exist.
#[derive(Debug, Serialize, ToSchema)]
pub struct MissingView {
    /// Kind as written.
    kind: String,
    /// Name.
    name: String,
    /// Namespace.
    namespace: String,
}

impl From<Applied> for AppliedView {
    fn from(applied: Applied) -> Self {
        let mut view = Self {
            warnings: applied.warnings.into_iter().map(Into::into).collect(),
            ..Self::default()
        };
        for resource in applied.resources {
            let AppliedResource {
                kind,
                id,
                name,
                namespace,
                containers: container_ids,
            } = resource;
            let (pod_id, replica_set_id) = match kind {
                ResourceKind::Service => {
                    view.services.push(ServiceRef {
                        service_id: id,
                        name,
                        namespace,
                    });
                    continue;
                }
                ResourceKind::Pod => (id, None),
                ResourceKind::ReplicaSet => (String::new(), Some(id)),
            };
            view.pods.push(AppliedPodView {
                pod_id,
                replica_set_id,
                name,
                namespace,
                container_ids,
            });
        }
        view
    }
}

impl From<DocumentWarning> for WarningView {
    fn from(of: DocumentWarning) -> Self {
        Self {
            document: of.document,
            kind: of.kind,
            name: of.name,
            field: of.warning.field,
            line: of.warning.line,
            message: of.warning.message,
        }
    }
}

impl From<Deleted> for DeletedView {
    fn from(deleted: Deleted) -> Self {
        let pods = deleted.pods.iter().map(|pod| PodRef {
            pod_id: pod.id.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
        });
        let sets = deleted.sets.iter().map(|set| ReplicaSetRef {
            replica_set_id: set.id.clone(),
            name: set.name.clone(),
            namespace: set.namespace.clone(),
        });
        let services = deleted.services.iter().map(|service| ServiceRef {
            service_id: service.id.clone(),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
        });
        Self {
            pods: pods.collect(),
            replica_sets: sets.collect(),
            services: services.collect(),
            not_found: deleted.missing.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Reference> for MissingView {
    fn from(reference: Reference) -> Self {
        Self {
            kind: reference.written_kind,
            name: reference.name,
            namespace: reference.namespace,
        }
    }
}

/// Apply a manifest: make what is not there, change what differs, leave the rest alone
///
/// YAML or JSON, one resource per document: Pod, ReplicaSet, Deployment, Service, or a List of them. All documents are
/// checked before the first is carried out. Pods are started. A failure undoes what this request has done.
#[utoipa::path(post, path = "/v1/resource/apply", tag = "resources",
    request_body(content = String, content_type = "application/yaml", description = "Manifests"),
    responses((status = 201, body = SuccessBody<AppliedView>), (status = 400, body = Failure),
        (status = 404, body = Failure, description = "An image does not exist"),
        (status = 409, body = Failure, description = "A port is taken, or the object belongs to something else"),
        (status = 413, body = Failure), (status = 500, body = Failure),
        (status = 502, body = Failure, description = "The registry failed or refused")))]
pub async fn apply(
    State(m): State<Management>,
    entry: AuditEntry,
    request: Request,
) -> Result<Success<SuccessBody<AppliedView>>, ApiError> {
    let applied = m.applier.apply(&text(request).await?).await?;
    let of = |resource: &AppliedResource| told(word(resource.kind), &resource.namespace, &resource.name);
    entry.extra("resources", applied.resources.iter().map(of).collect::<Vec<_>>());
    Ok(success("resources applied", applied.into()).created())
}

/// Delete what a manifest names; kind, name and namespace suffice
#[utoipa::path(post, path = "/v1/resource/delete", tag = "resources",
    request_body(content = String, content_type = "application/yaml", description = "Manifests"),
    responses((status = 200, body = SuccessBody<DeletedView>), (status = 400, body = Failure),
        (status = 404, body = Failure, description = "Nothing of it exists"), (status = 413, body = Failure),
        (status = 500, body = Failure)))]
pub async fn delete(
    State(m): State<Management>,
    entry: AuditEntry,
    request: Request,
) -> Result<Success<SuccessBody<DeletedView>>, ApiError> {
    let deleted = m.applier.delete(&text(request).await?).await?;
    let pods = deleted.pods.iter().map(|pod| told("pod", &pod.namespace, &pod.name));
    let sets = deleted
        .sets
        .iter()
        .map(|set| told("replicaset", &set.namespace, &set.name));
    let services = deleted.services.iter().map(|s| told("service", &s.namespace, &s.name));
    entry.extra("resources", pods.chain(sets).chain(services).collect::<Vec<_>>());
    Ok(success("resources deleted", deleted.into()))
}

async fn text(request: Request) -> Result<String, ApiError> {
    let body = read_body(request, BODY_LIMIT).await;
    let body = body.map_err(|error| error.refusal("invalid body: "))?;
    let invalid = |e: FromUtf8Error| ApiError::new(Code::InvalidBody, format!("invalid body: {}", e.utf8_error()));
    String::from_utf8(body.into()).map_err(invalid)
}

fn word(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Pod => "pod",
        ResourceKind::ReplicaSet => "replicaset",
        ResourceKind::Service => "service",
    }
}

/// A resource in the form of the audit record.
fn told(kind: &str, namespace: &str, name: &str) -> Value {
    format!("{kind} {namespace}/{name}").into()
}
