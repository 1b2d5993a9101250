//! Builds images from a build file and a context (`docs/spec/api.md` 7.4).
//!
//! ```text
//! receive context -> read build file -> plan -> stages side by side, each: base -> steps in order -> commit
//! ```
//! [`file`] is the language; [`plan`] says which stages are needed; [`stage`] builds one, with [`vars`] and [`settings`] as
//! its state; [`copy`], [`run`] and [`files`] carry out what changes files; [`cache`] keeps the results.
//!
//! A build runs in its own task. If its caller goes away it is cancelled, which takes effect between two steps, during a
//! pull, a download, a copy and a `RUN`. Nothing is visible in the image store before the commit; the context and the
//! containers of a build are removed when it ends, and after a crash at the next start. What is left is the cache.
//!
//! This module never follows a link of the context or of an image to a file of the host, and never runs a command
//! outside of a container.

mod cache;
mod context;
mod copy;
mod error;
mod file;
mod files;
mod mode;
mod mounts;
mod plan;
mod receive;
mod run;
mod secrets;
mod settings;
mod stage;
mod vars;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::image::{Draft, ImageRef, ImageService, Platform, Scratch};
use crate::model::Image;
use crate::observe::metrics::{Activity, Verb};
use crate::ops::lock::KeyedLocks;
use crate::ops::progress::{ProgressEvent, Reporter};
use crate::ops::task::detached;
use crate::workload::container::ContainerService;

use self::cache::{CacheMounts, Recorder};
use self::plan::{Plan, parse_platform};
use self::stage::Built;

pub use self::cache::{BuildCacheFilter, BuildCacheKind, BuildCacheUsage, PrunedBuildCache};
pub use self::context::ContextError;
pub use self::error::BuildError;
pub use self::secrets::Secrets;

/// Names of the build file if the request has none, in this order.
const BUILD_FILES: [&str; 2] = ["Dripfile", "Dockerfile"];

/// Limits of builds.
#[derive(Debug, Clone)]
pub struct BuildSettings {
    /// Maximum size of a context, in bytes of the archive.
    pub max_context_bytes: u64,
    /// Maximum number of entries of a context.
    pub max_context_entries: u64,
    /// Maximum size of the layers that one build makes, and of a file that it downloads, in bytes.
    pub max_build_bytes: u64,
    /// Timeout of one `RUN`, and of a download.
    pub step_time: Duration,
    /// Size up to which results of steps are kept, in bytes.
    pub cache_bytes: u64,
    /// Size up to which cache mounts are kept, in bytes.
    pub cache_mount_bytes: u64,
    /// Where files with secrets are while a command has them. Best a file system in memory; emptied at the start.
    pub secret_dir: PathBuf,
}

/// A build request.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// Names of the new image, at least one.
    pub tags: Vec<String>,
    /// Path of the build file in the context; empty for `Dripfile`, or `Dockerfile` without one.
    pub dripfile: String,
    /// Network of `RUN` commands; empty for the default network.
    pub network: String,
    /// Values of `ARG`s.
    pub args: BTreeMap<String, String>,
    /// Name or number of the stage to build; empty for the last one.
    pub target: String,
    /// Labels of the image, in addition to those of the build file.
    pub labels: BTreeMap<String, String>,
    /// Whether results of earlier builds are not used.
    pub no_cache: bool,
    /// Whether the registry is asked for images that are present.
    pub pull: bool,
    /// `os/architecture[/variant]`; empty for the host's.
    pub platform: String,
    /// For `RUN --mount=type=secret`.
    pub secrets: Secrets,
}

/// The build service. Clones share everything.
#[derive(Clone)]
pub struct BuildService(Arc<Inner>);

struct Inner {
    settings: BuildSettings,
    images: ImageService,
    containers: ContainerService,
    activity: Activity,
    /// One step is carried out once at a time, and one user of a locked cache mount at a time.
    locks: KeyedLocks,
    mounts: CacheMounts,
}

/// A context as it arrives.
type Upload = BoxStream<'static, io::Result<Bytes>>;

