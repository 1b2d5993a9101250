//! `/v1/services` (`docs/spec/api.md` 10).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::{Request, State};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::Management;
use super::conditions::{ConditionView, views};
use super::pods::Scope;
use crate::api::error::Coded;
use crate::api::extract::{BODY_LIMIT, read_body};
use crate::api::time::rfc3339;
use crate::api::{ApiError, AuditEntry, Code, Failure, PathParams, QueryParams, Success, SuccessBody, success};
use crate::model::{Endpoint, Service, ServicePort, endpoints, pod_statuses};
use crate::workload::balancer::ServiceError;
use crate::workload::conditions::of_service;
use crate::workload::manifest;
use crate::workload::manifest::{ManifestError, Problem, Warning};

/// A service in the list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSummary {
    /// Id, 26 characters, for life.
    service_id: String,
    /// Name.
    name: String,
    /// Namespace of its name and of its pods.
    namespace: String,
    /// Its ports.
    ports: Vec<PortView>,
    /// When it was made, in whole seconds.
    created_at: String,
    /// What is, or is not, as it should be with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<ConditionView>,
}

/// A service with the pods behind it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Id, 26 characters, for life.
    service_id: String,
    /// Name.
    name: String,
    /// Namespace of its name and of its pods.
    namespace: String,
    /// Labels that its pods have.
    selector: BTreeMap<String, String>,
    /// Its ports.
    ports: Vec<PortView>,
    /// For how many seconds a client stays with one pod; absent without affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<u32>,
    /// When it was made.
    created_at: String,
    /// Where its clients are sent at the moment: the ready pods, by address, once for each target port.
    endpoints: Vec<EndpointView>,
    /// What is, or is not, as it should be with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<ConditionView>,
}

/// A port of a service.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// Port of the host.
    port: u16,
    /// Port of the pods.
    target_port: u16,
    /// `tcp` or `udp`, as it was written.
    protocol: String,
}

/// A port of a pod behind a service.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// Address of the pod.
    #[schema(value_type = String)]
    address: Ipv4Addr,
    /// Port of the pod.
    port: u16,
    /// Id of the pod.
    pod_id: String,
}

/// A service that was made.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewServiceView {
    /// Id.
    service_id: String,
    /// Fields of the manifest that have no effect; absent when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<ServiceWarning>,
}

/// A field of a manifest that has no effect.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServiceWarning {
    /// Path of the field, as in `spec.type`.
    field: String,
    /// Its line, from 1.
    line: usize,
    /// Why it has none.
    message: String,
}

/// A service that was removed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceId {
    /// Id or name as given.
    service_id: String,
}

impl From<Warning> for ServiceWarning {
    fn from(warning: Warning) -> Self {
        let Warning { field, line, message } = warning;
        Self { field, line, message }
    }
}

impl From<&ServicePort> for PortView {
    fn from(port: &ServicePort) -> Self {
        Self {
            port: port.port,
            target_port: port.target_port,
            protocol: port.written_protocol.clone(),
        }
    }
}

impl From<&Service> for ServiceSummary {
    fn from(service: &Service) -> Self {
        let seconds = Timestamp::from_second(service.created_at.as_second());
        Self {
            service_id: service.id.clone(),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            ports: service.ports.iter().map(Into::into).collect(),
            created_at: rfc3339(seconds.ok()),
            conditions: Vec::new(),
        }
    }
}

impl ServiceView {
    fn new(service: &Service, endpoints: &[Endpoint], conditions: Vec<ConditionView>) -> Self {
        Self {
            service_id: service.id.clone(),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            selector: service.selector.clone(),
            ports: service.ports.iter().map(Into::into).collect(),
            affinity_seconds: service.affinity_seconds,
            created_at: rfc3339(Some(service.created_at)),
            endpoints: endpoint_views(service, endpoints),
            conditions,
        }
    }
}

fn endpoint_views(service: &Service, endpoints: &[Endpoint]) -> Vec<EndpointView> {
    let mut ports: Vec<u16> = service.ports.iter().map(|p| p.target_port).collect();
    ports.sort_unstable();
    ports.dedup();
    let view = |endpoint: &Endpoint| {
        let view = |port: &u16| EndpointView {
            address: endpoint.address,
            port: *port,
            pod_id: endpoint.pod_id.clone(),
        };
        ports.iter().map(view).collect::<Vec<_>>()
    };
    endpoints.iter().flat_map(view).collect()
}

/// The service of a request, which is also set in the audit record.
fn find(m: &Management, entry: &AuditEntry, parameter: &str, scope: &Scope) -> Result<Arc<Service>, ServiceError> {
    entry.extra("service_id", parameter);
    let service = m.services.find(parameter, scope.namespace())?;
    tell(entry, &service);
    Ok(service)
}

fn tell(entry: &AuditEntry, service: &Service) {
    entry.extra("service_id", service.id.clone());
    entry.extra("service_name", format!("{}/{}", service.namespace, service.name));
}

