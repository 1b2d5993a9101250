//! Builds images from a build file and a context (`docs/spec/api.md` 7.4).
//!
//! ```text
//! receive context -> read build file -> base image -> steps in order -> commit
//! ```
//! Consecutive `COPY`, `ADD` and `WORKDIR` lines make one layer, every `RUN` makes one; a `RUN` sees the result of
//! the lines before it. Nothing is cached between builds.
//!
//! A build runs in its own task. If its caller goes away it is cancelled, which takes effect between two steps,
//! during a pull and during a `RUN`. Nothing is visible in the image store before the commit; the context, layers and
//! containers of a build are removed when it ends, and after a crash at the next start.
//!
//! This module never follows a link of the context or of an image to a file of the host, and never runs a command
//! outside of a container.

mod context;
mod dripfile;
mod error;
#[allow(dead_code, unused_imports, reason = "builds move over to it")]
mod file;
mod files;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use rustix::io::Errno;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::base::cause::Cause;
use crate::image::{Draft, ImageError, ImageRef, ImageService, Platform, Scratch};
use crate::model::{Image, ImageRunConfig};
use crate::observe::metrics::{Activity, Verb};
use crate::ops::task::{blocking, detached};
use crate::workload::container::{BuildStep, ContainerService, StepEnd};

use self::context::{ChannelReader, ContextError, ContextLimits};
use self::dripfile::{Dripfile, Instruction, joined, within};
use self::files::FileStep;

pub use self::error::BuildError;

/// `FROM` of an image without a base.
const SCRATCH: &str = "scratch";
/// Number of attempts if a base image disappears between pull and use.
const ENSURE_TRIES: usize = 3;
/// How many chunks of a context are buffered between network and unpacking.
const PIECES: usize = 16;
/// Idle timeout of a client that sends a context.
const IDLE: Duration = Duration::from_secs(60);

/// Limits of builds.
#[derive(Debug, Clone)]
pub struct BuildSettings {
    /// Maximum size of a context, in bytes of the archive.
    pub max_context_bytes: u64,
    /// Maximum number of entries of a context.
    pub max_context_entries: u64,
    /// Timeout of one `RUN`.
    pub step_time: Duration,
}

/// A build request.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Name of the new image.
    pub tag: String,
    /// Path of the build file in the context.
    pub dripfile: String,
    /// Network of `RUN` commands; empty for the default network.
    pub network: String,
}

/// The build service. Clones share everything.
#[derive(Clone)]
pub struct BuildService {
    settings: BuildSettings,
    images: ImageService,
    containers: ContainerService,
    activity: Activity,
}

/// A context as it arrives.
type Upload = BoxStream<'static, io::Result<Bytes>>;

impl BuildService {
    /// A service on top of these services.
    pub fn new(
        settings: BuildSettings,
        images: ImageService,
        containers: ContainerService,
        activity: Activity,
    ) -> Self {
        Self {
            settings,
            images,
            containers,
            activity,
        }
    }

    /// Builds an image and names it `tag`, replacing an image with that name. `upload` is the context, an
    /// uncompressed tar. Returns the canonical string of the new image. Ends early if `stop` is cancelled or this
    /// future is dropped.
    pub async fn build(
        &self,
        request: BuildRequest,
        upload: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        stop: &CancellationToken,
    ) -> Result<String, BuildError> {
        let cancelled = stop.child_token();
        let _guard = cancelled.clone().drop_guard();
        let (service, mut upload) = (self.clone(), upload.boxed());
        let built = detached(async move {
            let build = service.run(&request, &mut upload, cancelled);
            let built = service.activity.observe(Verb::ImageBuild, build).await;
            match &built {
                Ok(image) => tracing::info!(image = %image.id, digest = image.manifest_digest, "image built"),
                Err(error) => tracing::warn!(image = %request.tag, %error, "build failed"),
            }
            // Layers of a failed build, or those that only the replaced image used.
            if let Err(error) = service.images.sweep().await {
                tracing::warn!(%error, "cannot sweep unused layers; retrying later");
            }
            if built.is_err() {
                discard(upload, service.settings.max_context_bytes).await;
            }
            built
        });
        built.await.map(|image| image.id.clone())
    }

