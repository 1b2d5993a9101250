//! `/v1/pods` (`docs/spec/api.md` 8).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::Management;
use super::conditions::{ConditionView, views};
use crate::api::time::rfc3339;
use crate::api::{
    ApiError, AuditEntry, Code, Failure, PathParams, QueryParams, StrictJson, Success, SuccessBody, success,
};
use crate::model::{ContainerRequest, Pod, PodContainer, PodGoal, PodSpec, PodStatus, PodTemplate, RestartPolicy};
use crate::workload::conditions::of_pod;
use crate::workload::container::pull_policy_of;
use crate::workload::pod::{NewPod, PodError};

/// Default namespace of a request.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// A pod as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Id, 26 characters, for life.
    pod_id: String,
    /// Name.
    name: String,
    /// Namespace of the name.
    namespace: String,
    /// Identity that a client may choose.
    uid: String,
    /// `created`, `running`, `degraded`, `stopped`, and of pods whose containers are not started again `succeeded` or
    /// `failed`.
    state: String,
    /// Why it is `degraded` or `failed`, in one word: `ErrImagePull`, `CrashLoopBackOff`, `Error`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The same in a sentence, with the words of the registry or the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Containers in the template; members that exist if there are none.
    desired_containers: usize,
    /// Members that run. Infra never counts.
    running_containers: usize,
    /// Network namespace, while infra runs.
    #[serde(rename = "networkNS")]
    network_ns: String,
    /// IPC namespace.
    #[serde(rename = "ipcNS")]
    ipc_ns: String,
    /// UTS namespace.
    #[serde(rename = "utsNS")]
    uts_ns: String,
    /// User namespace.
    #[serde(rename = "userNS")]
    user_ns: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    /// When it was made.
    created_at: String,
    /// Last start.
    started_at: String,
    /// Last stop.
    stopped_at: String,
    /// What is, or is not, as it should be with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<ConditionView>,
}

impl PodView {
    fn new(pod: &Pod, status: &PodStatus, conditions: Vec<ConditionView>) -> Self {
        let pid = status
            .infra
            .as_ref()
            .and_then(|infra| infra.status.process.as_ref())
            .map(|p| p.pid);
        let namespace = |file: &str| pid.map_or_else(String::new, |pid| format!("/proc/{pid}/ns/{file}"));
        Self {
            pod_id: pod.id.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.uid.clone(),
            state: status.state.to_string(),
            reason: status.problem.as_ref().map(|problem| problem.reason.clone()),
            message: status.problem.as_ref().map(|problem| problem.message.clone()),
            desired_containers: status.desired,
            running_containers: status.running,
            network_ns: namespace("net"),
            ipc_ns: namespace("ipc"),
            uts_ns: namespace("uts"),
            user_ns: namespace("user"),
            labels: pod.template.labels.clone(),
            annotations: pod.template.annotations.clone(),
            created_at: rfc3339(Some(pod.created_at)),
            started_at: rfc3339(pod.started_at),
            stopped_at: rfc3339(pod.stopped_at),
            conditions,
        }
    }
}

/// A new pod.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PodBody {
    /// Name, required.
    #[schema(required, example = "shop")]
    name: String,
    /// Namespace [default: default]
    namespace: String,
    /// Identity; one that differs from an existing pod's replaces that pod [default: a new one]
    uid: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// What runs in it; made at the first start.
    containers: Vec<PodContainerBody>,
    /// Only empty.
    #[serde(rename = "networkNS")]
    network_ns: String,
    /// Only empty.
    #[serde(rename = "ipcNS")]
    ipc_ns: String,
    /// Only empty.
    #[serde(rename = "utsNS")]
    uts_ns: String,
    /// Only empty.
    #[serde(rename = "userNS")]
    user_ns: String,
}

/// A container of a new pod.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PodContainerBody {
    /// Name, unique in the pod, required.
    #[schema(required)]
    name: String,
    /// Image reference, required.
    #[schema(required)]
    image: String,
    /// Replaces entrypoint and cmd of the image.
    command: Vec<String>,
    /// `[[<address>:]<host>:]<container>[/tcp|udp]`, numbers or ranges, published on the pod's address.
    port: Vec<String>,
    /// `<host path>:<container path>[:ro|rw]`
    mount: Vec<String>,
    /// `KEY=VALUE`
    env: Vec<String>,
    /// Network of the pod; that of the first container which names one counts [default: raind0]
    network: String,
    /// Pseudo-terminal.
    tty: bool,
}

