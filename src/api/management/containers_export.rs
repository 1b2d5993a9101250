//! `…/export` and `…/commit` (`docs/spec/api.md` 7.13).

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Management;
use super::containers::about;
use super::images_archive::{new_name, tar};
use crate::api::{ApiError, AuditEntry, Code, Failure, PathParams, StrictJson, Success, SuccessBody, success};
use crate::workload::container::{CommitOptions, ContainerError};

/// An image to make of a container.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CommitBody {
    /// Name of the new image, required. An image that has it is replaced.
    #[schema(required)]
    tag: String,
    /// Who makes it.
    author: String,
    /// Remark for its history.
    message: String,
    /// Instructions of a build file that make no files: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `LABEL`, `ONBUILD`,
    /// `STOPSIGNAL`, `USER`, `VOLUME`, `WORKDIR`. Variables are not replaced.
    #[schema(example = json!(["CMD [\"httpd\", \"-f\"]", "ENV MODE=production"]))]
    changes: Vec<String>,
    /// Whether its processes stand still while its files are read [default: true]
    pause: Option<bool>,
}

/// The image that was made.
#[derive(Debug, Serialize, ToSchema)]
pub struct CommittedImage {
    /// Canonical string.
    image: String,
}

/// The files of a container as a tar, without what is mounted in it
///
/// An archive that is cut off ends with a transfer error.
#[utoipa::path(get, path = "/v1/containers/{containerId}/export", tag = "containers",
    params(("containerId" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/x-tar", description = "The archive"),
        (status = 404, body = Failure), (status = 409, body = Failure)))]
pub async fn export(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
) -> Result<Response, ApiError> {
    about(&m, &entry, &id);
    let failed = |e: ContainerError| ApiError::from(e).prefixed("export failed: ");
    let archive = m.containers.export(&id).await.map_err(failed)?;
    Ok(tar(&m, archive))
}

/// Make an image of a container
#[utoipa::path(post, path = "/v1/containers/{containerId}/commit", tag = "containers",
    params(("containerId" = String, Path)), request_body = CommitBody,
    responses((status = 200, body = SuccessBody<CommittedImage>), (status = 400, body = Failure),
        (status = 404, body = Failure), (status = 409, body = Failure)))]
pub async fn commit(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    StrictJson(body): StrictJson<CommitBody>,
) -> Result<Success<SuccessBody<CommittedImage>>, ApiError> {
    const PREFIX: &str = "commit failed: ";
    about(&m, &entry, &id);
    entry.target(|target| target.image_ref = body.tag.clone());
    if body.tag.is_empty() {
        let message = "commit failed: missing tag; name the new image, as in \"tag\": \"team/app:1.0\"";
        return Err(ApiError::new(Code::InvalidBody, message));
    }
    let options = CommitOptions {
        target: new_name(&body.tag).map_err(|e| ApiError::from(e).prefixed(PREFIX))?,
        changes: body.changes,
        author: body.author,
        message: body.message,
        pause: body.pause.unwrap_or(true),
    };
    let failed = |e: ContainerError| ApiError::from(e).prefixed(PREFIX);
    let image = m.containers.commit(&id, options).await.map_err(failed)?;
    Ok(success("commit completed", CommittedImage { image }))
}
