//! The hook that the low-level runtime starts to tell the daemon what happens: see [`condenser::hook_agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    condenser::hook_agent::main()
}
