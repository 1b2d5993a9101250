//! Builds one stage: its base, then its steps in order.

use std::sync::Arc;

use super::cache::Key;
use super::file::{self, Arg, Instruction, Step};
use super::files;
use super::plan::Base;
use super::settings::Settings;
use super::vars::Scope;
use super::{Build, BuildError};
use crate::image::{Change, Draft, ImageError, ImageRef, Platform};
use crate::ops::progress::{ProgressEvent, StepProgress, StepState};

/// Number of attempts if a base image disappears between pull and use.
const ENSURE_TRIES: usize = 3;

/// A stage that is complete.
pub(super) struct Built {
    pub(super) draft: Draft,
    pub(super) settings: Settings,
    scope: Scope,
}

/// A stage that is being built.
pub(super) struct Stage<'a> {
    pub(super) build: &'a Build,
    pub(super) index: usize,
    name: Arc<str>,
    pub(super) draft: Draft,
    pub(super) settings: Settings,
    pub(super) scope: Scope,
}

/// Where a step is, for those who carry it out.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) step: &'a Step,
    /// Among all steps of the build, from 1.
    pub(super) number: u32,
}

/// Builds the stage of that index, which the plan has.
pub(super) async fn build(build: &Build, index: usize) -> Result<Arc<Built>, BuildError> {
    let file = &build.plan.file;
    let (Some(planned), Some(of_file)) = (build.plan.stages.get(&index), file.stages.get(index)) else {
        return Err(BuildError::Refused(format!("there is no stage {index}")));
    };
    let number = planned.first_step;
    let report = async |state| build.report(number, &planned.name, &of_file.text, state).await;
    report(StepState::Started).await;
    let begun = match &planned.base {
        Base::Stage(below) => {
            let below = build.stage(*below).await?;
            Ok((below.draft.clone(), below.settings.of_next_stage(), below.scope.clone()))
        }
        Base::Scratch => build.scratch().await,
        Base::Image(image) => build.base(image).await,
    };
    let begun = begun.map_err(|error| error.at(&file.name, of_file.line, "FROM"));
    report(if begun.is_ok() {
        StepState::Done
    } else {
        StepState::Failed
    })
    .await;
    let (draft, settings, scope) = begun?;
    let mut stage = Stage {
        build,
        index,
        name: planned.name.clone(),
        draft,
        settings,
        scope,
    };
    for text in stage.settings.take_triggers() {
        let step = file::parse_trigger(&format!("ONBUILD of {}", of_file.base), &text)?;
        stage.step(At { step: &step, number }).await?;
    }
    for (step, n) in of_file.steps.iter().zip(1..) {
        let number = number + n;
        stage.step(At { step, number }).await?;
    }
    Ok(Arc::new(Built {
        draft: stage.draft,
        settings: stage.settings,
        scope: stage.scope,
    }))
}

impl Build {
    async fn report(&self, step: u32, stage: &Arc<str>, text: &str, state: StepState) {
        if !self.reporter.is_heard() {
            return;
        }
        let progress = StepProgress {
            step,
            total: self.plan.steps,
            stage: stage.clone(),
            text: text.into(),
            state,
        };
        self.reporter.report(ProgressEvent::Step(progress)).await;
    }

    async fn scratch(&self) -> Result<(Draft, Settings, Scope), BuildError> {
        let draft = self.service.0.images.draft(None).await?;
        Ok((draft, Settings::of_base(&serde_json::Value::Null), Scope::default()))
    }

    async fn base(&self, image: &ImageRef) -> Result<(Draft, Settings, Scope), BuildError> {
        let draft = self.obtain(image).await?;
        let settings = Settings::of_base(draft.base_config());
        Ok((draft, settings, Scope::default()))
    }

    /// An image as a draft. It is pulled if it is not present, or if the request says so.
    async fn obtain(&self, image: &ImageRef) -> Result<Draft, BuildError> {
        let (images, reporter) = (&self.service.0.images, self.reporter.for_part());
        let mut tries = ENSURE_TRIES;
        let obtained = async {
            loop {
                tries -= 1;
                let row = match self.request.pull {
                    true => images.pull_reported(image, &Platform::host(), &reporter).await?,
                    false => images.ensure_reported(image, &Platform::host(), &reporter).await?,
                };
                match images.draft(Some(&row)).await {
                    // It was removed or replaced just now.
                    Err(ImageError::NotFound(_)) if tries > 0 => {}
                    draft => return Ok(draft?),
                }
            }
        };
        tokio::select! {
            obtained = Box::pin(obtained) => obtained,
            () = self.cancelled.cancelled() => Err(BuildError::Cancelled),
        }
    }

    /// An image that files are taken from; the same for the whole build.
    pub(super) async fn image(&self, name: &str) -> Result<Draft, BuildError> {
        let mut images = self.images.lock().await;
        if let Some(draft) = images.get(name) {
            return Ok(draft.clone());
        }
        let draft = self.obtain(&ImageRef::parse(name)?).await?;
        images.insert(name.to_owned(), draft.clone());
        Ok(draft)
    }
}

