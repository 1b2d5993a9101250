//! The management API (port 7755): all its routes, and code that handlers share.
//!
//! There is one file per resource. A handler parses the request, calls one method of a service and renders the answer;
//! [`failure`] maps errors of services to codes.

mod attach;
mod bottles;
mod build;
mod cached;
mod conditions;
mod containers;
mod containers_export;
mod events;
mod exec;
mod failure;
mod images;
mod images_archive;
mod images_inspect;
mod images_push;
mod logs;
mod metrics;
mod networks;
mod pods;
mod policies;
mod prune;
mod replicasets;
mod resource;
mod services;
mod stats;
mod system;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::image::ImageService;
use crate::net::enforcement::Networks;
use crate::net::policy::PolicyService;
use crate::observe::events::Events;
use crate::observe::metrics::{Activity, Sampler};
use crate::ops::conditions::Conditions;
use crate::store::Store;
use crate::workload::apply::Applier;
use crate::workload::balancer::ServiceRegistry;
use crate::workload::bottle::Bottles;
use crate::workload::build::BuildService;
use crate::workload::container::ContainerService;
use crate::workload::disk::DiskService;
use crate::workload::pod::PodService;
use crate::workload::replica_set::ReplicaSets;

pub use super::Sessions;
pub use cached::CachedResponse;

/// The services behind the management API.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Management {
    pub store: Store,
    pub containers: ContainerService,
    pub bottles: Bottles,
    pub pods: PodService,
    pub services: ServiceRegistry,
    pub sets: ReplicaSets,
    pub applier: Applier,
    pub images: ImageService,
    pub networks: Networks,
    pub policies: PolicyService,
    pub builds: BuildService,
    pub disk: DiskService,
    pub sampler: Sampler,
    pub activity: Activity,
    pub events: Events,
    pub conditions: Conditions,
    pub sessions: Sessions,
    pub cached: Cached,
    /// Values of `Origin` that may open a WebSocket, in addition to the API's own address.
    pub allowed_origins: Arc<[String]>,
}

/// Cached answers of lists that are long and requested often.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Cached {
    pub containers: CachedResponse,
    pub pods: CachedResponse,
}

/// All routes, with their OpenAPI description.
pub fn routes() -> OpenApiRouter<Management> {
    OpenApiRouter::new()
        .routes(routes!(containers::list, containers::create))
        .routes(routes!(containers::get))
        .routes(routes!(containers::start))
        .routes(routes!(containers::stop))
        .routes(routes!(exec::exec))
        .routes(routes!(containers::delete))
        .routes(routes!(containers::log_path))
        .routes(routes!(containers_export::export))
        .routes(routes!(containers_export::commit))
        .routes(routes!(stats::all_stats))
        .routes(routes!(stats::stats))
        .routes(routes!(logs::log))
        .routes(routes!(attach::attach))
        .routes(routes!(attach::exec_attach))
        .routes(routes!(events::watch))
        .routes(routes!(images::list, images::pull, images::remove))
        .routes(routes!(build::build))
        .routes(routes!(images::status))
        .routes(routes!(images::disk_usage))
        .routes(routes!(images_push::push))
        .routes(routes!(images_inspect::tag))
        .routes(routes!(images_inspect::history))
        .routes(routes!(images_inspect::inspect))
        .routes(routes!(images_archive::save))
        .routes(routes!(images_archive::load))
        .routes(routes!(images_archive::import))
        .routes(routes!(prune::containers))
        .routes(routes!(prune::images))
        .routes(routes!(prune::build_cache))
        .routes(routes!(prune::system))
        .routes(routes!(system::df))
        .routes(routes!(bottles::list, bottles::register))
        .routes(routes!(bottles::get))
        .routes(routes!(bottles::act))
        .routes(routes!(networks::list, networks::create))
        .routes(routes!(networks::delete))
        .routes(routes!(pods::list, pods::create))
        .routes(routes!(pods::get, pods::remove))
        .routes(routes!(pods::start))
        .routes(routes!(pods::stop))
        .routes(routes!(services::list, services::create))
        .routes(routes!(services::get, services::remove))
        .routes(routes!(replicasets::list))
        .routes(routes!(replicasets::get, replicasets::remove))
        .routes(routes!(replicasets::scale))
        .routes(routes!(resource::apply))
        .routes(routes!(resource::delete))
        .routes(routes!(policies::add))
        .routes(routes!(policies::list, policies::remove))
        .routes(routes!(policies::commit))
        .routes(routes!(policies::revert))
        .route("/v1/policies/commit", policies::no_chain_or_policy())
        .route("/v1/policies/revert", policies::no_chain_or_policy())
        .routes(routes!(policies::set_mode))
        .routes(routes!(policies::explain))
        .routes(routes!(conditions::rules))
        .routes(routes!(metrics::scrape))
}
