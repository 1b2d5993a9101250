//! `/v1/images/tag`, `/history` and `/inspect` (`docs/spec/api.md` 7.10 and 7.11).

use std::collections::BTreeMap;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Management;
use super::images::ImageQuery;
use crate::api::time::rfc3339;
use crate::api::{ApiError, AuditEntry, Failure, QueryParams, StrictJson, Success, SuccessBody, success};
use crate::image::{ImageDetails, ImageError, ImageRef};

/// Another name for an image.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TagBody {
    /// Reference of an image that is present, required.
    #[schema(required)]
    image: String,
    /// The further name, with a tag or without one, required. An image that had it loses it.
    #[schema(required)]
    target: String,
}

/// A step in the making of an image.
#[derive(Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// RFC 3339, as in the configuration; may be empty.
    created_at: String,
    /// The command or instruction.
    created_by: String,
    /// Who made it; may be empty.
    author: String,
    /// Remark; may be empty.
    comment: String,
    /// Whether the step made no layer.
    empty_layer: bool,
    /// Diff id of its layer, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff_id: Option<String>,
    /// Size of the layer as it was pulled or loaded, in bytes; 0 without one.
    size_bytes: u64,
}

/// A layer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayerView {
    /// Digest of the uncompressed archive.
    diff_id: String,
    /// Digest of the blob as it was pulled or loaded; the diff id for one that was built here.
    digest: String,
    /// Size of that blob, in bytes.
    size_bytes: u64,
}

/// Platform of an image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformView {
    /// Operating system.
    os: String,
    /// Architecture in Go naming.
    architecture: String,
    /// Variant of the architecture; may be empty.
    variant: String,
}

/// A container by id and name.
#[derive(Debug, Serialize, ToSchema)]
pub struct ContainerName {
    /// Id.
    id: String,
    /// Name.
    name: String,
}

/// Everything about an image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageInspection {
    /// Digest of the image configuration.
    id: String,
    /// All tags of images with this configuration: `<repository>:<tag>`.
    repo_tags: Vec<String>,
    /// `<repository>@<digest of the manifest>`, for each of these images.
    repo_digests: Vec<String>,
    /// Digest of the manifest.
    manifest_digest: String,
    /// When it was pulled, loaded or built here.
    created_at: String,
    /// When it was made, by its configuration; may be empty.
    created: String,
    /// Who made it; may be empty.
    author: String,
    /// Platform.
    platform: PlatformView,
    /// Configuration and layers as they were pulled or loaded, in bytes.
    size_bytes: u64,
    /// User of the process; may be empty.
    user: String,
    /// Environment, `KEY=VALUE`.
    env: Vec<String>,
    /// Program and its first arguments.
    entrypoint: Vec<String>,
    /// Further arguments, or the program.
    cmd: Vec<String>,
    /// Working directory; may be empty.
    working_dir: String,
    /// Signal that ends the process; may be empty.
    stop_signal: String,
    /// `80/tcp`
    exposed_ports: Vec<String>,
    /// Paths of volumes.
    volumes: Vec<String>,
    /// Labels.
    labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    annotations: BTreeMap<String, String>,
    /// Layers, bottom first.
    layers: Vec<LayerView>,
    /// How it was made, the first step first.
    history: Vec<HistoryEntry>,
    /// Containers on its layers.
    containers: Vec<ContainerName>,
    /// The whole configuration (OCI image specification, image configuration).
    #[schema(value_type = Object)]
    configuration: Value,
}

/// Give an image another name as well
#[utoipa::path(post, path = "/v1/images/tag", tag = "images", request_body = TagBody,
    responses((status = 200, body = SuccessBody<TagBody>), (status = 400, body = Failure),
        (status = 404, body = Failure)))]
pub async fn tag(
    State(m): State<Management>,
    entry: AuditEntry,
    StrictJson(body): StrictJson<TagBody>,
) -> Result<Success<SuccessBody<TagBody>>, ApiError> {
    entry.target(|target| target.image_ref = body.image.clone());
    entry.extra("target", body.target.clone());
    let tagged = async {
        let (image, target) = (ImageRef::parse(&body.image)?, ImageRef::parse(&body.target)?);
        m.images.tag(&image, &target).await
    };
    let failed = |e: ImageError| ApiError::from(e).prefixed("tag failed: ");
    let row = tagged.await.map_err(failed)?;
    let (image, target) = (body.image, row.id.clone());
    Ok(success("tag completed", TagBody { image, target }))
}

