//! `/v1/bottle` (`docs/spec/api.md` 12).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Management;
use super::conditions::{ConditionView, views};
use super::containers::ContainerView;
use crate::api::extract::{BODY_LIMIT, read_body};
use crate::api::time::rfc3339;
use crate::api::{ApiError, AuditEntry, Code, Failure, PathParams, QueryParams, Success, SuccessBody, success};
use crate::model::{Bottle, BottleService, Condition, Container, Kind, Policy, Snapshot};
use crate::ops::conditions::Conditions;
use crate::workload::bottle;
use crate::workload::bottle::{BottleError, Registered};
use crate::workload::conditions::of_container;

/// A bottle that was registered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredView {
    /// Id, 12 characters.
    bottle_id: String,
    /// Name.
    bottle_name: String,
    /// Names of its services, sorted.
    services: Vec<String>,
    /// Names of its services in the order of their start.
    start_order: Vec<String>,
    /// Fields of the file that have no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<WarningView>,
}

/// A field of a file that has no effect.
#[derive(Debug, Serialize, ToSchema)]
pub struct WarningView {
    /// Path of the field.
    field: String,
    /// Its line, from 1.
    line: usize,
    /// Why it has none.
    message: String,
}

/// All bottles.
#[derive(Debug, Serialize, ToSchema)]
pub struct BottleList {
    /// By creation time.
    bottles: Vec<BottleEntry>,
}

/// A bottle in the list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BottleEntry {
    /// Id.
    bottle_id: String,
    /// Name.
    bottle_name: String,
    /// How many services it has.
    service_count: usize,
    /// The state that all its containers are in; `abnormal` when they differ or one is gone, `unknown` without any.
    status: String,
    /// What came of its last start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<ConditionView>,
}

/// A bottle in detail.
#[derive(Debug, Serialize, ToSchema)]
pub struct BottleDetail {
    /// The bottle.
    bottle: BottleView,
}

/// A bottle.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BottleView {
    /// Id.
    bottle_id: String,
    /// Name.
    bottle_name: String,
    /// Its services by name.
    services: BTreeMap<String, ServiceView>,
    /// Names of its services in the order of their start.
    start_order: Vec<String>,
    /// Service -> its container; one that is gone has the state `missing`.
    containers: BTreeMap<String, ContainerView>,
    /// Its policies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<BottlePolicyView>,
    /// Names of its volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<String>,
    /// The network that comes and goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    /// Whether there is such a network.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    network_auto: bool,
    /// When it was registered.
    created_at: String,
    /// What came of its last start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<ConditionView>,
}

/// A service as it was written.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Image reference.
    image: String,
    /// Command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    /// Environment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    /// Published ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<String>,
    /// Mounts; the source is a path of the host or a volume of the bottle.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mount: Vec<String>,
    /// Network, be it the automatic one.
    #[serde(skip_serializing_if = "String::is_empty")]
    network: String,
    /// Pseudo-terminal.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tty: bool,
    /// Services that are started before it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    depends_on: Vec<String>,
    /// Those of them that it waits for until they are healthy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waits_until_healthy: Vec<String>,
}

/// A policy of a bottle.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BottlePolicyView {
    /// Id of the policy.
    id: String,
    /// `east-west`, `north-south_observe` or `north-south_enforce`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Service of the bottle, or another container, pod or set.
    source: String,
    /// As `source`, or an address or block.
    destination: String,
    /// `icmp`, `tcp` or `udp`; absent for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    /// Absent for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    dest_port: Option<u16>,
    /// Free text.
    #[serde(skip_serializing_if = "String::is_empty")]
    comment: String,
}

/// Choices of an action.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ActionOptions {
    /// With `delete`: whether the volumes and all that is in them go too [default: false]
    volumes: bool,
}

/// The parameter of an action as given.
#[derive(Debug, Serialize, ToSchema)]
pub struct BottleParameter {
    /// Name or id.
    id: String,
}

impl From<Registered> for RegisteredView {
    fn from(registered: Registered) -> Self {
        let bottle = registered.bottle;
        let warning = |w: crate::workload::manifest::Warning| WarningView {
            field: w.field,
            line: w.line,
            message: w.message,
        };
        Self {
            bottle_id: bottle.id.clone(),
            bottle_name: bottle.name.clone(),
            services: bottle.services.keys().cloned().collect(),
            start_order: bottle.start_order.clone(),
            warnings: registered.warnings.into_iter().map(warning).collect(),
        }
    }
}

