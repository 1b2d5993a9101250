//! `/v1/replicasets` (`docs/spec/api.md` 9). Replica sets are created only by manifests.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::Management;
use super::conditions::{ConditionView, views};
use super::pods::Scope;
use crate::api::time::rfc3339;
use crate::api::{
    ApiError, AuditEntry, Code, Failure, PathParams, QueryParams, StrictJson, Success, SuccessBody, success,
};
use crate::model::{PodContainer, PodSpec, ReplicaSet, VolumeMount, VolumeSource};
use crate::workload::conditions::of_set;
use crate::workload::replica_set::{MAX_REPLICAS, SetError, SetStatus};

/// A replica set.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSetView {
    /// Id, 26 characters, for life.
    replica_set_id: String,
    /// Name; those of its pods begin with it.
    name: String,
    /// Namespace of the set and of its pods.
    namespace: String,
    /// How many pods there shall be.
    replicas: u32,
    /// The same.
    desired: u32,
    /// Pods that it has.
    current: usize,
    /// Those of them that run as a whole, pass their readiness checks and do not keep ending.
    ready: usize,
    /// Those that have been so for `minReadySeconds`, without a readiness check for two seconds at least.
    available: usize,
    /// Those that were made from the template of now.
    updated: usize,
    /// What is wrong with one of its pods, in one word; absent when nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The name of that pod, and what is wrong in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Version of its template; in the list only.
    #[serde(skip_serializing_if = "Option::is_none")]
    template_id: Option<String>,
    /// Labels of pods that it may adopt.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    selector: BTreeMap<String, String>,
    /// What its pods are made from; in the detail only.
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<TemplateView>,
    /// When it was made, in whole seconds.
    created_at: String,
    /// What is, or is not, as it should be with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<ConditionView>,
}

/// What the pods of a set are made from.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateView {
    /// Name of the set.
    name: String,
    /// Namespace of the set.
    namespace: String,
    /// Always empty.
    #[serde(rename = "networkNS")]
    network_ns: &'static str,
    /// Always empty.
    #[serde(rename = "ipcNS")]
    ipc_ns: &'static str,
    /// Always empty.
    #[serde(rename = "utsNS")]
    uts_ns: &'static str,
    /// Always empty.
    #[serde(rename = "userNS")]
    user_ns: &'static str,
    /// Labels of its pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    /// Annotations of its pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    /// What runs in them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<TemplateContainerView>,
}

/// A container of a template.
#[derive(Debug, Serialize, ToSchema)]
pub struct TemplateContainerView {
    /// Name, unique in the pod.
    name: String,
    /// Image reference as written.
    image: String,
    /// Arguments as written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    /// `<host>:<container>:<protocol>`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    port: Vec<String>,
    /// `<host path>:<container path>[:ro]`, paths of `hostPath` volumes included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mount: Vec<String>,
    /// `KEY=VALUE`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    /// Network as written.
    #[serde(skip_serializing_if = "String::is_empty")]
    network: String,
    /// Whether it has a pseudo-terminal.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tty: bool,
}

impl ReplicaSetView {
    fn new(set: &ReplicaSet, status: SetStatus) -> Self {
        Self {
            replica_set_id: set.id.clone(),
            name: set.name.clone(),
            namespace: set.namespace.clone(),
            replicas: set.replicas,
            desired: set.replicas,
            current: status.current,
            ready: status.ready,
            available: status.available,
            updated: status.updated,
            reason: status.problem.as_ref().map(|problem| problem.reason.clone()),
            message: status.problem.map(|problem| problem.message),
            template_id: None,
            selector: set.selector.clone(),
            template: None,
            created_at: rfc3339(Timestamp::from_second(set.created_at.as_second()).ok()),
            conditions: Vec::new(),
        }
    }

    fn with_conditions(self, conditions: Vec<ConditionView>) -> Self {
        Self { conditions, ..self }
    }

    fn summary(set: &ReplicaSet, status: SetStatus) -> Self {
        Self {
            template_id: Some(set.template.id.clone()),
            ..Self::new(set, status)
        }
    }

