//! What of a build file is built, in which dependence. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::BuildError;
use super::file::{BuildFile, Instruction, MountKind};
use super::vars::{BuildArgs, Globals};
use crate::image::{ImageRef, Platform};

/// `FROM` of an image without a base.
const SCRATCH: &str = "scratch";

/// What is to be built.
#[derive(Debug)]
pub(super) struct Plan {
    pub file: BuildFile,
    pub globals: Globals,
    /// Index of the stage that is the image.
    pub target: usize,
    /// The stages that it needs, itself included, by their index.
    pub stages: BTreeMap<usize, PlannedStage>,
    /// Number of steps of all of them; each `FROM` is one.
    pub steps: u32,
}

/// A stage that is built.
#[derive(Debug)]
pub(super) struct PlannedStage {
    pub base: Base,
    /// Its name, or its number.
    pub name: Arc<str>,
    /// Number of its `FROM` among all steps, from 1.
    pub first_step: u32,
}

/// What a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    Scratch,
    Stage(usize),
    Image(ImageRef),
}

impl Plan {
    /// `target`: name or number of a stage; empty for the last one.
    pub(super) fn of(file: BuildFile, args: &BuildArgs, target: &str, platform: &Platform) -> Result<Self, BuildError> {
        let globals = Globals::of(&file, args, platform)?;
        let all = file.stages.len();
        let target = match target {
            "" => all.saturating_sub(1),
            name => file.stage(name, all).ok_or_else(|| no_target(&file, name))?,
        };
        let mut stages = BTreeMap::new();
        let mut pending = vec![target];
        while let Some(index) = pending.pop() {
            let Some(stage) = file.stages.get(index).filter(|_| !stages.contains_key(&index)) else {
                continue;
            };
            let (base, of_platform) = file.resolve_stage(stage, &|name| globals.in_from(name))?;
            let located = |problem: BuildError| problem.at(&file.name, stage.line, "FROM");
            if let Some(of_platform) = of_platform.filter(|text| !text.is_empty()) {
                check_platform(&of_platform, platform).map_err(located)?;
            }
            let base = self::base(&file, index, &base).map_err(located)?;
            if let Base::Stage(below) = base {
                pending.push(below);
            }
            pending.extend(needed_by(&file, index));
            let name = stage.name.clone().unwrap_or_else(|| index.to_string());
            let planned = PlannedStage {
                base,
                name: name.into(),
                first_step: 0,
            };
            stages.insert(index, planned);
        }
        let mut steps = 0;
        for (index, planned) in &mut stages {
            planned.first_step = steps + 1;
            let own = file.stages.get(*index).map_or(0, |stage| stage.steps.len());
            steps += 1 + u32::try_from(own).unwrap_or(u32::MAX / 2);
        }
        Ok(Self {
            file,
            globals,
            target,
            stages,
            steps,
        })
    }
}

fn no_target(file: &BuildFile, name: &str) -> BuildError {
    let names = file.stages.iter().enumerate();
    let names = names.map(|(n, stage)| stage.name.clone().unwrap_or_else(|| n.to_string()));
    BuildError::NoTarget {
        name: name.to_owned(),
        known: names.collect::<Vec<_>>().join(", "),
    }
}

fn base(file: &BuildFile, index: usize, text: &str) -> Result<Base, BuildError> {
    if text == SCRATCH {
        return Ok(Base::Scratch);
    }
    // Numbers are names of stages in `--from` only.
    let named = file.stage(text, index);
    let is_name = |stage: &usize| {
        let name = file.stages.get(*stage).and_then(|stage| stage.name.as_deref());
        name.is_some_and(|name| name.eq_ignore_ascii_case(text))
    };
    match named.filter(is_name) {
        Some(stage) => Ok(Base::Stage(stage)),
        None => Ok(Base::Image(ImageRef::parse(text)?)),
    }
}