impl BottleEntry {
    fn new(snapshot: &Snapshot, bottle: &Bottle, known: &Conditions) -> Self {
        Self {
            bottle_id: bottle.id.clone(),
            bottle_name: bottle.name.clone(),
            service_count: bottle.services.len(),
            status: bottle::status(snapshot, bottle),
            conditions: views(known.of(Kind::Bottle, &bottle.id)),
        }
    }
}

impl BottleView {
    fn new(snapshot: &Snapshot, bottle: &Bottle, known: &Conditions) -> Self {
        let container = |service: &String| match bottle::container(snapshot, bottle, service) {
            Some(container) => in_utc(container).with_conditions(views(of_container(container, known))),
            None => ContainerView::missing(&bottle.services[service].request.image),
        };
        let services = bottle.services.iter();
        let policies = bottle::policies_of(snapshot, bottle);
        Self {
            bottle_id: bottle.id.clone(),
            bottle_name: bottle.name.clone(),
            services: services
                .map(|(name, s)| (name.clone(), ServiceView::new(bottle, s)))
                .collect(),
            start_order: bottle.start_order.clone(),
            containers: bottle
                .containers
                .keys()
                .map(|name| (name.clone(), container(name)))
                .collect(),
            policies: policies.iter().map(|p| BottlePolicyView::new(bottle, p)).collect(),
            volumes: bottle.volumes.clone(),
            network: bottle.network.clone(),
            network_auto: bottle.network.is_some(),
            created_at: rfc3339(Some(bottle.created_at)),
            conditions: views(known.of(Kind::Bottle, &bottle.id)),
        }
    }
}

impl ServiceView {
    fn new(bottle: &Bottle, service: &BottleService) -> Self {
        let healthy = service.depends_on.iter().filter(|d| d.condition == Condition::Healthy);
        let network = match &service.request.network[..] {
            "" => bottle.network.clone().unwrap_or_default(),
            named => named.to_owned(),
        };
        Self {
            image: service.request.image.clone(),
            command: service.request.command.clone(),
            env: service.request.env.clone(),
            ports: service.request.ports.clone(),
            mount: service.request.mounts.clone(),
            network,
            tty: service.request.tty,
            depends_on: service.depends_on.iter().map(|d| d.service.clone()).collect(),
            waits_until_healthy: healthy.map(|d| d.service.clone()).collect(),
        }
    }
}

impl BottlePolicyView {
    fn new(bottle: &Bottle, policy: &Arc<Policy>) -> Self {
        let prefix = bottle.container_name("");
        let short = |name: &str| name.strip_prefix(&prefix).unwrap_or(name).to_owned();
        Self {
            id: policy.id.clone(),
            kind: bottle::policy_kind(policy.chain),
            source: short(&policy.source),
            destination: short(&policy.destination),
            protocol: policy.protocol.map(|protocol| protocol.name()),
            dest_port: policy.dport,
            comment: policy.comment.clone(),
        }
    }
}

/// Sets the bottle of a request in the audit record.
fn about(m: &Management, entry: &AuditEntry, parameter: &str) {
    entry.extra("bottle_id", parameter);
    if let Ok(bottle) = m.bottles.find(parameter) {
        entry.extra("bottle_id", bottle.id.clone());
        entry.extra("bottle_name", bottle.name.clone());
    }
}

/// All bottles by creation time
#[utoipa::path(get, path = "/v1/bottle", tag = "bottles",
    responses((status = 200, body = SuccessBody<BottleList>)))]
pub async fn list(State(m): State<Management>) -> Success<SuccessBody<BottleList>> {
    let (bottles, snapshot) = (m.bottles.list(), m.store.snapshot());
    let bottles = bottles
        .iter()
        .map(|bottle| BottleEntry::new(&snapshot, bottle, &m.conditions));
    success(
        "bottle list",
        BottleList {
            bottles: bottles.collect(),
        },
    )
}

/// Register a bottle: make its containers, network, volumes and policies; nothing is started
#[utoipa::path(post, path = "/v1/bottle", tag = "bottles",
    request_body(content = String, content_type = "application/yaml", description = "A bottle file, up to 1 MiB"),
    responses((status = 201, body = SuccessBody<RegisteredView>), (status = 400, body = Failure),
        (status = 404, body = Failure, description = "An image or network does not exist"),
        (status = 409, body = Failure, description = "A name or port is taken"),
        (status = 413, body = Failure), (status = 500, body = Failure),
        (status = 502, body = Failure, description = "The registry failed or refused")))]
