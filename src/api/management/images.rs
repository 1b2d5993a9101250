//! `/v1/images` (`docs/spec/api.md` 7).

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Management;
use crate::api::time::rfc3339;
use crate::api::{
    ApiError, AuditEntry, Code, Failure, ProgressAnswer, ProgressLine, QueryParams, StrictJson, Success, SuccessBody,
    success,
};
use crate::image::{ImageError, ImageRef, Platform};

/// An image in the list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageView {
    /// Repository; always contains a `/`.
    repository: String,
    /// Tag or digest.
    reference: String,
    /// When it was pulled or built.
    created_at: String,
}

/// Everything about an image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// Repository; always contains a `/`.
    repository: String,
    /// Tag or digest.
    reference: String,
    /// Digest of the image configuration.
    id: String,
    /// `<repository>:<tag>`; empty for an image known by digest.
    repo_tags: Vec<String>,
    /// `<repository>@<digest of the manifest>`
    repo_digests: Vec<String>,
    /// Configuration and compressed layers, in bytes.
    size_bytes: u64,
    /// When it was pulled or built.
    created_at: String,
    /// User of the image configuration; may be empty.
    user: String,
    /// Ports that the image exposes, as `80/tcp`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    exposed_ports: BTreeSet<String>,
    /// Paths at which containers get an anonymous volume, unless they mount something else there.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    volumes: BTreeSet<String>,
    /// Labels of the image configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// Space on disk.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageUsage {
    /// Canonical string.
    image: String,
    /// Bytes on disk.
    used_bytes: u64,
}

/// An image to pull.
#[derive(Debug, Default, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PullBody {
    /// Image reference, required.
    #[schema(required)]
    image: String,
    /// Operating system [default: linux]
    os: String,
    /// Architecture in Go naming [default: the host's]
    arch: String,
}

/// An image by its reference.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImageBody {
    /// Image reference, required.
    #[schema(required)]
    image: String,
}

/// Which image.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ImageQuery {
    /// Image reference, required.
    #[serde(default)]
    #[param(required)]
    image: String,
}

impl ImageQuery {
    /// As the client wrote it.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    pub(super) fn parse(&self, prefix: &'static str) -> Result<ImageRef, ApiError> {
        if self.image.is_empty() {
            return Err(ApiError::new(
                Code::InvalidQuery,
                "missing image query; name the image, as in ?image=team/app:1.0",
            ));
        }
        ImageRef::parse(&self.image).map_err(|e| ApiError::from(e).prefixed(prefix))
    }
}

/// All images by repository, then reference
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, body = SuccessBody<Vec<ImageView>>)))]
pub async fn list(State(m): State<Management>) -> Success<SuccessBody<Vec<ImageView>>> {
    let images = m.images.list();
    let views = images.iter().map(|i| ImageView {
        repository: i.repository.clone(),
        reference: i.reference.clone(),
        created_at: rfc3339(Some(i.created_at)),
    });
    success("retrieve image list success", views.collect())
}

/// Pull an image; the registry is always asked
///
/// With `Accept: application/x-ndjson` the answer has a line for each event, and the pull goes on if the client leaves.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = PullBody,
    responses((status = 200, content((SuccessBody<PullBody> = "application/json"),
            (ProgressLine = "application/x-ndjson"))),
        (status = 400, body = Failure),
        (status = 404, body = Failure, description = "No such image, or not for the platform"),
        (status = 413, body = Failure), (status = 500, body = Failure),
        (status = 502, body = Failure, description = "The registry failed, refused or lied")))]
pub async fn pull(
    State(m): State<Management>,
    entry: AuditEntry,
    answer: ProgressAnswer,
    StrictJson(body): StrictJson<PullBody>,
) -> Result<Response, ApiError> {
    entry.target(|target| target.image_ref = body.image.clone());
    let failed = |e: ImageError| ApiError::from(e).prefixed("pull failed: ");
    let reference = ImageRef::parse(&body.image).map_err(failed)?;
    let platform = Platform::parse(&body.os, &body.arch);
    let images = m.images.clone();
    // The image is useful also without this client, so the pull goes on when it leaves.
    let pull = move |reporter, _| async move {
        let pulled = images.pull_reported(&reference, &platform, &reporter).await;
        pulled.map_err(failed)?;
        Ok(success("pull completed", body))
    };
    Ok(answer.run(&m.sessions, pull).await)
}

