//! `POST /v1/system/prune` and the prunes of one kind (`docs/spec/api.md` 7.21).

use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Management;
use super::logs::moment;
use crate::api::{ApiError, Code, Failure, OptionalJson, Success, SuccessBody, success};
use crate::image::ImagePrune;
use crate::ops::prune::{LabelRule, PruneFilter, Pruned};
use crate::workload::disk::BuildPrune;

/// Which containers to remove.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneBody {
    /// Only say what would be removed.
    #[serde(rename = "dryRun")]
    dry_run: bool,
    /// Conditions that have to hold.
    filters: PruneFilters,
}

/// Which images to remove, or with everything else.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneImagesBody {
    /// Only say what would be removed.
    #[serde(rename = "dryRun")]
    dry_run: bool,
    /// Also images with a tag. Otherwise only dangling ones: those that were asked for by digest and have no tag.
    all: bool,
    /// Conditions that have to hold.
    filters: PruneImagesFilters,
}

/// Conditions on what is removed.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneFilters {
    /// Only what was created before then: RFC 3339, or how long ago (`24h`, `1h30m`)
    #[schema(example = "24h")]
    until: String,
    /// Only what has all of these labels, each `<key>` or `<key>=<value>`.
    label: Vec<String>,
    /// Only what has none of these labels.
    #[serde(rename = "label!")]
    without_label: Vec<String>,
}

/// Conditions on the images that are removed.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneImagesFilters {
    /// Only what was created before then: RFC 3339, or how long ago (`24h`, `1h30m`)
    #[schema(example = "24h")]
    until: String,
    /// Only what has all of these labels, each `<key>` or `<key>=<value>`.
    label: Vec<String>,
    /// Only what has none of these labels.
    #[serde(rename = "label!")]
    without_label: Vec<String>,
    /// `true`: only images without a tag, as without `all`. `false`: the same as `all`.
    dangling: Option<bool>,
    /// `true`: the same as `all`. `false`: only images without a tag.
    unused: Option<bool>,
}

/// Which build cache to remove.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneBuildBody {
    /// Only say what would be removed.
    #[serde(rename = "dryRun")]
    dry_run: bool,
    /// Only as much, the least recently used first, as leaves this many bytes [default: all]
    #[serde(rename = "keepBytes")]
    keep_bytes: Option<u64>,
    /// Conditions that have to hold.
    filters: PruneBuildFilters,
}

/// Conditions on the build cache that is removed.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PruneBuildFilters {
    /// Only what no build has used since: RFC 3339, or how long ago (`24h`, `1h30m`)
    #[schema(example = "24h")]
    until: String,
}

/// What was removed or, in a dry run, would be.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrunedView {
    /// Whether nothing was removed in fact.
    dry_run: bool,
    /// The objects.
    removed: Vec<PrunedItem>,
    /// What could not be removed.
    failed: Vec<PruneFailure>,
    /// Bytes on disk. Less than the sum of the sizes if the objects share something with others.
    bytes_freed: u64,
}

/// An object that was removed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrunedItem {
    /// Id of a container or of build cache, digest of the configuration of an image.
    id: String,
    /// Name of a container, canonical string of an image, description of build cache.
    name: String,
    /// Bytes on disk that nothing else uses.
    size_bytes: u64,
}

/// An object that could not be removed.
#[derive(Debug, Serialize, ToSchema)]
pub struct PruneFailure {
    /// Its name.
    name: String,
    /// Why.
    message: String,
}

/// What was removed of each kind.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SystemPrunedView {
    /// Whether nothing was removed in fact.
    dry_run: bool,
    /// Stopped containers.
    containers: PrunedView,
    /// Images.
    images: PrunedView,
    /// Build cache.
    build_cache: PrunedView,
    /// Bytes on disk of all kinds.
    bytes_freed: u64,
}