    fn detail(set: &ReplicaSet, status: SetStatus) -> Self {
        Self {
            template: Some(set.into()),
            ..Self::new(set, status)
        }
    }
}

impl From<&ReplicaSet> for TemplateView {
    fn from(set: &ReplicaSet) -> Self {
        let spec = &set.template.spec;
        Self {
            name: set.name.clone(),
            namespace: set.namespace.clone(),
            network_ns: "",
            ipc_ns: "",
            uts_ns: "",
            user_ns: "",
            labels: set.template.labels.clone(),
            annotations: set.template.annotations.clone(),
            containers: spec.containers.iter().map(|entry| container(spec, entry)).collect(),
        }
    }
}

fn container(spec: &PodSpec, entry: &PodContainer) -> TemplateContainerView {
    let of_host = |mount: &VolumeMount| {
        let volume = spec.volumes.iter().find(|volume| volume.name == mount.volume)?;
        let VolumeSource::HostPath(path) = &volume.source else {
            return None;
        };
        let options = if mount.read_only { ":ro" } else { "" };
        Some(format!("{path}:{}{options}", mount.path))
    };
    let volumes = entry.volume_mounts.iter().filter_map(of_host);
    TemplateContainerView {
        name: entry.name.clone(),
        image: entry.request.image.clone(),
        command: entry.request.command.clone(),
        port: entry.request.ports.clone(),
        mount: entry.request.mounts.iter().cloned().chain(volumes).collect(),
        env: entry.request.env.clone(),
        network: entry.request.network.clone(),
        tty: entry.request.tty,
    }
}

/// The new number of pods.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScaleBody {
    /// How many pods there shall be, required.
    #[schema(required, value_type = i64, minimum = 0, maximum = 10_000)]
    replicas: Option<i64>,
}

/// A set that was scaled.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scaled {
    /// Id.
    replica_set_id: String,
    /// How many pods there shall be.
    replicas: u32,
}

/// A set that was removed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSetId {
    /// Id or name as given.
    replica_set_id: String,
}

/// The set of a request, which is also set in the audit record.
fn find(m: &Management, entry: &AuditEntry, parameter: &str, scope: &Scope) -> Result<Arc<ReplicaSet>, SetError> {
    entry.extra("replicaset_id", parameter);
    let set = m.sets.find(parameter, scope.namespace())?;
    entry.extra("replicaset_id", set.id.clone());
    entry.extra("replicaset_name", format!("{}/{}", set.namespace, set.name));
    Ok(set)
}

/// All replica sets by creation time
#[utoipa::path(get, path = "/v1/replicasets", tag = "replicasets",
    responses((status = 200, body = SuccessBody<Vec<ReplicaSetView>>)))]
pub async fn list(State(m): State<Management>) -> Success<SuccessBody<Vec<ReplicaSetView>>> {
    let sets = m.sets.list();
    let views = sets.into_iter().map(|(set, status)| {
        let conditions = views(of_set(&set, &status, &m.conditions));
        ReplicaSetView::summary(&set, status).with_conditions(conditions)
    });
    success("replicaset list", views.collect())
}

/// One replica set with its template
#[utoipa::path(get, path = "/v1/replicasets/{replicaSetId}", tag = "replicasets",
    params(("replicaSetId" = String, Path, description = "Id, or name in the namespace"), Scope),
    responses((status = 200, body = SuccessBody<ReplicaSetView>), (status = 404, body = Failure)))]
pub async fn get(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
) -> Result<Success<SuccessBody<ReplicaSetView>>, ApiError> {
    let set = find(&m, &entry, &id, &scope).map_err(|e| ApiError::from(e).prefixed("get failed: "))?;
    let status = m.sets.status(&set);
    let conditions = views(of_set(&set, &status, &m.conditions));
    let view = ReplicaSetView::detail(&set, status).with_conditions(conditions);
    Ok(success("replicaset detail", view))
}

/// Change the number of pods; they follow
#[utoipa::path(post, path = "/v1/replicasets/{replicaSetId}/actions/scale", tag = "replicasets",
    params(("replicaSetId" = String, Path, description = "Id, or name in the namespace"), Scope),
    request_body = ScaleBody,
    responses((status = 200, body = SuccessBody<Scaled>), (status = 400, body = Failure),
        (status = 404, body = Failure), (status = 409, body = Failure, description = "The set is being removed"),
        (status = 500, body = Failure)))]
