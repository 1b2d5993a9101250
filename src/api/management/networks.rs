//! `/v1/networks` (`contract/api.md` 13).

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Management;
use crate::api::{Success, SuccessBody, success};
use crate::store::Network;

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

/// All networks by creation time
#[utoipa::path(get, path = "/v1/networks", tag = "networks",
    responses((status = 200, body = SuccessBody<Vec<NetworkView>>)))]
pub async fn list(State(m): State<Management>) -> Success<SuccessBody<Vec<NetworkView>>> {
    let snapshot = m.store.snapshot();
    let mut networks: Vec<&Network> = snapshot.networks().iter().map(AsRef::as_ref).collect();
    networks.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
    let inside = |n: &Network| {
        snapshot
            .containers()
            .iter()
            .filter(|c| c.attachment.as_ref().is_some_and(|a| a.network == n.name))
            .count()
    };
    let views = networks.into_iter().map(|n| NetworkView {
        interface: n.name.clone(),
        address: format!("{}/{}", n.gateway, n.subnet.prefix_len()),
        num_containers: inside(n),
    });
    success("network list", views.collect())
}
