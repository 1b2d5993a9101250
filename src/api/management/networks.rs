//! `/v1/networks` (`docs/spec/api.md` 13).

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Management;
use crate::api::{ApiError, AuditEntry, Done, Failure, PathParams, StrictJson, Success, SuccessBody, done, success};
use crate::model::{Network, by_creation};

/// A network in the list. The field names are capitalised on the wire.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkView {
    /// Name of network and bridge.
    interface: String,
    /// Address of the bridge with its prefix length.
    address: String,
    /// How many containers have an address in it.
    num_containers: usize,
}

/// A network by its name.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkBody {
    /// Name of network and bridge, required: 1 to 15 letters, digits, `_`, `.` and `-`, the first a letter or digit.
    #[schema(required)]
    bridge: String,
}

/// All networks by creation time
#[utoipa::path(get, path = "/v1/networks", tag = "networks",
    responses((status = 200, body = SuccessBody<Vec<NetworkView>>)))]
pub async fn list(State(m): State<Management>) -> Success<SuccessBody<Vec<NetworkView>>> {
    let snapshot = m.store.snapshot();
    let networks = by_creation(snapshot.networks().iter().cloned());
    let inside = |n: &Network| {
        snapshot
            .containers()
            .iter()
            .filter(|c| c.status.attachment.as_ref().is_some_and(|a| a.network == n.name))
            .count()
    };
    let views = networks.into_iter().map(|n| NetworkView {
        interface: n.name.clone(),
        address: format!("{}/{}", n.gateway, n.subnet.prefix_len()),
        num_containers: inside(&n),
    });
    success("network list", views.collect())
}

/// Make a network: a bridge with the lowest free /24, isolated from all others, with DNS
#[utoipa::path(post, path = "/v1/networks", tag = "networks", request_body = NetworkBody,
    responses((status = 200, body = SuccessBody<NetworkBody>), (status = 400, body = Failure),
        (status = 409, body = Failure, description = "A network or interface of that name exists, or no /24 is free"),
        (status = 500, body = Failure)))]
pub async fn create(
    State(m): State<Management>,
    entry: AuditEntry,
    StrictJson(body): StrictJson<NetworkBody>,
) -> Result<Success<SuccessBody<NetworkBody>>, ApiError> {
    entry.target(|target| target.network = body.bridge.clone());
    let made = m.networks.create(&body.bridge).await;
    made.map_err(|e| ApiError::from(e).prefixed("create failed: "))?;
    Ok(success(format!("create network: {} completed", body.bridge), body))
}

/// Remove a network that no container is in
#[utoipa::path(delete, path = "/v1/networks/{bridge}/actions/delete", tag = "networks", params(("bridge" = String, Path)),
    responses((status = 200, body = Done), (status = 404, body = Failure),
        (status = 409, body = Failure, description = "Containers are in it, or it is the default network"),
        (status = 500, body = Failure)))]
pub async fn delete(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(bridge): PathParams<String>,
) -> Result<Success<Done>, ApiError> {
    entry.target(|target| target.network = bridge.clone());
    let gone = m.networks.delete(&bridge).await;
    gone.map_err(|e| ApiError::from(e).prefixed("delete failed: "))?;
    Ok(done(format!("delete network: {bridge} completed")))
}