pub async fn scale(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
    body: Result<StrictJson<ScaleBody>, ApiError>,
) -> Result<Success<SuccessBody<Scaled>>, ApiError> {
    let scaled = scale_to(&m, &entry, &id, &scope, body).await;
    scaled.map_err(|error| error.with_data(json!({ "replicaSetId": id, "replicas": 0 })))
}

async fn scale_to(
    m: &Management,
    entry: &AuditEntry,
    parameter: &str,
    scope: &Scope,
    body: Result<StrictJson<ScaleBody>, ApiError>,
) -> Result<Success<SuccessBody<Scaled>>, ApiError> {
    let StrictJson(body) = body?;
    let invalid = |message: &str| ApiError::new(Code::InvalidOption, message);
    let replicas = match body.replicas {
        None => return Err(invalid("replicas is required")),
        Some(less) if less < 0 => return Err(invalid("replicas must be >= 0")),
        Some(number) => u32::try_from(number).ok().filter(|n| *n <= MAX_REPLICAS),
    };
    let replicas = replicas.ok_or_else(|| invalid(&format!("replicas must be <= {MAX_REPLICAS}")))?;
    let failed = |error: SetError| ApiError::from(error).prefixed("scale failed: ");
    let set = find(m, entry, parameter, scope).map_err(failed)?;
    m.sets.scale(&set.id, replicas).await.map_err(failed)?;
    let replica_set_id = set.id.clone();
    Ok(success(
        "replicaset scaled",
        Scaled {
            replica_set_id,
            replicas,
        },
    ))
}

/// Remove a replica set with its pods
#[utoipa::path(delete, path = "/v1/replicasets/{replicaSetId}", tag = "replicasets",
    params(("replicaSetId" = String, Path, description = "Id, or name in the namespace"), Scope),
    responses((status = 200, body = SuccessBody<ReplicaSetId>), (status = 404, body = Failure),
        (status = 500, body = Failure)))]
pub async fn remove(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
) -> Result<Success<SuccessBody<ReplicaSetId>>, ApiError> {
    let set = find(&m, &entry, &id, &scope).map_err(|e| ApiError::from(e).prefixed("get failed: "))?;
    let removed = m.sets.remove(&set.id).await;
    removed.map_err(|e| ApiError::from(e).prefixed("remove failed: "))?;
    Ok(success("replicaset removed", ReplicaSetId { replica_set_id: id }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Volume;
    use crate::model::fixtures::replica_set;

    #[test]
    fn list_and_detail_have_the_fields_of_the_contract() {
        let mut set = replica_set("s", "shop", 2);
        let spec = &mut set.template.spec;
        spec.volumes = vec![Volume {
            name: "d".into(),
            source: VolumeSource::HostPath("/srv".into()),
        }];
        spec.containers[0].request.mounts = vec!["/a:/b".into()];
        spec.containers[0].volume_mounts = vec![VolumeMount {
            volume: "d".into(),
            path: "/d".into(),
            read_only: true,
        }];
        let status = SetStatus {
            current: 2,
            ready: 1,
            ..SetStatus::default()
        };
        let summary = serde_json::to_value(ReplicaSetView::summary(&set, status.clone())).unwrap();
        assert_eq!(
            (&summary["ready"], &summary["templateId"]),
            (&json!(1), &json!("s-template"))
        );
        assert!(summary.get("template").is_none());
        let detail = serde_json::to_value(ReplicaSetView::detail(&set, status)).unwrap();
        assert!(detail.get("templateId").is_none());
        let expected = json!({"name": "shop", "namespace": "default", "networkNS": "", "ipcNS": "", "utsNS": "",
            "userNS": "", "labels": {"app": "shop"},
            "containers": [{"name": "web", "image": "busybox", "mount": ["/a:/b", "/srv:/d:ro"]}]});
        assert_eq!(detail["template"], expected);
    }
}
