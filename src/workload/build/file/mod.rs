//! The language of build files, as `BuildKit` and its Dockerfile reference define it. Pure: text in, types out; nothing
//! here reads a file, knows an image or runs a command.
//!
//! ```text
//! parse(name, bytes) -> BuildFile { global_args, stages: [ Stage { base, name, steps: [ Step ] } ] }
//! BuildFile::resolve_global, resolve_stage, Step::resolve -> the same with variables replaced
//! parse_trigger(name, text) -> Step, for an ONBUILD of a base image
//! Ignore, Pattern  -> what .dockerignore, --exclude and the wildcards of COPY match
//! ```
//! Words are as written until they are resolved with the variables of their place: a [`Step`] holds `$VAR` and quotes,
//! [`Step::resolve`] gives the [`Instruction`] that is to be carried out. Which instructions have variables is decided
//! here, so that every instruction can be given to it.
//!
//! Every error is a [`FileError`]: file, line, instruction, and a sentence. All input is untrusted: sizes are bounded by
//! the constants of [`limits`], and no input makes it panic.

mod ast;
mod budget;
mod copy;
mod error;
mod exec_form;
mod expose;
mod flags;
mod health;
mod heredoc;
mod ignore;
mod instruction;
mod lexer;
pub mod limits;
mod lines;
mod mount;
mod nearest;
mod parse;
mod pattern;
mod resolve;
mod resolver;
mod signal;
mod substitute;
mod words;

#[cfg(test)]
mod tests;

pub use self::ast::{
    Arg, BuildFile, Command, Copy, HealthCheck, Heredoc, Instruction, Mount, MountKind, Run, RunCommand, RunNetwork,
    RunSecurity, Sharing, Source, Step, Test,
};
pub use self::error::FileError;
pub use self::ignore::Ignore;
pub use self::instruction::parse_trigger;
pub use self::parse::parse;
pub use self::pattern::Pattern;
