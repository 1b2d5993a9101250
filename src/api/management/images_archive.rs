//! `/v1/images/save`, `/load` and `/import` (`docs/spec/api.md` 7.8 and 7.9).

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Management;
use super::logs::until;
use crate::api::{
    ApiError, AuditEntry, Code, Failure, ProgressAnswer, ProgressLine, QueryParams, SuccessBody, success,
};
use crate::image::{ArchiveFormat, ByteStream, ImageError, ImageRef, ImportRequest, Platform};

/// Which images, and how.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "the query is read as a list of pairs: a name may be there several times"
)]
pub struct SaveQuery {
    /// Image reference, required; may be given several times
    #[param(required, value_type = Vec<String>)]
    image: Vec<String>,
    /// `oci-archive` or `docker-archive` [default: oci-archive]
    #[param(value_type = Option<String>)]
    format: String,
}

/// How a loaded image is called.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LoadQuery {
    /// Name of the image that the archive does not name, or names by a tag only
    #[serde(default)]
    tag: String,
}

/// What an imported image is to be.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "the query is read as a list of pairs: a name may be there several times"
)]
pub struct ImportQuery {
    /// Name of the new image, required
    #[param(required, value_type = String)]
    tag: String,
    /// An instruction of a build file that makes no files (`CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `LABEL`, `ONBUILD`,
    /// `STOPSIGNAL`, `USER`, `VOLUME`, `WORKDIR`); may be given several times
    #[param(value_type = Option<Vec<String>>, example = json!(["CMD [\"/bin/sh\"]"]))]
    change: Vec<String>,
    /// Remark for the image's history
    #[param(value_type = Option<String>)]
    message: String,
    /// Architecture in Go naming [default: the host's]
    #[param(value_type = Option<String>)]
    arch: String,
}

/// The images that an archive had.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoadedImages {
    /// Canonical strings.
    images: Vec<String>,
}

/// Images as one archive
///
/// An archive that is cut off ends with a transfer error.
#[utoipa::path(get, path = "/v1/images/save", tag = "images", params(SaveQuery),
    responses((status = 200, body = Vec<u8>, content_type = "application/x-tar", description = "The archive"),
        (status = 400, body = Failure), (status = 404, body = Failure),
        (status = 409, body = Failure, description = "A layer is lost")))]
pub async fn save(
    State(m): State<Management>,
    entry: AuditEntry,
    QueryParams(query): QueryParams<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    const PREFIX: &str = "save failed: ";
    let images = all(&query, "image");
    entry.target(|target| target.image_ref = images.join(" "));
    if images.is_empty() {
        let message = "missing image query; name the image, as in ?image=team/app:1.0";
        return Err(ApiError::new(Code::InvalidQuery, message));
    }
    let format = match last(&query, "format") {
        "" => ArchiveFormat::Oci,
        text => text
            .parse()
            .map_err(|why| ApiError::new(Code::InvalidQuery, format!("invalid format: {why}")))?,
    };
    let failed = |e: ImageError| ApiError::from(e).prefixed(PREFIX);
    let images: Vec<ImageRef> = images
        .iter()
        .map(|image| ImageRef::parse(image).map_err(failed))
        .collect::<Result<_, _>>()?;
    let archive = m.images.save(&images, format).await.map_err(failed)?;
    Ok(tar(&m, archive))
}

/// An answer that is an archive.
pub(super) fn tar(m: &Management, archive: ByteStream) -> Response {
    let body = Body::from_stream(until(m.sessions.stop.clone(), archive));
    ([(header::CONTENT_TYPE, "application/x-tar")], body).into_response()
}

/// Load images from an archive
///
/// The archive is one of `save`, of `docker save`, `podman save`, `skopeo copy` or `umoci` (oci-archive or
/// docker-archive), as it is or compressed with gzip or zstd. With `Accept: application/x-ndjson` the answer has a line for
/// each event.
#[utoipa::path(post, path = "/v1/images/load", tag = "images", params(LoadQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "The archive"),
    responses((status = 200, content((SuccessBody<LoadedImages> = "application/json"),
            (ProgressLine = "application/x-ndjson"))), (status = 400, body = Failure),
        (status = 500, body = Failure)))]
pub async fn load(
    State(m): State<Management>,
    entry: AuditEntry,
    answer: ProgressAnswer,
    QueryParams(query): QueryParams<LoadQuery>,
    body: Body,
) -> Result<Response, ApiError> {
    entry.target(|target| target.image_ref = query.tag.clone());
    let failed = |e: ImageError| ApiError::from(e).prefixed("load failed: ");
    let tag = match &query.tag[..] {
        "" => None,
        tag => Some(new_name(tag).map_err(failed)?),
    };
    let upload = body.into_data_stream().map_err(std::io::Error::other);
    let service = m.images.clone();
    let load = move |reporter, _| async move {
        let loaded = service.load(upload, tag, reporter).await.map_err(failed)?;
        let images: Vec<String> = loaded.images.iter().map(|image| image.id.clone()).collect();
        entry.target(|target| target.image_ref = images.join(" "));
        Ok(success("load completed", LoadedImages { images }))
    };
    Ok(answer.run(&m.sessions, load).await)
}

/// Make an image from the archive of a root file system
///
/// With `Accept: application/x-ndjson` the answer has a line for each event.
#[utoipa::path(post, path = "/v1/images/import", tag = "images", params(ImportQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar",
        description = "The files, as a tar that may be compressed with gzip or zstd"),
    responses((status = 200, content((SuccessBody<LoadedImages> = "application/json"),
            (ProgressLine = "application/x-ndjson"))), (status = 400, body = Failure),
        (status = 500, body = Failure)))]
pub async fn import(
    State(m): State<Management>,
    entry: AuditEntry,
    answer: ProgressAnswer,
    QueryParams(query): QueryParams<Vec<(String, String)>>,
    body: Body,
) -> Result<Response, ApiError> {
    let tag = last(&query, "tag");
    entry.target(|target| target.image_ref = tag.to_owned());
    if tag.is_empty() {
        let message = "missing tag query; name the new image, as in ?tag=team/app:1.0";
        return Err(ApiError::new(Code::InvalidQuery, message));
    }
    let failed = |e: ImageError| ApiError::from(e).prefixed("import failed: ");
    let request = ImportRequest {
        target: new_name(tag).map_err(failed)?,
        changes: all(&query, "change"),
        message: last(&query, "message").to_owned(),
        platform: Platform::parse("", last(&query, "arch")),
    };
    let upload = body.into_data_stream().map_err(std::io::Error::other);
    let service = m.images.clone();
    let import = move |reporter, _| async move {
        let image = service.import(upload, request, reporter).await;
        let images = vec![image.map_err(failed)?.id.clone()];
        Ok(success("import completed", LoadedImages { images }))
    };
    Ok(answer.run(&m.sessions, import).await)
}

/// A reference that an image can get.
pub(super) fn new_name(text: &str) -> Result<ImageRef, ImageError> {
    let name = ImageRef::parse(text)?;
    match name.reference().contains(':') {
        true => Err(ImageError::DigestName(name.canonical())),
        false => Ok(name),
    }
}

fn all(query: &[(String, String)], name: &str) -> Vec<String> {
    let given = query.iter().filter(|(given, value)| given == name && !value.is_empty());
    given.map(|(_, value)| value.clone()).collect()
}

fn last<'a>(query: &'a [(String, String)], name: &str) -> &'a str {
    let mut given = query.iter().rev().filter(|(given, _)| given == name);
    given.next().map_or("", |(_, value)| value)
}
