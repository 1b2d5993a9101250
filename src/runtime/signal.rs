//! Parses signals: a name with or without `SIG` in any case, a number, `RTMIN+n`, `RTMAX-n`.

use std::ffi::c_int;

/// Signals that have a name of their own.
const NAMES: [(&str, c_int); 31] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];
/// Aliases.
const ALIASES: [(&str, c_int); 3] = [("CLD", libc::SIGCHLD), ("IOT", libc::SIGABRT), ("POLL", libc::SIGIO)];
/// First and last real-time signal for programs: the C library reserves two of the kernel's. systemd and others count
/// `RTMIN+3` the same way.
const RT_MIN: c_int = 34;
const RT_MAX: c_int = 64;

/// The number of a signal.
pub fn parse(text: &str) -> Option<c_int> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (1..=RT_MAX).contains(number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return Some(RT_MIN + offset(rest, '+')?);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return Some(RT_MAX - offset(rest, '-')?);
    }
    let mut known = NAMES.iter().chain(&ALIASES);
    known.find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The name of a signal without `SIG`, as [`parse`] accepts it; its number if it has no name.
pub fn name(number: c_int) -> String {
    let known = NAMES.iter().find(|(_, known)| *known == number);
    match (known, number) {
        (Some((name, _)), _) => (*name).to_owned(),
        (None, RT_MIN) => "RTMIN".to_owned(),
        (None, RT_MAX) => "RTMAX".to_owned(),
        (None, number) if (RT_MIN..RT_MAX).contains(&number) => format!("RTMIN+{}", number - RT_MIN),
        (None, number) => number.to_string(),
    }
}

/// Parses the rest after `RTMIN` or `RTMAX`: nothing, or a sign and a number that stays between the two.
fn offset(text: &str, sign: char) -> Option<c_int> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text
        .strip_prefix(sign)
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().filter(|offset| *offset <= RT_MAX - RT_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_many_spellings() {
        for (text, number) in [
            ("SIGQUIT", 3),
            ("QUIT", 3),
            ("quit", 3),
            ("3", 3),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmin+3", 37),
            ("RTMAX-2", 62),
            ("SIGRTMAX", 64),
            ("37", 37),
            ("SIGCLD", 17),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in [
            "",
            "SIG",
            "0",
            "65",
            "-3",
            "+3",
            "3 ",
            "SIGSIGINT",
            "RTMIN-1",
            "RTMIN+31",
            "RTMIN+",
            "RTMAX+1",
            "TERMINATE",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_number_has_a_name_that_means_it() {
        for number in 1..=64 {
            assert_eq!(parse(&name(number)), Some(number));
        }
        assert_eq!(
            (&*name(15), &*name(37), &*name(64), &*name(32)),
            ("TERM", "RTMIN+3", "RTMAX", "32")
        );
    }
}
