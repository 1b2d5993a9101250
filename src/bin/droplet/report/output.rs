//! The output of a verb. Unlike `println!` and `eprintln!`, these functions do not panic when the reader is gone:
//! `droplet list | head` ends quietly, and a monitor or a roll-back completes even if the daemon has died.

use std::fmt::Display;
use std::io::Write;

/// Prints a line to stdout.
pub fn print(line: impl Display) {
    print_text(format_args!("{line}\n"));
}

/// Prints a text to stdout, without a line break at its end.
pub fn print_text(text: impl Display) {
    let mut stdout = std::io::stdout().lock();
    let _ = write!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Prints an error line to stderr.
pub fn print_error(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
