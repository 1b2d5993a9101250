//! `list` (`docs/spec/runtime.md` 4.8): prints the states of all containers. It takes no lock and writes nothing.

use condenser::runtime::state::RuntimeState;

use super::arguments::{Args, Opt};
use crate::container::{RuntimePaths, status_name};
use crate::report::failure::{Failure, Stage};
use crate::report::output;

/// Runs the verb.
pub fn run(paths: &RuntimePaths, arguments: &[String]) -> Result<(), Failure> {
    let args = Args::parse(&[Opt::Value("format")], arguments)?;
    let states = readable_states(paths);
    if args.value("format") == Some("json") {
        // The original prints an empty list as `null`.
        let text = match states.is_empty() {
            true => "null".to_owned(),
            false => serde_json::to_string(&states).stage("get_status")?,
        };
        output::print_text(text);
        return Ok(());
    }
    output::print(format_args!("{:<15} {:<15} {:<8} BUNDLE", "ID", "STATUS", "PID"));
    for state in states {
        let status = status_name(state.status);
        output::print(format_args!(
            "{:<15} {status:<15} {:<8} {}",
            state.id, state.pid, state.bundle
        ));
    }
    Ok(())
}

/// Returns the states of all containers, sorted by id. Skips directories without a readable state.json.
fn readable_states(paths: &RuntimePaths) -> Vec<RuntimeState> {
    let entries = std::fs::read_dir(&paths.root).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
        .iter()
        .filter_map(|name| paths.container(name).ok()?.state().ok())
        .collect()
}