impl PrunedView {
    fn new(pruned: Pruned, dry_run: bool) -> Self {
        let item = |object: crate::ops::prune::PrunedObject| PrunedItem {
            id: object.id,
            name: object.name,
            size_bytes: object.bytes,
        };
        let failure = |(name, message)| PruneFailure { name, message };
        Self {
            dry_run,
            removed: pruned.removed.into_iter().map(item).collect(),
            failed: pruned.failed.into_iter().map(failure).collect(),
            bytes_freed: pruned.bytes_freed,
        }
    }
}

/// The conditions that all kinds have.
fn filter(until: &str, with: &[String], without: &[String]) -> Result<PruneFilter, ApiError> {
    let labels = |name: &str, texts: &[String]| {
        let rules = texts.iter().map(|text| {
            LabelRule::parse(text).ok_or_else(|| {
                let message = format!("invalid {name}: {text:?} is neither <key> nor <key>=<value>");
                ApiError::new(Code::InvalidBody, message)
            })
        });
        rules.collect::<Result<Vec<_>, _>>()
    };
    let before = match until {
        "" => None,
        text => Some(moment("until", text, Timestamp::now()).map_err(|e| ApiError::new(Code::InvalidBody, e.message))?),
    };
    Ok(PruneFilter {
        before,
        labels: labels("label", with)?,
        without_labels: labels("label!", without)?,
    })
}

impl PruneFilters {
    fn parse(&self) -> Result<PruneFilter, ApiError> {
        filter(&self.until, &self.label, &self.without_label)
    }
}

impl PruneImagesBody {
    fn parse(&self) -> Result<ImagePrune, ApiError> {
        let filters = &self.filters;
        let said = [
            self.all.then_some(true),
            filters.dangling.map(|only| !only),
            filters.unused,
        ];
        let said: Vec<bool> = said.into_iter().flatten().collect();
        if said.iter().any(|tagged| *tagged != said[0]) {
            let message = "the filters contradict each other: all, dangling=false and unused=true mean images with a tag \
                           too, dangling=true and unused=false only those without";
            return Err(ApiError::new(Code::InvalidBody, message));
        }
        Ok(ImagePrune {
            filter: filter(&filters.until, &filters.label, &filters.without_label)?,
            tagged: said.first().copied().unwrap_or(false),
        })
    }
}

/// `… completed`, or that nothing was removed.
fn message(dry_run: bool) -> &'static str {
    match dry_run {
        true => "prune dry run completed",
        false => "prune completed",
    }
}

/// Remove stopped containers
///
/// Those of pods, replica sets and bottles stay, and those that their restart policy will start again.
#[utoipa::path(post, path = "/v1/containers/prune", tag = "containers", request_body = PruneBody,
    responses((status = 200, body = SuccessBody<PrunedView>), (status = 400, body = Failure)))]
pub async fn containers(
    State(m): State<Management>,
    OptionalJson(body): OptionalJson<PruneBody>,
) -> Result<Success<SuccessBody<PrunedView>>, ApiError> {
    let pruned = m.disk.prune_containers(body.filters.parse()?, body.dry_run).await?;
    Ok(success(message(body.dry_run), PrunedView::new(pruned, body.dry_run)))
}

/// Remove images that nothing uses
///
/// Images of containers stay, and those that pods, replica sets and bottles name.
#[utoipa::path(post, path = "/v1/images/prune", tag = "images", request_body = PruneImagesBody,
    responses((status = 200, body = SuccessBody<PrunedView>), (status = 400, body = Failure)))]
pub async fn images(
    State(m): State<Management>,
    OptionalJson(body): OptionalJson<PruneImagesBody>,
) -> Result<Success<SuccessBody<PrunedView>>, ApiError> {
    let pruned = m.disk.prune_images(body.parse()?, body.dry_run).await?;
    Ok(success(message(body.dry_run), PrunedView::new(pruned, body.dry_run)))
}

/// Remove build cache that no build uses at the moment
#[utoipa::path(post, path = "/v1/build/prune", tag = "images", request_body = PruneBuildBody,
    responses((status = 200, body = SuccessBody<PrunedView>), (status = 400, body = Failure)))]
