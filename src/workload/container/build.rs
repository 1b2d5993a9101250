//! A build step: a container that runs one command on the layers of an unfinished image and is then removed.
//!
//! ```text
//! row (build-<12>, raind/build) -> bundle -> create -> start -> end | time-out | cancelled -> harvest -> removed
//! ```
//! It is a container like others, with its own address, rules and certificate, and is listed while it runs. The step is
//! one operation, which continues when its caller is dropped. After a crash, recovery removes all remains of a step
//! ([`recover`](super::recover)), because its build is gone too.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{ContainerError, ContainerService, LogRequest, request};
use crate::image::{ImageError, User};
use crate::model::{
    Attachment, Container, ContainerImage, ContainerOptions, ContainerSpec, Exit, Inherited, Network, ProcessSpec,
    Role, container_names,
};
use crate::net::bridges::ipam;
use crate::observe::metrics::Verb;
use crate::ops::progress::{ProgressEvent, Reporter};
use crate::runtime::StopRequest;

/// Repository that build containers are listed with. Clients expect a `/` in it.
const REPOSITORY: &str = "raind/build";
/// Tag that build containers are listed with.
const REFERENCE: &str = "latest";
/// How much of a failed step's output is reported, in bytes.
pub const OUTPUT_TAIL: usize = 4096;
/// How long the last output of a command is waited for.
const LAST_OUTPUT: Duration = Duration::from_secs(5);

/// A command to run on layers.
#[derive(Debug, Clone)]
pub struct BuildStep {
    /// Diff ids of the layers, bottom first. The caller protects them from the sweep.
    pub layers: Vec<String>,
    /// Argument vector.
    pub args: Vec<String>,
    /// `KEY=VALUE` entries; presets are added.
    pub env: Vec<String>,
    /// Working directory; created if absent.
    pub cwd: String,
    /// Who it runs as, with all of its groups.
    pub user: User,
    /// Its network.
    pub network: StepNetwork,
    /// What is mounted, in this order. The caller keeps the sources until the command has ended.
    pub mounts: Vec<StepMount>,
    /// tmpfs mounts: `destination[:options]`.
    pub tmpfs: Vec<String>,
    /// How long the command may take.
    pub time_limit: Duration,
    /// Cancels the command.
    pub cancelled: CancellationToken,
    /// Gets its output.
    pub reporter: Reporter,
    /// Its number in the build.
    pub number: u32,
}

/// The network of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepNetwork {
    /// That of this name; empty for the default one.
    Named(String),
    /// Loopback only.
    None,
}

/// Something that a command finds at a place. Its source is a path that the daemon itself has chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepMount {
    /// Absolute path on the host, without links.
    pub source: PathBuf,
    /// Absolute path in the container, without a colon.
    pub target: PathBuf,
    /// Whether the command may not write to it.
    pub read_only: bool,
}

/// How a step ended.
#[derive(Debug)]
pub enum StepEnd<T> {
    /// The command succeeded; holds the result of the harvest.
    Done(T),
    /// The command failed.
    Failed {
        /// Status and reason.
        exit: Exit,
        /// The last [`OUTPUT_TAIL`] bytes of its output.
        output: String,
    },
    /// The command took too long.
    TimedOut,
    /// The token was cancelled.
    Cancelled,
}

/// Why the wait for a command is over.
enum Waited {
    Ended,
    TimedOut,
    Cancelled,
}

impl ContainerService {
    /// Checks whether a build step can run in that network; an empty name is the default one.
    pub fn check_build_network(&self, name: &str) -> Result<(), ContainerError> {
        let network = self.network_or_default(name);
        match self.snapshot().networks().get(&network) {
            Some(_) => Ok(()),
            None => Err(ContainerError::NetworkNotFound(network)),
        }
    }

    /// Runs a command on layers. After success, `harvest` gets the upper directory of the overlay, which holds the
    /// command's changes. The container is removed completely after the harvest, and on every other path.
    pub async fn run_build_step<T, H>(
        &self,
        step: BuildStep,
        harvest: impl FnOnce(PathBuf) -> H + Send + 'static,
    ) -> Result<StepEnd<T>, ContainerError>
    where
        T: Send + 'static,
        H: Future<Output = Result<T, ImageError>> + Send + 'static,
    {
        let service = self.clone();
        self.detached(Verb::ImageBuildStep, async move {
            let id = format!("build-{}", container_names::fresh_id(&service.snapshot(), Timestamp::now()));
            let ended = service.run_step(&id, step, harvest).await;
            let _lock = service.0.locks.lock(&id).await;
            let removed = service.remove_build(&id).await;
            if let Err(error) = &removed {
                tracing::error!(container.id = %id, %error, "a build container could not be removed; it is tried again");
            }
            ended
        })
        .await
    }

    async fn run_step<T, H: Future<Output = Result<T, ImageError>>>(
        &self,
        id: &str,
        step: BuildStep,
        harvest: impl FnOnce(PathBuf) -> H,
    ) -> Result<StepEnd<T>, ContainerError> {
        let (time_limit, cancelled) = (step.time_limit, step.cancelled.clone());
        let output = (step.reporter.clone(), step.number);
        {
            let _lock = self.0.locks.lock(id).await;
            let container = self.reserve_build(id.to_owned(), step).await?;
            tracing::info!(container.id = %id, "creating build container");
            self.set_up(&container).await?;
            if let Err(error) = self.release(id).await {
                // If the program is missing or not executable, the build file is wrong.
                return match self.find(id)?.status.exit.clone().filter(|exit| exit.code > 0) {
                    Some(exit) => Ok(StepEnd::Failed {
                        exit,
                        output: error.to_string(),
                    }),
                    None => Err(error),
                };
            }
        }
        match self.wait_for_step(id, time_limit, &cancelled, output).await {
            Waited::Ended => {}
            Waited::TimedOut => return Ok(StepEnd::TimedOut),
            Waited::Cancelled => return Ok(StepEnd::Cancelled),
        }
        let _lock = self.0.locks.lock(id).await;
        let container = self.find(id)?;
        let exit = container
            .status
            .exit
            .clone()
            .unwrap_or_else(super::transitions::unseen_exit);
        if exit.code != 0 {
            let output = self.output_tail(id).await?;
            return Ok(StepEnd::Failed { exit, output });
        }
        Ok(StepEnd::Done(harvest(self.dir(id).diff()).await?))
    }

