//! `POST /v1/images/build` (`docs/spec/api.md` 7.4).

use axum::body::Body;
use axum::extract::State;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Management;
use crate::api::{ApiError, AuditEntry, Client, Failure, QueryParams, Success, SuccessBody, success};
use crate::workload::build::{BuildError, BuildRequest};

/// Default path of the build file.
const DRIPFILE: &str = "Dripfile";

/// What to build.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct BuildQuery {
    /// Name of the new image, required.
    #[serde(default)]
    #[param(required)]
    tag: String,
    /// Path of the build file in the context [default: `dockerfile`, else `Dripfile`]
    #[serde(default)]
    dripfile: String,
    /// Older name of the same.
    #[serde(default)]
    dockerfile: String,
    /// Network of `RUN` commands [default: raind0]
    #[serde(default)]
    network: String,
}

/// The image that was built.
#[derive(Debug, Serialize, ToSchema)]
pub struct BuiltImage {
    /// Canonical string.
    image: String,
}

/// Build an image from a build file and its context
#[utoipa::path(post, path = "/v1/images/build", tag = "images", params(BuildQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "Uncompressed tar of the context"),
    responses((status = 200, body = SuccessBody<BuiltImage>), (status = 400, body = Failure),
        (status = 404, body = Failure, description = "No such base image or network"),
        (status = 413, body = Failure), (status = 500, body = Failure),
        (status = 502, body = Failure, description = "The registry of the base image failed, refused or lied")))]
pub async fn build(
    State(m): State<Management>,
    entry: AuditEntry,
    QueryParams(query): QueryParams<BuildQuery>,
    client: Client,
    body: Body,
) -> Result<Success<SuccessBody<BuiltImage>>, ApiError> {
    entry.target(|target| target.image_ref = query.tag.clone());
    let named = [query.dripfile, query.dockerfile]
        .into_iter()
        .find(|path| !path.is_empty());
    let request = BuildRequest {
        tag: query.tag,
        dripfile: named.unwrap_or_else(|| DRIPFILE.into()),
        network: query.network,
    };
    let context = body.into_data_stream().map_err(std::io::Error::other);
    let image = tokio::select! {
        built = m.builds.build(request, context, &m.sessions.stop) => built?,
        // The client is gone, so nobody reads this. Dropping the future cancels the build.
        () = client.gone() => return Err(BuildError::Cancelled.into()),
    };
    Ok(success("build completed", BuiltImage { image }))
}