/// A build that is running; shared by its stages.
struct Build {
    service: BuildService,
    request: BuildRequest,
    plan: Plan,
    context: Arc<Scratch>,
    /// For errors: where sources of the context are.
    place: String,
    recorder: Recorder,
    reporter: Reporter,
    cancelled: CancellationToken,
    stages: BTreeMap<usize, watch::Receiver<Option<Arc<Built>>>>,
    /// Images that files are taken from, by their names.
    images: Mutex<HashMap<String, Draft>>,
    /// Steps that work at the same time.
    turns: Semaphore,
}

impl BuildService {
    /// A service on top of these services. Removes secrets that an earlier run left behind.
    pub fn new(
        settings: BuildSettings,
        images: ImageService,
        containers: ContainerService,
        activity: Activity,
    ) -> Self {
        secrets::clear(&settings.secret_dir);
        Self(Arc::new(Inner {
            settings,
            images,
            containers,
            activity,
            locks: KeyedLocks::default(),
            mounts: CacheMounts::default(),
        }))
    }

    /// Builds an image and gives it its names, replacing images with those. `upload` is the context, an uncompressed tar.
    /// Returns the canonical string of the first name. Ends early if `stop` is cancelled or this future is dropped.
    pub async fn build(
        &self,
        request: BuildRequest,
        upload: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        stop: &CancellationToken,
        reporter: Reporter,
    ) -> Result<String, BuildError> {
        let cancelled = stop.child_token();
        let _guard = cancelled.clone().drop_guard();
        let (service, mut upload) = (self.clone(), upload.boxed());
        let built = detached(async move {
            let tag = request.tags.first().cloned().unwrap_or_default();
            let build = Box::pin(service.run(request, &mut upload, cancelled, reporter));
            let built = service.0.activity.observe(Verb::ImageBuild, build).await;
            match &built {
                Ok(image) => tracing::info!(image = %image.id, digest = image.manifest_digest, "image built"),
                Err(error) => tracing::warn!(image = %tag, %error, "build failed"),
            }
            service.bound_cache().await;
            // Layers of a failed build, or those that only the replaced image used.
            if let Err(error) = service.0.images.sweep().await {
                tracing::warn!(%error, "cannot sweep unused layers; retrying later");
            }
            if built.is_err() {
                receive::discard(upload, service.0.settings.max_context_bytes).await;
            }
            built
        });
        built.await.map(|image| image.id.clone())
    }

    async fn run(
        &self,
        request: BuildRequest,
        upload: &mut Upload,
        cancelled: CancellationToken,
        reporter: Reporter,
    ) -> Result<Arc<Image>, BuildError> {
        let targets = targets(&request)?;
        let named = receive::build_file_name(&request.dripfile)?;
        let platform = platform(&request)?;
        self.0.containers.check_build_network(&request.network)?;
        reporter.report(ProgressEvent::Phase("context")).await;
        let (context, file, is_ignoring) = tokio::select! {
            received = self.receive(upload, named) => received?,
            () = cancelled.cancelled() => return Err(BuildError::Cancelled),
        };
        let plan = Plan::of(file, &request.args, &request.target, &platform)?;
        reporter.report(ProgressEvent::Phase("steps")).await;
        let (senders, stages): (Vec<_>, BTreeMap<_, _>) = plan
            .stages
            .keys()
            .map(|index| {
                let (sender, receiver) = watch::channel(None);
                ((*index, sender), (*index, receiver))
            })
            .unzip();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let build = Arc::new(Build {
            service: self.clone(),
            recorder: Recorder::new(self.0.images.clone(), !request.no_cache),
            request,
            plan,
            context: Arc::new(context),
            place: receive::place(is_ignoring),
            reporter,
            cancelled,
            stages,
            images: Mutex::default(),
            turns: Semaphore::new(cores.max(2)),
        });
        let built = build.clone().stages(senders).await;
        let finished = build.finish(built, &targets).await;
        drop_elsewhere(build).await;
        finished
    }
}