impl From<PodContainerBody> for PodContainer {
    fn from(b: PodContainerBody) -> Self {
        Self {
            name: b.name,
            request: ContainerRequest {
                pull: pull_policy_of(&b.image),
                image: b.image,
                command: b.command,
                ports: b.port,
                mounts: b.mount,
                env: b.env,
                network: b.network,
                tty: b.tty,
                ..ContainerRequest::default()
            },
            volume_mounts: Vec::new(),
        }
    }
}

impl PodBody {
    fn into_pod(self) -> Result<NewPod, ApiError> {
        let given = [&self.network_ns, &self.ipc_ns, &self.uts_ns, &self.user_ns];
        if given.iter().any(|path| !path.is_empty()) {
            let message = "networkNS, ipcNS, utsNS and userNS cannot be chosen; leave them out";
            return Err(ApiError::new(Code::InvalidOption, message));
        }
        let namespace = match &self.namespace[..] {
            "" => DEFAULT_NAMESPACE.to_owned(),
            named => named.to_owned(),
        };
        Ok(NewPod {
            name: self.name,
            namespace,
            uid: Some(self.uid).filter(|uid| !uid.is_empty()),
            owner: None,
            template: PodTemplate {
                id: crate::model::fresh_ulid(),
                labels: self.labels,
                annotations: self.annotations,
                spec: PodSpec {
                    restart: RestartPolicy::Always,
                    containers: self.containers.into_iter().map(Into::into).collect(),
                    ..PodSpec::default()
                },
            },
            goal: PodGoal::Created,
        })
    }
}

/// Where a name is looked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct Scope {
    /// Namespace, when the object is given by its name [default: default]
    namespace: Option<String>,
}

impl Scope {
    pub(super) fn namespace(&self) -> &str {
        self.namespace
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or(DEFAULT_NAMESPACE)
    }
}

/// The id of a pod.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodId {
    /// Id.
    pod_id: String,
}

/// The pod of a request, which is also set in the audit record.
fn find(m: &Management, entry: &AuditEntry, parameter: &str, scope: &Scope) -> Result<Arc<Pod>, PodError> {
    entry.extra("pod_id", parameter);
    let pod = m.pods.find(parameter, scope.namespace())?;
    entry.extra("pod_id", pod.id.clone());
    entry.extra("pod_name", format!("{}/{}", pod.namespace, pod.name));
    Ok(pod)
}

/// The error of an operation on one pod; `data.podId` has the parameter.
fn of<'a>(parameter: &'a str, prefix: &'a str) -> impl Fn(PodError) -> ApiError + 'a {
    move |error| {
        ApiError::from(error)
            .prefixed(prefix)
            .with_data(json!({ "podId": parameter }))
    }
}

/// All pods by creation time
#[utoipa::path(get, path = "/v1/pods", tag = "pods", responses((status = 200, body = SuccessBody<Vec<PodView>>)))]
pub async fn list(State(m): State<Management>) -> Response {
    let (conditions, snapshot) = (m.conditions.revision(), m.store.snapshot());
    m.cached.pods.get((snapshot.revision(), conditions), || {
        let pods = crate::model::pod_statuses(&snapshot);
        let view = |(pod, status): &(Arc<Pod>, PodStatus)| {
            PodView::new(pod, status, views(of_pod(pod, status, &m.conditions)))
        };
        let views: Vec<_> = pods.iter().map(view).collect();
        success("retrieve pod list success", views)
    })
}

/// One pod
#[utoipa::path(get, path = "/v1/pods/{podId}", tag = "pods",
    params(("podId" = String, Path, description = "Id, or name in the namespace"), Scope),
    responses((status = 200, body = SuccessBody<PodView>), (status = 404, body = Failure)))]
