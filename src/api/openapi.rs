//! The machine-readable description of the management API, collected from the handlers themselves.

use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::management;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Condenser API",
        description = "Management API of Condenser, a high-level container runtime for one Linux host. \
                       TLS 1.3 with a client certificate `spiffe://raind/cli/<name>` is required.",
    ),
    servers((url = "https://localhost:7755")),
    tags(
        (name = "containers", description = "Containers and their life cycle"),
        (name = "images", description = "Images that are present on this host"),
        (name = "networks", description = "Bridges that containers are attached to"),
        (name = "policies", description = "Which flows are allowed"),
    )
)]
struct Description;

/// The document, OpenAPI 3.1, indented, the same for the same code.
pub fn openapi_json() -> String {
    let (_, document) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(management::routes())
        .split_for_parts();
    // A document made of strings, numbers and lists has no way to fail.
    let text = document.to_pretty_json().unwrap_or_default();
    text + "\n"
}