    async fn reserve_build(&self, id: String, step: BuildStep) -> Result<Container, ContainerError> {
        let name = match &step.network {
            StepNetwork::Named(name) => Some(self.network_or_default(name)),
            StepNetwork::None => None,
        };
        let reserve = self.0.services.store.transact(move |t| {
            let attach = |name: String| {
                let network = t.get::<Network>(&name).ok_or(ContainerError::NetworkNotFound(name))?;
                let address =
                    ipam::lowest_free(t.snapshot(), &network).ok_or(ContainerError::SubnetFull(network.subnet))?;
                Ok::<_, ContainerError>(Attachment {
                    network: network.name.clone(),
                    address,
                })
            };
            let attachment = name.map(attach).transpose()?;
            let row = t.put(build_row(id, step, attachment));
            row.map_err(|taken| ContainerError::taken(taken, t.snapshot()))
        });
        reserve.await.map(|row| Container::clone(&row))
    }

    async fn wait_for_step(
        &self,
        id: &str,
        limit: Duration,
        cancelled: &CancellationToken,
        (reporter, number): (Reporter, u32),
    ) -> Waited {
        let reading = reporter.is_heard().then(|| {
            let (service, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move { service.report_output(&id, &reporter, number).await })
        });
        let waited = tokio::select! {
            () = self.clone().run_ended(id.to_owned()) => Waited::Ended,
            () = cancelled.cancelled() => Waited::Cancelled,
            () = tokio::time::sleep(limit) => Waited::TimedOut,
        };
        if let Some(reading) = reading {
            let abort = reading.abort_handle();
            // What the command has written last is still on its way. A client that does not read it loses it.
            if !matches!(waited, Waited::Ended) || tokio::time::timeout(LAST_OUTPUT, reading).await.is_err() {
                abort.abort();
            }
        }
        waited
    }

    /// Reports the output of a command until it ends.
    async fn report_output(&self, id: &str, reporter: &Reporter, number: u32) {
        let request = LogRequest {
            follow: true,
            ..LogRequest::default()
        };
        let Ok(pieces) = self.log(id, request).await else {
            return;
        };
        pin_mut!(pieces);
        while let Some(Ok(piece)) = pieces.next().await {
            let output = ProgressEvent::Output {
                step: number,
                bytes: piece.to_vec(),
            };
            reporter.report(output).await;
        }
    }

    async fn output_tail(&self, id: &str) -> Result<String, ContainerError> {
        let request = LogRequest {
            lines: Some(super::MAX_LINES as i64),
            ..LogRequest::default()
        };
        let pieces = self.log(id, request).await?;
        pin_mut!(pieces);
        let mut tail = Vec::new();
        while let Some(piece) = pieces.next().await {
            tail.extend_from_slice(&piece?);
            tail.drain(..tail.len().saturating_sub(OUTPUT_TAIL));
        }
        Ok(String::from_utf8_lossy(&tail).into_owned())
    }

    /// Ends and removes a build container, in whatever state it is. The caller holds its lock.
    pub(super) async fn remove_build(&self, id: &str) -> Result<(), ContainerError> {
        let Ok(container) = self.find(id) else { return Ok(()) };
        let state = self.runtime_state(id).await;
        // The row may be outdated: the daemon may have crashed before it recorded the runtime's answer.
        if state.is_some_and(|state| state.status == crate::runtime::state::Status::Running)
            && let Err(error) = self.0.services.runtime.stop(id, &StopRequest::default()).await
        {
            tracing::warn!(container.id = %id, %error, "a build command could not be stopped");
        }
        self.settle_exit(id).await;
        let container = self.find(id).unwrap_or(container);
        self.dismantle(&container).await
    }

    fn network_or_default(&self, name: &str) -> String {
        match name {
            "" => self.0.settings.default_network.clone(),
            name => name.to_owned(),
        }
    }
}

fn build_row(id: String, step: BuildStep, attachment: Option<Attachment>) -> Container {
    let (env, _) = request::environment(&step.env, &[], false);
    let mounts = step.mounts.iter().map(|mount| {
        let option = if mount.read_only { ":ro" } else { "" };
        format!("{}:{}{option}", mount.source.display(), mount.target.display())
    });
    let mounts = mounts.collect();
    let spec = ContainerSpec {
        image: ContainerImage {
            repository: REPOSITORY.to_owned(),
            reference: REFERENCE.to_owned(),
            layers: step.layers,
        },
        process: ProcessSpec {
            args: step.args,
            env,
            cwd: step.cwd,
            uid: step.user.uid,
            gid: step.user.gid,
            additional_gids: step.user.additional_gids,
        },
        tty: false,
        options: ContainerOptions {
            tmpfs: step.tmpfs,
            ..ContainerOptions::default()
        },
        mounts,
        forwards: Vec::new(),
        inherited: Inherited::default(),
    };
    let mut row = Container::new(id.clone(), id, Role::Build, spec).being_created(Timestamp::now());
    row.status.attachment = attachment;
    row
}