/// The stages that a stage takes files from.
fn needed_by(file: &BuildFile, index: usize) -> Vec<usize> {
    let steps = file.stages.get(index).map(|stage| &stage.steps[..]).unwrap_or_default();
    let mut needed = Vec::new();
    for step in steps {
        match &step.instruction {
            Instruction::Copy(copy) => needed.extend(copy.from.as_deref()),
            Instruction::Run(run) => {
                let mounts = run.mounts.iter();
                let reading = mounts.filter(|mount| matches!(mount.kind, MountKind::Bind | MountKind::Cache));
                needed.extend(reading.filter_map(|mount| mount.from.as_deref()));
            }
            _ => {}
        }
    }
    needed.into_iter().filter_map(|name| file.stage(name, index)).collect()
}

/// Commands of another platform cannot run here.
fn check_platform(text: &str, target: &Platform) -> Result<(), BuildError> {
    let wanted = parse_platform(text)?;
    let host = Platform::host();
    let is_here = |platform: &Platform| platform.accepts(&wanted.os, &wanted.architecture);
    match is_here(&host) || is_here(target) {
        true => Ok(()),
        false => Err(BuildError::OtherPlatform(text.to_owned())),
    }
}

/// `os/architecture[/variant]`, or an architecture.
pub(super) fn parse_platform(text: &str) -> Result<Platform, BuildError> {
    let (os, architecture) = text.split_once('/').unwrap_or(("linux", text));
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if !is_word(os) || architecture.split('/').count() > 2 || !architecture.split('/').all(is_word) {
        return Err(BuildError::NoPlatform(text.to_owned()));
    }
    Ok(Platform::parse(os, architecture))
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;
    use super::*;

    fn plan(text: &str, target: &str) -> Result<Plan, String> {
        let file = parse("Dripfile", text.as_bytes()).map_err(|e| e.to_string())?;
        Plan::of(file, &BuildArgs::new(), target, &Platform::host()).map_err(|e| e.to_string())
    }

    fn indexes(plan: &Plan) -> Vec<usize> {
        plan.stages.keys().copied().collect()
    }

    const FILE: &str = "ARG V=1\nFROM busybox:$V AS base\nRUN a\nFROM base AS one\nRUN b\nFROM scratch AS unused\n\
        FROM scratch\nCOPY --from=one /a /b\nRUN --mount=type=bind,from=0,target=/x c\nFROM base AS last\nCOPY --from=3 /a /\n\
        COPY --from=busybox:2 /a /\n";

    #[test]
    fn only_what_is_needed_is_built() {
        let whole = plan(FILE, "").unwrap();
        assert_eq!(
            (whole.target, indexes(&whole), whole.steps),
            (4, vec![0, 1, 3, 4], 11 - 1)
        );
        assert_eq!(
            whole.stages[&0].base,
            Base::Image(ImageRef::parse("busybox:1").unwrap())
        );
        assert_eq!(whole.stages[&1].base, Base::Stage(0));
        let numbers: Vec<u32> = whole.stages.values().map(|stage| stage.first_step).collect();
        assert_eq!(numbers, [1, 3, 5, 8]);
        let part = plan(FILE, "ONE").unwrap();
        assert_eq!((part.target, indexes(&part)), (1, vec![0, 1]));
        assert_eq!(&*plan(FILE, "3").unwrap().stages[&3].name, "3");
    }

    #[test]
    fn what_cannot_be_built() {
        let error = plan(FILE, "none").unwrap_err();
        assert_eq!(
            error,
            "there is no stage \"none\"; the build file has base, one, unused, 3, last"
        );
        let error = plan("FROM --platform=plan9/mips scratch", "").unwrap_err();
        assert!(
            error.starts_with("Dripfile line 1 (FROM): platform plan9/mips"),
            "{error}"
        );
        plan("FROM --platform=$BUILDPLATFORM scratch", "").unwrap();
        let error = plan("FROM --platform=//x scratch", "").unwrap_err();
        assert!(error.contains("invalid platform \"//x\""), "{error}");
    }
}
