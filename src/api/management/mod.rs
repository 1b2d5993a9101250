//! The management API (port 7755): every route it has, and what the handlers share.
//!
//! One file per resource. A handler parses, calls one method of a service and renders; which status an error of a
//! service becomes is decided in [`failure`].

mod containers;
mod failure;
mod images;
mod networks;
mod policies;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::container::ContainerService;
use crate::image::ImageService;
use crate::store::Store;

/// The services behind the management API.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Management {
    pub store: Store,
    pub containers: ContainerService,
    pub images: ImageService,
}

/// All routes, with their description.
pub fn routes() -> OpenApiRouter<Management> {
    OpenApiRouter::new()
        .routes(routes!(containers::list, containers::create))
        .routes(routes!(containers::get))
        .routes(routes!(containers::start))
        .routes(routes!(containers::stop))
        .routes(routes!(containers::exec))
        .routes(routes!(containers::delete))
        .routes(routes!(containers::log))
        .routes(routes!(containers::log_path))
        .routes(routes!(images::list, images::pull, images::remove))
        .routes(routes!(images::status))
        .routes(routes!(images::disk_usage))
        .routes(routes!(networks::list))
        .routes(routes!(policies::list))
}