/// The contract's wording, and an explanation.
fn not_here(image: &str) -> ApiError {
    ApiError::new(
        Code::ImageNotFound,
        format!("bundle path not found. The image {image} is not on this host; GET /v1/images says which ones are"),
    )
}

/// Remove an image that no container uses
#[utoipa::path(delete, path = "/v1/images", tag = "images", request_body = ImageBody,
    responses((status = 200, body = SuccessBody<ImageBody>), (status = 400, body = Failure),
        (status = 404, body = Failure), (status = 409, body = Failure, description = "A container uses it")))]
pub async fn remove(
    State(m): State<Management>,
    entry: AuditEntry,
    StrictJson(body): StrictJson<ImageBody>,
) -> Result<Success<SuccessBody<ImageBody>>, ApiError> {
    entry.target(|target| target.image_ref = body.image.clone());
    let failed = |e: ImageError| match e {
        ImageError::NotFound(image) => not_here(&image),
        other => other.into(),
    };
    let removed = async { m.images.remove(&ImageRef::parse(&body.image)?).await };
    removed.await.map_err(|e| failed(e).prefixed("remove failed: "))?;
    Ok(success("remove completed", body))
}

/// Everything about an image that is present
#[utoipa::path(get, path = "/v1/images/status", tag = "images", params(ImageQuery),
    responses((status = 200, body = SuccessBody<ImageStatus>), (status = 400, body = Failure),
        (status = 404, body = Failure)))]
pub async fn status(
    State(m): State<Management>,
    entry: AuditEntry,
    QueryParams(query): QueryParams<ImageQuery>,
) -> Result<Success<SuccessBody<ImageStatus>>, ApiError> {
    const PREFIX: &str = "retrieve image status failed: ";
    entry.target(|target| target.image_ref = query.image.clone());
    let reference = query.parse(PREFIX)?;
    let image = m.images.get(&reference).map_err(|e| match e {
        ImageError::NotFound(_) => {
            let message = format!("{PREFIX}{} not found", reference.canonical());
            ApiError::new(Code::ImageNotFound, message)
        }
        other => ApiError::from(other).prefixed(PREFIX),
    })?;
    let is_digest = image.reference.contains(':');
    let view = ImageStatus {
        repository: image.repository.clone(),
        reference: image.reference.clone(),
        id: image.config_digest.clone(),
        repo_tags: if is_digest { Vec::new() } else { vec![image.id.clone()] },
        repo_digests: vec![format!("{}@{}", image.repository, image.manifest_digest)],
        size_bytes: image.size_bytes,
        created_at: rfc3339(Some(image.created_at)),
        user: image.config.user.clone(),
        exposed_ports: image.config.exposed_ports.clone(),
        volumes: image.config.volumes.clone(),
        labels: image.config.labels.clone(),
        annotations: m.images.annotations(&image).await,
    };
    Ok(success("retrieve image status success", view))
}

/// How much space an image takes
#[utoipa::path(get, path = "/v1/images/fs", tag = "images", params(ImageQuery),
    responses((status = 200, body = SuccessBody<ImageUsage>), (status = 400, body = Failure),
        (status = 404, body = Failure)))]
pub async fn disk_usage(
    State(m): State<Management>,
    entry: AuditEntry,
    QueryParams(query): QueryParams<ImageQuery>,
) -> Result<Success<SuccessBody<ImageUsage>>, ApiError> {
    const PREFIX: &str = "retrieve image fs info failed: ";
    entry.target(|target| target.image_ref = query.image.clone());
    let reference = query.parse(PREFIX)?;
    let used_bytes = m.images.disk_usage(&reference).await.map_err(|e| match e {
        ImageError::NotFound(image) => not_here(&image).prefixed(PREFIX),
        other => ApiError::from(other).prefixed(PREFIX),
    })?;
    Ok(success(
        "retrieve image fs info success",
        ImageUsage {
            image: reference.canonical(),
            used_bytes,
        },
    ))
}
