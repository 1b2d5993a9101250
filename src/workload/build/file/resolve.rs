//! Replaces the variables of instructions.

use super::ast::{BuildFile, GlobalArg, Instruction, Stage, Step};
use super::error::FileError;

/// The value of a variable, or `None` if it is not set.
pub type Vars<'a> = dyn Fn(&str) -> Option<String> + 'a;

impl BuildFile {
    /// The default of a global `ARG` with its variables replaced: the values of those before it.
    pub fn resolve_global(&self, arg: &GlobalArg, vars: &Vars<'_>) -> Result<Option<String>, FileError> {
        let _ = (arg, vars);
        unimplemented!()
    }

    /// Base (not empty) and platform of a stage with their variables replaced: the global `ARG`s and those that are
    /// predefined.
    pub fn resolve_stage(&self, stage: &Stage, vars: &Vars<'_>) -> Result<(String, Option<String>), FileError> {
        let _ = (stage, vars);
        unimplemented!()
    }
}

impl Step {
    /// The instruction with its variables replaced by those that hold before it (`ENV` over `ARG`). Those without
    /// variables (`RUN`'s command, `CMD`, `ENTRYPOINT`, `SHELL`, `HEALTHCHECK`, `ONBUILD`, `MAINTAINER`) are as they were.
    pub fn resolve(&self, vars: &Vars<'_>) -> Result<Instruction, FileError> {
        let _ = vars;
        unimplemented!()
    }
}
