//! What `STOPSIGNAL` may be.

use super::error::{Problem, shown};

/// Largest number of a signal.
const LAST: u8 = 64;

/// Names without `SIG`.
const NAMES: [&str; 37] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "UNUSED", "URG",
    "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// A number, or a name with or without `SIG`, in any case.
pub(super) fn check(signal: &str) -> Result<(), Problem> {
    let name = signal.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |text: &str| text.parse().is_ok_and(|offset: u8| (1..=30).contains(&offset));
    let known = match name.parse::<u8>() {
        Ok(number) => (1..=LAST).contains(&number),
        Err(_) => {
            NAMES.contains(&name)
                || name.strip_prefix("RTMIN+").is_some_and(offset)
                || name.strip_prefix("RTMAX-").is_some_and(offset)
        }
    };
    match known {
        true => Ok(()),
        false => {
            let message = format!(
                "invalid signal: {}; use a name such as SIGTERM, or a number",
                shown(signal)
            );
            Err(Problem::new(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for signal in [
            "SIGTERM",
            "term",
            "SigUsr1",
            "9",
            "64",
            "RTMIN+3",
            "SIGRTMAX-1",
            "RTMIN",
        ] {
            assert_eq!(check(signal), Ok(()), "{signal}");
        }
        for signal in ["", "0", "65", "-1", "SIG", "SIGFOO", "RTMIN+31", "SIGSIGTERM", "9 "] {
            assert!(check(signal).is_err(), "{signal}");
        }
    }
}
