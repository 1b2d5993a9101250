//! What a verb prints. Unlike `println!` and `eprintln!` these do not panic when nobody reads any more: `droplet list |
//! head` ends quietly, and a monitor or a roll-back whose daemon has died does its work to the end.

use std::fmt::Display;
use std::io::Write;

/// Prints a line for whoever called the verb.
pub fn print(line: impl Display) {
    print_text(format_args!("{line}\n"));
}

/// Prints a text without a line break at its end.
pub fn print_text(text: impl Display) {
    let mut stdout = std::io::stdout().lock();
    let _ = write!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Prints a line about what went wrong.
pub fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
