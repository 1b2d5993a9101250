//! `HEALTHCHECK`.

use std::time::Duration;

use super::ast::{Command, HealthCheck, Test};
use super::error::{Problem, shown};
use super::exec_form;
use super::flags::{Flags, Takes};
use super::words::split_name;

/// Its flags.
pub(super) const FLAGS: [(&str, Takes); 5] = [
    ("interval", Takes::Value),
    ("timeout", Takes::Value),
    ("start-period", Takes::Value),
    ("start-interval", Takes::Value),
    ("retries", Takes::Value),
];

/// Parses what follows the flags.
pub(super) fn parse(flags: &Flags, rest: &str) -> Result<HealthCheck, Problem> {
    let (kind, rest) = split_name(rest);
    match (&kind.to_ascii_uppercase()[..], rest) {
        ("NONE", "") => return Ok(HealthCheck::None),
        ("NONE", _) => return Err(Problem::new("HEALTHCHECK NONE has no arguments")),
        ("CMD", "") => return Err(Problem::new("HEALTHCHECK CMD requires a command")),
        ("CMD", _) => {}
        ("", _) => return Err(Problem::new("HEALTHCHECK requires CMD and a command, or NONE")),
        _ => {
            let message = format!("HEALTHCHECK requires CMD and a command, or NONE, not {}", shown(kind));
            return Err(Problem::new(message));
        }
    }
    let command = match exec_form::list(rest)? {
        Some(words) if words.first().is_none_or(String::is_empty) => return Err(Problem::new("command is empty")),
        Some(words) => Command::Exec(words),
        None => Command::Shell(rest.to_owned()),
    };
    let time = |name: &str| flags.one(name).map_or(Ok(None), |value| duration(name, &value));
    let retries = flags.one("retries").filter(|value| !value.is_empty());
    let retries = retries.map(|value| {
        let number = value.parse::<u32>().ok().filter(|number| *number <= i32::MAX as u32);
        number.ok_or_else(|| Problem::new(format!("--retries is a number, not {}", shown(&value))))
    });
    Ok(HealthCheck::Test(Test {
        command,
        interval: time("interval")?,
        timeout: time("timeout")?,
        start_period: time("start-period")?,
        start_interval: time("start-interval")?,
        retries: retries.transpose()?.filter(|retries| *retries > 0),
    }))
}

/// A time such as `1h30m`, `1.5s`, `200ms`; at least a millisecond. Zero is the default.
fn duration(flag: &str, text: &str) -> Result<Option<Duration>, Problem> {
    let invalid = || {
        let text = shown(text);
        Problem::new(format!("--{flag} is a time such as 30s or 1m30s, not {text}"))
    };
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanoseconds = 0f64;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1f64,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(invalid()),
        };
        nanoseconds += number * unit;
        rest = &rest[end..];
    }
    if nanoseconds == 0f64 {
        return Ok(None);
    }
    // Configurations hold nanoseconds in 63 bits.
    if !(1e6..9e18).contains(&nanoseconds) {
        return Err(Problem::new(format!(
            "--{flag} is at least 1ms and less than 280 years"
        )));
    }
    Ok(Some(Duration::from_nanos(nanoseconds.round() as u64)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("30s", Some(30_000))]
    #[case("1h2m3s", Some(3_723_000))]
    #[case("1.5s", Some(1_500))]
    #[case("200ms", Some(200))]
    #[case("1000000ns", Some(1))]
    #[case("0", None)]
    #[case("0s", None)]
    #[case("", None)]
    fn times(#[case] text: &str, #[case] milliseconds: Option<u64>) {
        assert_eq!(duration("x", text), Ok(milliseconds.map(Duration::from_millis)));
    }

    #[rstest]
    #[case("30")]
    #[case("s")]
    #[case("-1s")]
    #[case("1 s")]
    #[case("1us")]
    #[case("1..5s")]
    #[case("999999999h")]
    #[case("1d")]
    fn what_is_no_time(#[case] text: &str) {
        assert!(duration("x", text).is_err());
    }
}