pub async fn build_cache(
    State(m): State<Management>,
    OptionalJson(body): OptionalJson<PruneBuildBody>,
) -> Result<Success<SuccessBody<PrunedView>>, ApiError> {
    let request = BuildPrune {
        before: filter(&body.filters.until, &[], &[])?.before,
        keep_bytes: body.keep_bytes,
    };
    let pruned = m.disk.prune_build_cache(request, body.dry_run).await?;
    Ok(success(message(body.dry_run), PrunedView::new(pruned, body.dry_run)))
}

/// Remove stopped containers, images that nothing uses, and build cache
#[utoipa::path(post, path = "/v1/system/prune", tag = "system", request_body = PruneImagesBody,
    responses((status = 200, body = SuccessBody<SystemPrunedView>), (status = 400, body = Failure)))]
pub async fn system(
    State(m): State<Management>,
    OptionalJson(body): OptionalJson<PruneImagesBody>,
) -> Result<Success<SuccessBody<SystemPrunedView>>, ApiError> {
    let dry_run = body.dry_run;
    let pruned = m.disk.prune(body.parse()?, dry_run).await?;
    let [containers, images, build_cache] =
        [pruned.containers, pruned.images, pruned.build_cache].map(|kind| PrunedView::new(kind, dry_run));
    let view = SystemPrunedView {
        dry_run,
        bytes_freed: containers.bytes_freed + images.bytes_freed + build_cache.bytes_freed,
        containers,
        images,
        build_cache,
    };
    Ok(success(message(dry_run), view))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn images(body: &str) -> Result<ImagePrune, String> {
        let body: PruneImagesBody = serde_json::from_str(body).map_err(|e| e.to_string())?;
        body.parse().map_err(|e| e.message)
    }

    #[rstest]
    #[case("{}", false)]
    #[case(r#"{"all":true}"#, true)]
    #[case(r#"{"filters":{"dangling":true}}"#, false)]
    #[case(r#"{"filters":{"dangling":false}}"#, true)]
    #[case(r#"{"filters":{"unused":true}}"#, true)]
    #[case(r#"{"all":true,"filters":{"unused":true,"dangling":false}}"#, true)]
    fn which_images_are_meant(#[case] body: &str, #[case] tagged: bool) {
        assert_eq!(images(body).unwrap().tagged, tagged);
    }

    #[rstest]
    #[case(r#"{"all":true,"filters":{"dangling":true}}"#, "contradict")]
    #[case(r#"{"filters":{"unused":true,"dangling":true}}"#, "contradict")]
    #[case(r#"{"filters":{"until":"yesterday"}}"#, "invalid until: \"yesterday\" is neither")]
    #[case(r#"{"filters":{"label":["a",""]}}"#, "invalid label: \"\" is neither")]
    #[case(r#"{"filters":{"label!":["=b"]}}"#, "invalid label!: \"=b\" is neither")]
    #[case(r#"{"filters":{"color":"red"}}"#, "unknown field `color`")]
    #[case(r#"{"force":true}"#, "unknown field `force`")]
    fn wrong_filters_are_named(#[case] body: &str, #[case] why: &str) {
        let said = images(body).unwrap_err();
        assert!(said.contains(why), "{said}");
    }

    #[test]
    fn a_filter_has_an_age_and_labels() {
        let found = images(r#"{"filters":{"until":"24h","label":["a=b"],"label!":["keep"]}}"#).unwrap();
        let day_ago = Timestamp::now() - jiff::SignedDuration::from_hours(24);
        assert!(found.filter.before.unwrap() <= day_ago);
        assert_eq!((found.filter.labels.len(), found.filter.without_labels.len()), (1, 1));
        let exact = images(r#"{"filters":{"until":"2026-02-07T11:00:00Z"}}"#).unwrap();
        assert_eq!(exact.filter.before, Some("2026-02-07T11:00:00Z".parse().unwrap()));
    }
}
