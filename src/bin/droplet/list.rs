//! `state` and `list` (`docs/spec/runtime.md` 4.7, 4.8): what is known of containers. They take no lock and write
//! nothing.

use condenser::runtime::state::RuntimeState;

use crate::cli::{Args, Opt};
use crate::container::{Site, render};
use crate::create::render_status;
use crate::failure::{Failure, Stage};
use crate::output;

/// Prints the state of one container.
pub fn state(site: &Site, words: &[String]) -> Result<(), Failure> {
    let args = Args::parse(&[], words)?;
    let container = site.container(args.id()?).stage("get_status")?;
    let state = container.state().stage("get_status")?;
    output::print(render(&state).stage("get_status")?);
    Ok(())
}

/// Prints all containers.
pub fn list(site: &Site, words: &[String]) -> Result<(), Failure> {
    let args = Args::parse(&[Opt::Value("format")], words)?;
    let states = states(site);
    if args.value("format") == Some("json") {
        // The original's list without elements.
        let text = match states.is_empty() {
            true => "null".to_owned(),
            false => serde_json::to_string(&states).stage("get_status")?,
        };
        output::print_text(text);
        return Ok(());
    }
    output::print(format_args!("{:<15} {:<15} {:<8} BUNDLE", "ID", "STATUS", "PID"));
    for state in states {
        let status = render_status(state.status);
        output::print(format_args!(
            "{:<15} {status:<15} {:<8} {}",
            state.id, state.pid, state.bundle
        ));
    }
    Ok(())
}

/// By name of the directory; what has no readable state.json is left out.
fn states(site: &Site) -> Vec<RuntimeState> {
    let entries = std::fs::read_dir(&site.root).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
        .iter()
        .filter_map(|name| site.container(name).ok()?.state().ok())
        .collect()
}
