//! `/v1/containers/stats` and `/v1/containers/{containerId}/stats` (`docs/spec/api.md` 5.12).

use std::collections::BTreeMap;
use std::path::Path;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Management;
use super::containers::about;
use crate::api::time::rfc3339;
use crate::api::{ApiError, AuditEntry, Failure, PathParams, Success, SuccessBody, success};
use crate::model::Container;
use crate::observe::metrics::{Sample, Usage};
use crate::workload::container::ContainerError;

/// What a container is, and what it uses.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatsView {
    /// When it was measured; empty when it never was.
    generated_ts: String,
    /// Id, 12 characters.
    container_id: String,
    /// Name.
    container_name: String,
    /// Pod it belongs to; may be empty.
    pod_id: String,
    /// Identity of its certificate.
    spiffe_id: String,
    /// Process id on the host; 0 without a process.
    pid: i32,
    /// `creating`, `created`, `running` or `stopped`.
    status: String,
    /// Directory of its cgroup, in version 1 that of the memory controller; empty when it was never measured.
    cgroup_path: String,
    /// Exit status of the last run; 0 before the first end.
    exit_code: i32,
    /// Why the last run ended: `Completed`, `Error`, `OOMKilled`.
    reason: String,
    /// More about the end.
    message: String,
    /// Where its log is.
    log_path: String,
    /// Repository of the image; always contains a `/`.
    image_repository: String,
    /// Tag or digest of the image.
    image_reference: String,
    /// Effective argument vector.
    command: Vec<String>,
    /// Bottle that manages it.
    #[serde(skip_serializing_if = "Option::is_none")]
    bottle_id: Option<String>,
    /// When its making began.
    creating_at: String,
    /// When it was made.
    created_at: String,
    /// Last start.
    started_at: String,
    /// Last end.
    stopped_at: String,
    /// The same as `stopped_at`.
    finished_at: String,
    /// Labels.
    labels: BTreeMap<String, String>,
    /// Annotations.
    annotations: BTreeMap<String, String>,
    /// How often it was restarted.
    attempt: u32,
    /// Whether it has a pseudo-terminal.
    tty: bool,
    /// What it uses. Of a container that does not run: what it had used at its latest sample, and no load.
    #[serde(flatten)]
    usage: Usage,
}

const MESSAGE: &str = "retrieve container stats success";

/// What all containers use, by creation time
#[utoipa::path(get, path = "/v1/containers/stats", tag = "containers",
    responses((status = 200, body = SuccessBody<Vec<StatsView>>)))]
pub async fn all_stats(State(m): State<Management>) -> Success<SuccessBody<Vec<StatsView>>> {
    let measured = m.sampler.measure_all(m.containers.list()).await.into_iter();
    let views =
        measured.map(|(container, sample)| StatsView::new(&container, &m.containers.log_of(&container), sample));
    success(MESSAGE, views.collect())
}

/// What a container uses
#[utoipa::path(get, path = "/v1/containers/{containerId}/stats", tag = "containers",
    params(("containerId" = String, Path, description = "Name, id, or unique id prefix of at least 4 characters")),
    responses((status = 200, body = SuccessBody<StatsView>), (status = 404, body = Failure),
        (status = 409, body = Failure, description = "The prefix is ambiguous")))]
pub async fn stats(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
) -> Result<Success<SuccessBody<StatsView>>, ApiError> {
    about(&m, &entry, &id);
    let failed = |error: ContainerError| ApiError::from(error).prefixed("retrieve container stats failed: ");
    let container = m.containers.find(&id).map_err(failed)?;
    let sample = m.sampler.measure(container.clone()).await;
    Ok(success(
        MESSAGE,
        StatsView::new(&container, &m.containers.log_of(&container), sample),
    ))
}