    async fn run(
        &self,
        request: &BuildRequest,
        upload: &mut Upload,
        cancelled: CancellationToken,
    ) -> Result<Arc<Image>, BuildError> {
        if request.tag.is_empty() {
            return Err(BuildError::NoTag);
        }
        let target = ImageRef::parse(&request.tag)?;
        if target.reference().contains(':') {
            return Err(BuildError::DigestTag(request.tag.clone()));
        }
        let path = within(&request.dripfile).filter(|path| !path.is_empty());
        let path = path.ok_or(BuildError::DripfilePath)?;
        self.containers.check_build_network(&request.network)?;
        let context = tokio::select! {
            received = self.receive(upload) => Arc::new(received?),
            () = cancelled.cancelled() => return Err(BuildError::Cancelled),
        };
        let file = {
            let context = context.clone();
            blocking(move || read_dripfile(context.path(), &path)).await?
        };
        let (draft, run) = tokio::select! {
            begun = self.begin(&file) => begun?,
            () = cancelled.cancelled() => return Err(BuildError::Cancelled),
        };
        let progress = Progress {
            draft: Arc::new(Mutex::new(draft)),
            run,
            pending: Vec::new(),
            context,
        };
        let (draft, run) = self.follow(progress, file, &request.network, &cancelled).await?;
        Ok(draft.commit(&target, run).await?)
    }

