//! `state` (`docs/spec/runtime.md` 4.7): prints the state of a container. It takes no lock and writes nothing.

use super::arguments::Args;
use crate::container::{RuntimePaths, render};
use crate::report::failure::{Failure, Stage};
use crate::report::output;

/// Runs the verb.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<(), Failure> {
    let args = Args::parse(&[], arguments)?;
    let container = paths.container(args.id()?).stage("get_status")?;
    let state = container.state().stage("get_status")?;
    output::print(render(&state).stage("get_status")?);
    Ok(())
}
