//! `RUN`: a container on the layers so far.

use std::path::PathBuf;

use super::file::{Run, RunCommand, RunNetwork, RunSecurity};
use super::mounts::{Mounted, Wanted};
use super::stage::{At, Stage};
use super::{Build, BuildError};
use crate::image::{Change, ImageError, Layers, User, remove_stubs};
use crate::ops::task;
use crate::workload::container::{BuildStep, StepEnd, StepNetwork};

/// What a command is, apart from its mounts.
struct Command {
    args: Vec<String>,
    /// A program that the build file holds; it is mounted.
    script: Option<String>,
    env: Vec<String>,
    /// In its environment, but not in the key.
    predefined: Vec<String>,
    cwd: String,
    user: User,
    network: StepNetwork,
}

impl Stage<'_> {
    pub(super) async fn run(&mut self, at: At<'_>, run: Run) -> Result<(), BuildError> {
        if self.draft.layers().is_empty() {
            return Err(BuildError::NothingToRun);
        }
        let command = self.command(&run).await?;
        let wanted = self.wanted(&run.mounts, &command.cwd).await?;
        let mut key = self.key("run");
        key.all(&command.args);
        key.add(command.script.as_deref().unwrap_or_default());
        key.all(&command.env);
        key.add(&command.cwd);
        let user = &command.user;
        let ids = [user.uid, user.gid]
            .into_iter()
            .chain(user.additional_gids.iter().copied());
        key.all(ids.map(u32::to_le_bytes));
        key.add([u8::from(matches!(command.network, StepNetwork::None))]);
        let key = wanted.hash(key).await?;
        let place = match at.step.line {
            // Of a base image.
            0 => at.step.file.clone(),
            line => format!("{}:{line}", at.step.file),
        };
        let layers = self.draft.layers().clone();
        let make = self.build.execute(layers, command, wanted, at.number, place);
        self.change(at, key, make).await
    }

    async fn command(&self, run: &Run) -> Result<Command, BuildError> {
        if run.security == RunSecurity::Insecure {
            let message = "--security=insecure is not supported: commands of a build are as confined as containers";
            return Err(BuildError::Refused(message.to_owned()));
        }
        let network = match run.network {
            RunNetwork::Default => StepNetwork::Named(self.build.request.network.clone()),
            RunNetwork::None => StepNetwork::None,
            RunNetwork::Host => {
                let message = "--network=host is not supported: a command has the network of the build, or none";
                return Err(BuildError::Refused(message.to_owned()));
            }
        };
        let (args, script) = match &run.command {
            RunCommand::Command(command) => (self.settings.arguments(command), None),
            RunCommand::Script(heredoc) => (Vec::new(), Some(heredoc.content.clone())),
        };
        if script.is_none() && args.first().is_none_or(String::is_empty) {
            return Err(BuildError::Refused("the command is empty".to_owned()));
        }
        let mut env = self.settings.env();
        let (declared, predefined) = self.scope.environment(&self.build.plan.globals, &env);
        env.extend(declared);
        let images = &self.build.service.0.images;
        let user = images
            .resolve_user(&self.draft.layers().diff_ids(), &self.settings.user())
            .await?;
        Ok(Command {
            args,
            script,
            env,
            predefined,
            cwd: self.settings.working_dir(),
            user,
            network,
        })
    }
}

impl Build {
    /// Runs a command and makes a layer of what it changes.
    async fn execute(
        &self,
        layers: Layers,
        command: Command,
        wanted: Wanted,
        number: u32,
        place: String,
    ) -> Result<Change, BuildError> {
        let service = &self.service.0;
        let mut mounted = wanted.mount(self, &command.user).await?;
        let args = match command.script {
            Some(script) => vec![mounted.add_script(&script)?],
            None => command.args,
        };
        let missing = layers.missing(mounted.places()).await?;
        let mut additional_gids = vec![command.user.gid];
        additional_gids.extend(
            command
                .user
                .additional_gids
                .iter()
                .filter(|gid| **gid != command.user.gid),
        );
        let mut env = command.env;
        env.extend(command.predefined);
        let step = BuildStep {
            layers: layers.diff_ids(),
            args: mounted.wrapped(args),
            env,
            cwd: command.cwd,
            user: User {
                additional_gids,
                ..command.user
            },
            network: command.network,
            mounts: std::mem::take(&mut mounted.binds),
            tmpfs: std::mem::take(&mut mounted.tmpfs),
            time_limit: service.settings.step_time,
            cancelled: self.cancelled.clone(),
            reporter: self.reporter.clone(),
            number,
        };
        let save = move |upper: PathBuf| async move {
            let stubs = upper.clone();
            task::blocking(move || Ok::<_, ImageError>(remove_stubs(&stubs, &missing)?)).await?;
            layers.pack(upper).await
        };
        let ended = service.containers.run_build_step(step, save).await;
        mounted.end(self).await;
        match ended? {
            StepEnd::Done(change) => Ok(change),
            StepEnd::Failed { exit, output } => Err(BuildError::Run { exit, place, output }),
            StepEnd::TimedOut => Err(BuildError::RunTime(service.settings.step_time.as_secs())),
            StepEnd::Cancelled => Err(BuildError::Cancelled),
        }
    }
}

impl Mounted {
    /// Mounts a program of the build file. Returns its path.
    fn add_script(&mut self, text: &str) -> Result<String, BuildError> {
        const SCRIPT: &str = "/.build-script";
        let path = self.file(text.as_bytes(), 0o755)?;
        self.bind(path, SCRIPT.into(), true)?;
        Ok(SCRIPT.to_owned())
    }
}