impl Stage<'_> {
    async fn step(&mut self, at: At<'_>) -> Result<(), BuildError> {
        if self.build.cancelled.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        let done = Box::pin(self.carry_out(at)).await;
        if done.is_err() {
            self.report(at, StepState::Failed).await;
        }
        done.map_err(|error| error.at(&at.step.file, at.step.line, at.step.instruction.name()))
    }

    async fn carry_out(&mut self, at: At<'_>) -> Result<(), BuildError> {
        let env = self.settings.env();
        let vars = |name: &str| self.scope.value(&self.build.plan.globals, &env, name);
        if let Instruction::Arg(args) = &at.step.instruction {
            return self.declare(at, args).await;
        }
        match at.step.resolve(&vars)? {
            Instruction::Copy(copy) => self.copy(at, *copy).await,
            Instruction::Run(run) => self.run(at, *run).await,
            Instruction::Workdir(path) => {
                let path = self.settings.set_working_dir(&path);
                self.make_directory(at, path).await
            }
            other => {
                self.set(other);
                self.draft.note(at.step.text.clone());
                self.report(at, StepState::Done).await;
                Ok(())
            }
        }
    }

    /// `ARG`. Later ones of the same instruction may use earlier ones; a default that is not used need not be right.
    async fn declare(&mut self, at: At<'_>, args: &[Arg]) -> Result<(), BuildError> {
        let (globals, env) = (&self.build.plan.globals, self.settings.env());
        for arg in args {
            let default = arg.default.as_ref().filter(|_| !globals.is_given(&arg.name));
            let vars = |name: &str| self.scope.value(globals, &env, name);
            let default = default.map(|default| at.step.resolve_default(default, &vars));
            let resolved = Arg {
                name: arg.name.clone(),
                default: default.transpose()?,
            };
            self.scope.declare(globals, &resolved);
        }
        self.draft.note(at.step.text.clone());
        self.report(at, StepState::Done).await;
        Ok(())
    }

    /// An instruction that changes no file.
    fn set(&mut self, instruction: Instruction) {
        let settings = &mut self.settings;
        match instruction {
            Instruction::Cmd(command) => settings.set_cmd(&command),
            Instruction::Entrypoint(command) => settings.set_entrypoint(&command),
            Instruction::Env(pairs) => pairs.iter().for_each(|(key, value)| settings.set_env(key, value)),
            Instruction::Label(pairs) => pairs.iter().for_each(|(key, value)| settings.add_label(key, value)),
            Instruction::Expose(ports) => ports.iter().for_each(|port| settings.expose(port)),
            Instruction::Volume(paths) => paths.iter().for_each(|path| settings.add_volume(path)),
            Instruction::User(user) => settings.set_user(&user),
            Instruction::Shell(words) => settings.set_shell(&words),
            Instruction::StopSignal(signal) => settings.set_stop_signal(&signal),
            Instruction::HealthCheck(check) => settings.set_health_check(&check),
            Instruction::OnBuild(text) => settings.add_trigger(&text),
            Instruction::Maintainer(author) => settings.author = Some(author),
            Instruction::Arg(_) | Instruction::Copy(_) | Instruction::Run(_) | Instruction::Workdir(_) => {}
        }
    }

    pub(super) async fn report(&self, at: At<'_>, state: StepState) {
        self.build.report(at.number, &self.name, &at.step.text, state).await;
    }

    /// A key of this kind that has the layers so far.
    pub(super) fn key(&self, kind: &str) -> Key {
        let mut key = Key::of(kind);
        key.all(self.draft.layers().diff_ids());
        key
    }

    /// Carries out a step that changes files, unless its result is known.
    pub(super) async fn change(
        &mut self,
        at: At<'_>,
        key: String,
        make: impl Future<Output = Result<Change, BuildError>>,
    ) -> Result<(), BuildError> {
        let build = self.build;
        let text = &at.step.text;
        // A step that another stage, or another build, carries out right now is not carried out again.
        let _turn = tokio::select! {
            turn = build.service.0.locks.lock(&key) => turn,
            () = build.cancelled.cancelled() => return Err(BuildError::Cancelled),
        };
        if let Some(change) = build.recorder.find(&key).await? {
            self.report(at, StepState::Cached).await;
            self.draft.append(text.clone(), &change);
            return Ok(());
        }
        let permit = tokio::select! {
            permit = build.turns.acquire() => permit,
            () = build.cancelled.cancelled() => return Err(BuildError::Cancelled),
        };
        self.report(at, StepState::Started).await;
        let change = Box::pin(make).await?;
        drop(permit);
        let (bytes, most) = (
            build.recorder.keep(key, text, change.clone()),
            build.service.0.settings.max_build_bytes,
        );
        if bytes > most {
            return Err(BuildError::TooMuch(most));
        }
        self.draft.append(text.clone(), &change);
        self.report(at, StepState::Done).await;
        Ok(())
    }

    /// The directory of a `WORKDIR`. What is missing of it belongs to the user, as `BuildKit` makes it.
    async fn make_directory(&mut self, at: At<'_>, path: String) -> Result<(), BuildError> {
        let layers = self.draft.layers().clone();
        let user = self.settings.user();
        let resolved = self
            .build
            .service
            .0
            .images
            .resolve_user(&layers.diff_ids(), &user)
            .await;
        let owner = match resolved {
            Ok(user) => (user.uid, user.gid),
            // The user may be made later.
            Err(ImageError::UnknownUser { .. }) => (0, 0),
            Err(error) => return Err(error.into()),
        };
        let mut key = self.key("directory");
        key.add(&path);
        key.add(format!("{}:{}", owner.0, owner.1));
        let made = layers.change(Vec::new(), move |root, _| files::make_directory(root, &path, owner));
        self.change(at, key.finish(), made).await
    }
}