impl StatsView {
    fn new(c: &Container, log_path: &Path, sample: Sample) -> Self {
        let exit = c.status.exit.clone();
        let (exit_code, reason, message) = exit.map_or_else(Default::default, |e| (e.code, e.reason, e.message));
        Self {
            generated_ts: sample.taken_at.map(crate::base::time::rfc3339).unwrap_or_default(),
            container_id: c.id.clone(),
            container_name: c.name.clone(),
            pod_id: c.role.pod().unwrap_or_default().to_owned(),
            spiffe_id: c.status.spiffe_id.clone().unwrap_or_default(),
            pid: c.status.process.as_ref().map_or(0, |p| p.pid),
            status: c.status.state.to_string(),
            cgroup_path: sample.cgroup_path,
            exit_code,
            reason,
            message,
            log_path: log_path.to_string_lossy().into_owned(),
            image_repository: c.spec.image.repository.clone(),
            image_reference: c.spec.image.reference.clone(),
            command: c.spec.process.args.clone(),
            bottle_id: c.role.bottle().map(str::to_owned),
            creating_at: rfc3339(c.status.creating_at),
            created_at: rfc3339(c.status.created_at),
            started_at: rfc3339(c.status.started_at),
            stopped_at: rfc3339(c.status.stopped_at),
            finished_at: rfc3339(c.status.stopped_at),
            labels: c.spec.options.labels.clone(),
            annotations: BTreeMap::new(),
            attempt: 0,
            tty: c.spec.tty,
            usage: sample.usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::model::fixtures::container;
    use crate::model::{ContainerState, Exit};

    fn shown(container: &Container, sample: Sample) -> Map<String, Value> {
        let view = StatsView::new(container, Path::new("/etc/raind/container/a/logs/init.log"), sample);
        let Value::Object(map) = serde_json::to_value(view).unwrap() else {
            panic!("an object")
        };
        map
    }

    /// The `data` of a recorded answer.
    fn recorded(recording: &str) -> Value {
        let recording: Value = serde_json::from_str(recording).unwrap();
        let body: Value = serde_json::from_str(recording["response"]["body"].as_str().unwrap()).unwrap();
        body["data"].clone()
    }

    #[test]
    fn the_fields_are_those_of_the_original() {
        let one = recorded(include_str!("../../../tests/fixtures/golden/185-container-stats.json"));
        let list = recorded(include_str!(
            "../../../tests/fixtures/golden/189-containers-stats-list.json"
        ));
        let view = shown(&container("a", "web"), Sample::default());
        for recorded in [&one, &list[0]] {
            let recorded = recorded.as_object().unwrap();
            assert_eq!(view.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_was_never_measured_is_zero() {
        let view = shown(&container("a", "web"), Sample::default());
        for text in ["generated_ts", "cgroup_path", "pod_id", "reason", "message"] {
            assert_eq!(view[text], "", "{text}");
        }
        let names = view.keys().filter(|name| {
            let figures = ["cpu_", "memory_", "io_"];
            figures.iter().any(|figure| name.starts_with(figure))
        });
        for name in names {
            let value = &view[name];
            let zero = value.is_null() || *value == Value::Bool(false) || value.as_f64() == Some(0.0);
            assert!(zero, "{name}: {value}");
        }
        assert!(view["memory_max_bytes"].is_null());
        assert_eq!(
            (&view["labels"], &view["exit_code"]),
            (&Value::Object(Map::new()), &0.into())
        );
        assert_eq!(view["stopped_at"], "0001-01-01T00:00:00Z");
    }

    #[test]
    fn the_state_is_that_of_the_row() {
        let mut row = container("a", "web").in_state(ContainerState::Stopped);
        row.role = crate::model::Role::Service { bottle: "b1".into() };
        row.status.stopped_at = Some(jiff::Timestamp::UNIX_EPOCH);
        row.status.exit = Some(Exit {
            code: 137,
            reason: "OOMKilled".into(),
            message: String::new(),
        });
        let view = shown(&row, Sample::default());
        assert_eq!((&view["status"], &view["exit_code"]), (&"stopped".into(), &137.into()));
        assert_eq!(
            (&view["reason"], &view["bottle_id"]),
            (&"OOMKilled".into(), &"b1".into())
        );
        assert_eq!(view["finished_at"], view["stopped_at"]);
        assert_eq!(view["log_path"], "/etc/raind/container/a/logs/init.log");
    }
}