/// Drops what deletes many files, off the executor.
async fn drop_elsewhere<T: Send + 'static>(value: T) {
    // A panic of it is logged like any other.
    let dropped = tokio::task::spawn_blocking(move || drop(value)).await;
    dropped.unwrap_or_default();
}

impl Build {
    /// Builds all stages of the plan. Returns the one that is the image.
    async fn stages(
        self: Arc<Self>,
        senders: Vec<(usize, watch::Sender<Option<Arc<Built>>>)>,
    ) -> Result<Arc<Built>, BuildError> {
        let mut tasks = JoinSet::new();
        for (index, sender) in senders {
            let build = self.clone();
            tasks.spawn(Box::pin(async move {
                let built = stage::build(&build, index).await?;
                sender.send_replace(Some(built));
                Ok(())
            }));
        }
        let mut failed: Option<BuildError> = None;
        while let Some(ended) = tasks.join_next().await {
            let error = match ended {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(error) => BuildError::unfinished("a stage ended")(error),
            };
            // The other stages end as a consequence, and say only that.
            self.cancelled.cancel();
            if failed
                .as_ref()
                .is_none_or(|first| matches!(first, BuildError::Cancelled))
            {
                failed = Some(error);
            }
        }
        match failed {
            Some(error) => Err(error),
            None => self.stage(self.plan.target).await,
        }
    }

    /// A stage, once it is built.
    async fn stage(&self, index: usize) -> Result<Arc<Built>, BuildError> {
        let Some(mut receiver) = self.stages.get(&index).cloned() else {
            let message = "a trigger of the base image takes files from a stage that nothing else needs".to_owned();
            return Err(BuildError::Refused(message));
        };
        tokio::select! {
            built = receiver.wait_for(Option::is_some) => built.ok().and_then(|built| built.clone()),
            () = self.cancelled.cancelled() => None,
        }
        .ok_or(BuildError::Cancelled)
    }

    /// Commits the image, or at least keeps what its steps have made.
    async fn finish(
        &self,
        built: Result<Arc<Built>, BuildError>,
        targets: &[ImageRef],
    ) -> Result<Arc<Image>, BuildError> {
        let images = &self.service.0.images;
        // The layers of the entries are there as long as this is.
        let (mut changes, _layers) = self.recorder.take();
        if self.service.0.settings.cache_bytes == 0 {
            changes.made.clear();
        }
        let built = match built {
            Ok(built) if self.cancelled.is_cancelled() => {
                drop(built);
                Err(BuildError::Cancelled)
            }
            built => built,
        };
        let built = match built {
            Ok(built) => built,
            Err(error) => {
                if let Err(error) = images.record_cache(changes).await {
                    tracing::warn!(%error, "what a failed build has made cannot be kept");
                }
                return Err(error);
            }
        };
        self.reporter.report(ProgressEvent::Phase("committing")).await;
        let mut settings = built.settings.clone();
        for (key, value) in &self.request.labels {
            settings.add_label(key, value);
        }
        let (config, author) = settings.into_config();
        let rows = built.draft.clone().commit_as(targets, config, author, changes).await?;
        rows.into_iter().next().ok_or(BuildError::NoTag)
    }
}

/// The names of the new image.
fn targets(request: &BuildRequest) -> Result<Vec<ImageRef>, BuildError> {
    let tags = request.tags.iter().filter(|tag| !tag.is_empty());
    let mut targets = Vec::new();
    for tag in tags {
        let target = ImageRef::parse(tag)?;
        if target.reference().contains(':') {
            return Err(BuildError::DigestTag(tag.clone()));
        }
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    if targets.is_empty() {
        return Err(BuildError::NoTag);
    }
    Ok(targets)
}

/// The platform to build for, which must be one that this host runs.
fn platform(request: &BuildRequest) -> Result<Platform, BuildError> {
    let host = Platform::host();
    if request.platform.is_empty() {
        return Ok(host);
    }
    let wanted = parse_platform(&request.platform)?;
    match host.accepts(&wanted.os, &wanted.architecture) {
        true => Ok(wanted),
        false => Err(BuildError::OtherPlatform(request.platform.clone())),
    }
}