/// All services by creation time
#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, body = SuccessBody<Vec<ServiceSummary>>)))]
pub async fn list(State(m): State<Management>) -> Success<SuccessBody<Vec<ServiceSummary>>> {
    let (services, pods) = (m.services.list(), pod_statuses(&m.store.snapshot()));
    let summary = |service: &Arc<Service>| {
        let found = endpoints(service, &pods);
        let conditions = views(of_service(service, &found, &pods, &m.conditions));
        ServiceSummary {
            conditions,
            ..(&**service).into()
        }
    };
    success("service list", services.iter().map(summary).collect())
}

/// One service, with the pods that its clients are sent to
#[utoipa::path(get, path = "/v1/services/{serviceId}", tag = "services",
    params(("serviceId" = String, Path, description = "Id, or name in the namespace"), Scope),
    responses((status = 200, body = SuccessBody<ServiceView>), (status = 404, body = Failure)))]
pub async fn get(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
) -> Result<Success<SuccessBody<ServiceView>>, ApiError> {
    let prefixed = |error: ServiceError| ApiError::from(error).prefixed("get failed: ");
    let service = find(&m, &entry, &id, &scope).map_err(prefixed)?;
    let pods = pod_statuses(&m.store.snapshot());
    let endpoints = endpoints(&service, &pods);
    let conditions = views(of_service(&service, &endpoints, &pods, &m.conditions));
    let view = ServiceView::new(&service, &endpoints, conditions);
    Ok(success("service detail", view))
}

/// Create a service from the first document of a manifest, YAML or JSON
#[utoipa::path(post, path = "/v1/services", tag = "services",
    request_body(content = String, content_type = "application/yaml", description = "Manifest of kind Service"),
    responses((status = 201, body = SuccessBody<NewServiceView>), (status = 400, body = Failure),
        (status = 409, body = Failure, description = "The name or a port is taken; the message names the holder"),
        (status = 413, body = Failure), (status = 500, body = Failure)))]
pub async fn create(
    State(m): State<Management>,
    entry: AuditEntry,
    request: Request,
) -> Result<Success<SuccessBody<NewServiceView>>, ApiError> {
    let created = create_from(&m, &entry, request).await;
    created.map_err(|error| error.with_data(json!({ "serviceId": "" })))
}

async fn create_from(
    m: &Management,
    entry: &AuditEntry,
    request: Request,
) -> Result<Success<SuccessBody<NewServiceView>>, ApiError> {
    let body = read_body(request, BODY_LIMIT).await;
    let body = body.map_err(|error| error.refusal("read body failed: "))?;
    let text =
        std::str::from_utf8(&body).map_err(|e| ApiError::new(Code::InvalidBody, format!("invalid yaml: {e}")))?;
    let (manifest, warnings) = manifest::service(text).map_err(refused)?;
    entry.extra("service_name", format!("{}/{}", manifest.namespace, manifest.name));
    let service = m.services.create(manifest).await?;
    tell(entry, &service);
    let view = NewServiceView {
        service_id: service.id.clone(),
        warnings: warnings.into_iter().map(Into::into).collect(),
    };
    Ok(success("service created", view).created())
}

/// A missing name is the only error without the prefix on this route.
fn refused(error: ManifestError) -> ApiError {
    let prefix = match error.problem {
        Problem::NoServiceName => "",
        _ => "invalid yaml: ",
    };
    ApiError::new(error.code(), format!("{prefix}{error}"))
}

/// Remove a service; its pods stay
#[utoipa::path(delete, path = "/v1/services/{serviceId}", tag = "services",
    params(("serviceId" = String, Path, description = "Id, or name in the namespace"), Scope),
    responses((status = 200, body = SuccessBody<ServiceId>), (status = 404, body = Failure),
        (status = 500, body = Failure)))]
pub async fn remove(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(scope): QueryParams<Scope>,
) -> Result<Success<SuccessBody<ServiceId>>, ApiError> {
    let prefixed = |error: ServiceError| ApiError::from(error).prefixed("remove failed: ");
    let service = find(&m, &entry, &id, &scope).map_err(prefixed)?;
    m.services.remove(&service.id).await.map_err(prefixed)?;
    Ok(success("service removed", ServiceId { service_id: id }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::service;

    #[test]
    fn a_pod_is_there_once_for_each_target_port() {
        let mut service = service("s", "shop", &[80, 81, 82]);
        service.ports[2].target_port = 80;
        let endpoints = [Endpoint {
            address: Ipv4Addr::new(10, 166, 0, 1),
            network: "raind0".into(),
            pod_id: "p".into(),
        }];
        let seen: Vec<_> = endpoint_views(&service, &endpoints).iter().map(|e| e.port).collect();
        assert_eq!(seen, [80, 81]);
    }

    #[test]
    fn the_list_has_whole_seconds() {
        let mut service = service("s", "shop", &[80]);
        service.created_at = "2026-02-07T05:06:14.976263167Z".parse().unwrap();
        let whole: Timestamp = ServiceSummary::from(&service).created_at.parse().unwrap();
        assert_eq!(whole, "2026-02-07T05:06:14Z".parse().unwrap());
        let view = ServiceView::new(&service, &[], Vec::new());
        assert_eq!(view.created_at.parse::<Timestamp>().unwrap(), service.created_at);
    }
}