/// How an image was made, the first step first
#[utoipa::path(get, path = "/v1/images/history", tag = "images", params(ImageQuery),
    responses((status = 200, body = SuccessBody<Vec<HistoryEntry>>), (status = 400, body = Failure),
        (status = 404, body = Failure)))]
pub async fn history(
    State(m): State<Management>,
    entry: AuditEntry,
    QueryParams(query): QueryParams<ImageQuery>,
) -> Result<Success<SuccessBody<Vec<HistoryEntry>>>, ApiError> {
    let details = details(&m, &entry, &query, "retrieve image history failed: ").await?;
    Ok(success("retrieve image history success", history_of(&details)))
}

/// Everything about an image, with its configuration
#[utoipa::path(get, path = "/v1/images/inspect", tag = "images", params(ImageQuery),
    responses((status = 200, body = SuccessBody<ImageInspection>), (status = 400, body = Failure),
        (status = 404, body = Failure)))]
pub async fn inspect(
    State(m): State<Management>,
    entry: AuditEntry,
    QueryParams(query): QueryParams<ImageQuery>,
) -> Result<Success<SuccessBody<ImageInspection>>, ApiError> {
    let details = details(&m, &entry, &query, "inspect image failed: ").await?;
    Ok(success("inspect image success", inspection(details)))
}

async fn details(
    m: &Management,
    entry: &AuditEntry,
    query: &ImageQuery,
    prefix: &'static str,
) -> Result<ImageDetails, ApiError> {
    entry.target(|target| target.image_ref = query.image().to_owned());
    let reference = query.parse(prefix)?;
    let details = m.images.details(&reference).await;
    details.map_err(|e| ApiError::from(e).prefixed(prefix))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn history_of(details: &ImageDetails) -> Vec<HistoryEntry> {
    let entries = details.config["history"].as_array();
    let entry = |value: &Value| HistoryEntry {
        created_at: text(&value["created"]),
        created_by: text(&value["created_by"]),
        author: text(&value["author"]),
        comment: text(&value["comment"]),
        empty_layer: value["empty_layer"] == Value::Bool(true),
        ..HistoryEntry::default()
    };
    let mut history: Vec<HistoryEntry> = entries.into_iter().flatten().map(entry).collect();
    // The lowest layers are missing if an upper one hides them.
    let with_layer = history.iter_mut().rev().filter(|entry| !entry.empty_layer);
    for (entry, layer) in with_layer.zip(details.image.layers.iter().rev()) {
        entry.diff_id = Some(layer.diff_id.clone());
        entry.size_bytes = layer.size;
    }
    history
}

fn inspection(details: ImageDetails) -> ImageInspection {
    let history = history_of(&details);
    let ImageDetails {
        image,
        names,
        config,
        manifest,
        containers,
    } = details;
    let tags = names.iter().filter(|row| !row.reference.contains(':'));
    let annotations = manifest["annotations"].as_object().into_iter().flatten();
    let layer = |layer: &crate::model::ImageLayer| LayerView {
        diff_id: layer.diff_id.clone(),
        digest: layer.digest.clone(),
        size_bytes: layer.size,
    };
    let mut repo_digests: Vec<String> = names
        .iter()
        .map(|row| format!("{}@{}", row.repository, row.manifest_digest))
        .collect();
    repo_digests.sort();
    repo_digests.dedup();
    let run = &image.config;
    ImageInspection {
        id: image.config_digest.clone(),
        repo_tags: tags.map(|row| row.id.clone()).collect(),
        repo_digests,
        manifest_digest: image.manifest_digest.clone(),
        created_at: rfc3339(Some(image.created_at)),
        created: text(&config["created"]),
        author: text(&config["author"]),
        platform: PlatformView {
            os: image.os.clone(),
            architecture: image.architecture.clone(),
            variant: text(&config["variant"]),
        },
        size_bytes: image.size_bytes,
        user: run.user.clone(),
        env: run.env.clone(),
        entrypoint: run.entrypoint.clone(),
        cmd: run.cmd.clone(),
        working_dir: run.working_dir.clone(),
        stop_signal: run.stop_signal.clone(),
        exposed_ports: run.exposed_ports.iter().cloned().collect(),
        volumes: run.volumes.iter().cloned().collect(),
        labels: run.labels.clone(),
        annotations: annotations.map(|(key, value)| (key.clone(), text(value))).collect(),
        layers: image.layers.iter().map(layer).collect(),
        history,
        containers: containers
            .iter()
            .map(|container| ContainerName {
                id: container.id.clone(),
                name: container.name.clone(),
            })
            .collect(),
        configuration: config,
    }
}