pub async fn register(
    State(m): State<Management>,
    entry: AuditEntry,
    request: Request,
) -> Result<Success<SuccessBody<RegisteredView>>, ApiError> {
    let body = read_body(request, BODY_LIMIT).await;
    let body = body.map_err(|e| ApiError::from(e).prefixed("invalid body: "))?;
    let text =
        std::str::from_utf8(&body).map_err(|e| ApiError::new(Code::InvalidBody, format!("invalid body: {e}")))?;
    let registered = m.bottles.register(text).await?;
    entry.extra("bottle_id", registered.bottle.id.clone());
    entry.extra("bottle_name", registered.bottle.name.clone());
    Ok(success("bottle registered", registered.into()).created())
}

/// One bottle
#[utoipa::path(get, path = "/v1/bottle/{bottleId}", tag = "bottles",
    params(("bottleId" = String, Path, description = "Name or id")),
    responses((status = 200, body = SuccessBody<BottleDetail>), (status = 404, body = Failure)))]
pub async fn get(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
) -> Result<Success<SuccessBody<BottleDetail>>, ApiError> {
    about(&m, &entry, &id);
    let bottle = m
        .bottles
        .find(&id)
        .map_err(|_| ApiError::new(Code::BottleNotFound, "bottle not found"))?;
    let bottle = BottleView::new(&m.store.snapshot(), &bottle, &m.conditions);
    Ok(success("bottle detail", BottleDetail { bottle }))
}

/// Start, stop or delete a bottle
///
/// `start` starts all containers in order that do not run, `stop` stops those that run in reverse order, `delete`
/// removes everything of the bottle.
#[utoipa::path(post, path = "/v1/bottle/{bottleId}/actions/{action}", tag = "bottles",
    params(("bottleId" = String, Path, description = "Name or id"),
        ("action" = String, Path, description = "`start`, `stop` or `delete`"), ActionOptions),
    responses((status = 200, body = SuccessBody<BottleParameter>), (status = 400, body = Failure),
        (status = 404, body = Failure), (status = 409, body = Failure), (status = 500, body = Failure)))]
pub async fn act(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams((id, action)): PathParams<(String, String)>,
    QueryParams(options): QueryParams<ActionOptions>,
) -> Result<Success<SuccessBody<BottleParameter>>, ApiError> {
    about(&m, &entry, &id);
    let done: Result<(), BottleError> = match &action[..] {
        "start" => m.bottles.start(&id).await,
        "stop" => m.bottles.stop(&id).await,
        "delete" => m.bottles.delete(&id, options.volumes).await,
        _ => {
            return Err(ApiError::new(
                Code::InvalidPath,
                "unknown action; use start, stop or delete",
            ));
        }
    };
    done.map_err(|error| ApiError::from(error).prefixed("service failed: "))?;
    Ok(success("bottle action done", BottleParameter { id }))
}

/// A container with times in UTC and without a pod.
fn in_utc(container: &Container) -> ContainerView {
    let address = container.status.attachment.as_ref().map(|place| place.address);
    let utc = |time: Option<Timestamp>| time.map_or_else(|| rfc3339(None), |time| time.to_string());
    ContainerView::new(container, address).with_times([
        utc(container.status.creating_at),
        utc(container.status.created_at),
        utc(container.status.started_at),
        utc(container.status.stopped_at),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::fixtures::bottle;

    #[test]
    fn a_container_that_is_gone_is_shown_as_missing() {
        let mut blog = bottle("01kh3w0000ab", "blog", &["db", "web"]);
        blog.services.get_mut("db").unwrap().request.image = "mysql:8".into();
        blog.containers.insert("db".into(), "01kh3w0001cd".into());
        let view = serde_json::to_value(BottleView::new(&Snapshot::default(), &blog, &Conditions::default())).unwrap();
        let never = "0001-01-01T00:00:00Z";
        let missing = json!({
            "containerId": "", "name": "", "state": "missing", "pid": 0,
            "imageRepository": "library/mysql", "imageReference": "8", "command": [], "address": "", "forwards": [],
            "creatingAt": never, "createdAt": never, "statedAt": never, "stoppedAt": never,
        });
        assert_eq!(view["containers"], json!({ "db": missing }));
        let fields: Vec<_> = view.as_object().unwrap().keys().map(String::as_str).collect();
        let shown = [
            "bottleId",
            "bottleName",
            "services",
            "startOrder",
            "containers",
            "createdAt",
        ];
        assert!(
            fields.len() == shown.len() && shown.iter().all(|name| fields.contains(name)),
            "{fields:?}"
        );
        assert_eq!(view["services"]["web"], json!({ "image": "" }));
        assert_eq!(crate::workload::bottle::status(&Snapshot::default(), &blog), "abnormal");
    }
}