    /// Receives the context and unpacks it.
    async fn receive(&self, upload: &mut Upload) -> Result<Scratch, BuildError> {
        let scratch = self.images.scratch().await?;
        let limits = ContextLimits {
            bytes: self.settings.max_context_bytes,
            entries: self.settings.max_context_entries,
        };
        let (sender, receiver) = mpsc::channel(PIECES);
        let unpacking = tokio::task::spawn_blocking(move || {
            context::unpack(ChannelReader::new(receiver), scratch.path(), limits).map(|()| scratch)
        });
        loop {
            let piece = match tokio::time::timeout(IDLE, upload.next()).await {
                Ok(None) => break,
                Ok(Some(piece)) => piece,
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no data for {} s", IDLE.as_secs()),
                )),
            };
            let broken = piece.is_err();
            // The unpacker has ended: it has seen the end of the archive, or refuses the rest.
            if sender.send(piece).await.is_err() || broken {
                break;
            }
        }
        drop(sender);
        let unpacked = unpacking.await.map_err(BuildError::unfinished("unpacking ended"))?;
        Ok(unpacked?)
    }

    /// The base image as a draft, and its run configuration.
    async fn begin(&self, file: &Dripfile) -> Result<(Draft, ImageRunConfig), BuildError> {
        if file.base == SCRATCH {
            return Ok((self.images.draft(None).await?, ImageRunConfig::default()));
        }
        let reference = ImageRef::parse(&file.base)?;
        let mut tries = ENSURE_TRIES;
        loop {
            tries -= 1;
            let base = self.images.ensure(&reference, &Platform::host()).await?;
            match self.images.draft(Some(&base)).await {
                Ok(draft) => return Ok((draft, base.config.clone())),
                // It was removed or replaced just now.
                Err(ImageError::NotFound(_)) if tries > 0 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn follow(
        &self,
        mut progress: Progress,
        file: Dripfile,
        network: &str,
        cancelled: &CancellationToken,
    ) -> Result<(Draft, ImageRunConfig), BuildError> {
        if progress.run.working_dir.is_empty() {
            progress.run.working_dir = "/".into();
        }
        for step in file.steps {
            if cancelled.is_cancelled() {
                return Err(BuildError::Cancelled);
            }
            let run = &mut progress.run;
            match step.instruction {
                Instruction::Workdir(path) => {
                    run.working_dir = joined(&run.working_dir, &path);
                    let directory = FileStep::Directory(run.working_dir.clone());
                    progress.pending.push((directory, step.text));
                    continue;
                }
                Instruction::Copy { source, destination } => {
                    let copy = FileStep::Copy {
                        source,
                        into: destination.ends_with('/') || destination.ends_with("/.") || destination == ".",
                        destination: joined(&run.working_dir, &destination),
                    };
                    progress.pending.push((copy, step.text));
                    continue;
                }
                Instruction::Run(args) => {
                    progress.write_files().await?;
                    self.run_command(&progress, args, step.text, network, cancelled).await?;
                    continue;
                }
                Instruction::Env(pairs) => pairs
                    .into_iter()
                    .for_each(|(key, value)| set(&mut run.env, &key, &value)),
                Instruction::Cmd(args) => run.cmd = args,
                Instruction::Entrypoint(args) => run.entrypoint = args,
            }
            progress.draft.lock().await.note(step.text);
        }
        progress.write_files().await?;
        let draft = Arc::into_inner(progress.draft).map(Mutex::into_inner);
        // Only a step holds another handle, and none runs.
        let draft = draft.ok_or_else(|| BuildError::Io(Cause::new("a step of the build still runs")))?;
        Ok((draft, progress.run))
    }

    async fn run_command(
        &self,
        progress: &Progress,
        args: Vec<String>,
        text: String,
        network: &str,
        cancelled: &CancellationToken,
    ) -> Result<(), BuildError> {
        let layers = progress.draft.lock().await.layers();
        if layers.is_empty() {
            return Err(BuildError::NothingToRun);
        }
        let step = BuildStep {
            layers,
            args,
            env: progress.run.env.clone(),
            cwd: progress.run.working_dir.clone(),
            network: network.to_owned(),
            time_limit: self.settings.step_time,
            cancelled: cancelled.clone(),
        };
        let draft = progress.draft.clone();
        let save_layer = move |upper: PathBuf| async move { draft.lock().await.add_layer(text, upper).await };
        match self.containers.run_build_step(step, save_layer).await? {
            StepEnd::Done(()) => Ok(()),
            StepEnd::Failed { exit, output } => Err(BuildError::Run { exit, output }),
            StepEnd::TimedOut => Err(BuildError::RunTime(self.settings.step_time.as_secs())),
            StepEnd::Cancelled => Err(BuildError::Cancelled),
        }
    }
}

/// The state of a build between two steps.
struct Progress {
    /// Shared with the operation that runs a command.
    draft: Arc<Mutex<Draft>>,
    /// The run configuration so far.
    run: ImageRunConfig,
    /// File changes that are not in a layer yet, with their lines.
    pending: Vec<(FileStep, String)>,
    context: Arc<Scratch>,
}

impl Progress {
    /// Makes one layer of the pending changes.
    async fn write_files(&mut self) -> Result<(), BuildError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (steps, lines): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().unzip();
        let context = self.context.clone();
        let work = move |root: &Path| files::apply(context.path(), root, &steps);
        self.draft.lock().await.edit(lines.join("; "), work).await
    }
}

/// Sets a variable in `KEY=VALUE` entries, replacing an earlier one in its position.
fn set(env: &mut Vec<String>, key: &str, value: &str) {
    let entry = format!("{key}={value}");
    match env
        .iter_mut()
        .find(|old| old.split_once('=').is_some_and(|(old, _)| old == key))
    {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

fn read_dripfile(context: &Path, path: &str) -> Result<Dripfile, BuildError> {
    let missing = || BuildError::NoDripfile(path.to_owned());
    let failed = |source: io::Error| BuildError::Read {
        path: path.to_owned(),
        source,
    };
    let file = context::open(context, path).map_err(|e| match e {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => missing(),
        e => failed(e.into()),
    })?;
    let file = File::from(file);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(missing());
    }
    let mut text = Vec::new();
    file.take(dripfile::MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > dripfile::MAX_BYTES {
        let (path, limit) = (path.to_owned(), dripfile::MAX_BYTES);
        return Err(BuildError::LongDripfile { path, limit });
    }
    Ok(dripfile::parse(&text)?)
}

/// Reads the rest of a client's upload, at most `left` bytes: most clients read the answer only after they have sent
/// everything.
async fn discard(mut upload: Upload, mut left: u64) {
    while let Ok(Some(Ok(piece))) = tokio::time::timeout(IDLE, upload.next()).await {
        match left.checked_sub(piece.len() as u64) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

impl BuildError {
    /// Whether the context is too large.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Context(ContextError::TooLarge(_)))
    }

    /// Whether the failure is not the client's fault.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Context(ContextError::System(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_keeps_its_place() {
        let mut env = vec!["A=1".to_owned(), "B=2".to_owned()];
        set(&mut env, "A", "x=y");
        set(&mut env, "C", "");
        assert_eq!(env, ["A=x=y", "B=2", "C="]);
    }

    #[test]
    fn a_build_file_is_a_file_of_the_context() {
        let context = tempfile::tempdir().unwrap();
        let read = |path: &str| read_dripfile(context.path(), path).map_err(|e| e.to_string());
        assert!(
            read("Dripfile")
                .unwrap_err()
                .starts_with("Dripfile: no such build file")
        );
        std::os::unix::fs::symlink("/etc/passwd", context.path().join("link")).unwrap();
        assert!(read("link").unwrap_err().starts_with("link: no such build file"));
        std::fs::create_dir(context.path().join("dir")).unwrap();
        assert!(read("dir").unwrap_err().starts_with("dir: no such build file"));
        std::fs::write(context.path().join("Dripfile"), "FROM scratch").unwrap();
        assert_eq!(read("Dripfile").unwrap().base, "scratch");
        std::fs::write(context.path().join("long"), vec![b'#'; (1 << 20) + 1]).unwrap();
        assert!(read("long").unwrap_err().contains("longer than"));
    }
}
