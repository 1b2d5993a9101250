//! The command line: finds the verb, runs it and reports its error.

use std::process::ExitCode;

use crate::container::RuntimePaths;
use crate::report::failure::{Failure, Stage};
use crate::report::output;
use crate::sandbox::process::sealed;
use crate::verbs;

/// The text that `help` prints.
const HELP: &str = "\
NAME:
   droplet - low-level container runtime

USAGE:
   droplet <command> [options] [arguments]

COMMANDS:
   create [-t|--tty] [--print-pid] <id>   create a container; its program waits for start
   start <id>                             run the program of a created container
   kill [--grace <s>] <id> [signal]       stop a container, or send a signal to it
   delete <id>                            remove the runtime's files of a container
   state <id>                             print the state of a container
   run [-t|--tty] [--print-pid] <id>      create and start a container, and wait for its end
   exec [-t|--tty] <id> <argv...>         run another program in a running container
   exec --wait [--timeout <s>] <id> <argv...>
                                          run it to its end; print exit status and output as JSON
   spec [options]                         write a config.json
   list [--format json]                   list containers
   attach <id>                            connect this terminal to the container's
   help                                   print this text

ENVIRONMENT:
   RAIND_ROOT_DIR   container directories, by default /etc/raind/container
";

/// Exit status for an unknown verb.
const UNKNOWN_VERB: u8 = 3;

/// Runs the verb of this process's command line.
pub fn run() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let paths = RuntimePaths::from_environment();
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("help", &[][..]),
    };
    match dispatch(&paths, verb, rest) {
        Some(Ok(code)) => code,
        Some(Err(failure)) => {
            if failure.is_usage() {
                output::print_text(format_args!("Incorrect Usage: {failure}\n\n{HELP}"));
            }
            // The caller reads only the last line, so the message must not contain a line break.
            output::print_error(failure.message.replace(['\n', '\r'], " "));
            ExitCode::from(u8::try_from(failure.status).unwrap_or(1))
        }
        None => {
            output::print_error(format_args!("No help topic for '{verb}'"));
            ExitCode::from(UNKNOWN_VERB)
        }
    }
}

/// Runs a verb. Returns `None` if the verb does not exist.
fn dispatch(paths: &RuntimePaths, verb: &str, rest: &[String]) -> Option<Result<ExitCode, Failure>> {
    let result = match verb {
        "create" => protect().and_then(|()| verbs::create::run(paths, rest)),
        "run" => return Some(protect().and_then(|()| verbs::run::run(paths, rest))),
        "start" => verbs::start::run(paths, rest),
        "kill" => verbs::kill::run(paths, rest),
        "delete" => verbs::delete::run(paths, rest),
        "exec" => protect().and_then(|()| verbs::exec::run(paths, rest)),
        "attach" => return Some(verbs::attach::run(paths, rest)),
        "spec" => verbs::spec::run(rest),
        "state" => verbs::state::run(paths, rest),
        "list" => verbs::list::run(paths, rest),
        "help" | "--help" | "-h" | "-help" => {
            output::print_text(HELP);
            Ok(())
        }
        verb if verb.starts_with('-') => {
            let option = verb.trim_start_matches('-');
            Err(Failure::usage(format!("flag provided but not defined: -{option}")))
        }
        _ => return None,
    };
    Some(result.map(|()| ExitCode::SUCCESS))
}

/// Continues in a binary that no container can overwrite. A verb that enters a container needs this.
fn protect() -> Result<(), Failure> {
    sealed::reexec().stage("load_spec")?;
    // libcontainer would pass this many descriptors on to the container.
    // SAFETY: this process has one thread, so nobody reads the environment at the same time.
    unsafe { std::env::remove_var("LISTEN_FDS") };
    Ok(())
}