pub async fn get(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
) -> Result<Success<SuccessBody<PodView>>, ApiError> {
    let prefixed = |error: PodError| ApiError::from(error).prefixed("retrieve pod failed: ");
    let pod = find(&m, &entry, &id, &scope).map_err(prefixed)?;
    let status = crate::model::pod_status(&m.store.snapshot(), &pod);
    let conditions = views(of_pod(&pod, &status, &m.conditions));
    Ok(success("retrieve pod success", PodView::new(&pod, &status, conditions)))
}

/// Create a pod; no container is made before its start
#[utoipa::path(post, path = "/v1/pods", tag = "pods", request_body = PodBody,
    responses((status = 200, body = SuccessBody<PodId>), (status = 400, body = Failure),
        (status = 409, body = Failure, description = "The name is taken and the request has no uid"),
        (status = 413, body = Failure), (status = 500, body = Failure)))]
pub async fn create(
    State(m): State<Management>,
    entry: AuditEntry,
    body: Result<StrictJson<PodBody>, ApiError>,
) -> Result<Success<SuccessBody<PodId>>, ApiError> {
    let no_id = json!({ "podId": "" });
    let StrictJson(body) = body.map_err(|e| e.with_data(no_id.clone()))?;
    entry.extra("pod_name", body.name.clone());
    let failed = |error: ApiError| error.prefixed("create pod failed: ").with_data(no_id.clone());
    let pod = body.into_pod().map_err(failed)?;
    let pod = m.pods.create(pod).await.map_err(|e| failed(e.into()))?;
    entry.extra("pod_id", pod.id.clone());
    Ok(success("pod created", PodId { pod_id: pod.id.clone() }))
}

/// Start a pod: make what it lacks, start all that does not run
#[utoipa::path(post, path = "/v1/pods/{podId}/actions/start", tag = "pods",
    params(("podId" = String, Path, description = "Id, or name in the namespace"), Scope),
    responses((status = 200, body = SuccessBody<PodId>), (status = 404, body = Failure),
        (status = 409, body = Failure), (status = 500, body = Failure),
        (status = 502, body = Failure, description = "The registry failed or refused")))]
pub async fn start(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
) -> Result<Success<SuccessBody<PodId>>, ApiError> {
    let failed = of(&id, "start pod failed: ");
    let pod = find(&m, &entry, &id, &scope).map_err(&failed)?;
    m.pods.start(&pod.id).await.map_err(&failed)?;
    Ok(success("pod started", PodId { pod_id: pod.id.clone() }))
}

/// Stop the members of a pod; infra and address stay
#[utoipa::path(post, path = "/v1/pods/{podId}/actions/stop", tag = "pods",
    params(("podId" = String, Path, description = "Id, or name in the namespace"), Scope),
    responses((status = 200, body = SuccessBody<PodId>), (status = 404, body = Failure),
        (status = 409, body = Failure), (status = 500, body = Failure)))]
pub async fn stop(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
) -> Result<Success<SuccessBody<PodId>>, ApiError> {
    let failed = |error| match error {
        PodError::NotFound(pod) => {
            let message = format!("stop pod failed: podId={pod} not found");
            ApiError::new(Code::PodNotFound, message).with_data(json!({ "podId": id }))
        }
        other => of(&id, "stop pod failed: ")(other),
    };
    let pod = find(&m, &entry, &id, &scope).map_err(&failed)?;
    m.pods.stop(&pod.id).await.map_err(&failed)?;
    Ok(success("pod stopped", PodId { pod_id: pod.id.clone() }))
}

/// Remove a pod with its containers and volumes
#[utoipa::path(delete, path = "/v1/pods/{podId}", tag = "pods",
    params(("podId" = String, Path, description = "Id, or name in the namespace"), Scope),
    responses((status = 200, body = SuccessBody<PodId>), (status = 404, body = Failure),
        (status = 500, body = Failure)))]
pub async fn remove(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
) -> Result<Success<SuccessBody<PodId>>, ApiError> {
    let failed = of(&id, "remove pod failed: ");
    let pod = find(&m, &entry, &id, &scope).map_err(&failed)?;
    m.pods.remove(&pod.id).await.map_err(&failed)?;
    Ok(success("pod removed", PodId { pod_id: pod.id.clone() }))
}
