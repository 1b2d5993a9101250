//! Durations in the syntax of compose files. Pure.

use crate::workload::manifest::ManifestError;
use crate::workload::manifest::reader::Field;

/// Maximum duration in seconds, and maximum retries of a health check: one day's worth.
pub(super) const MOST: u32 = 86_400;
/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// A number of seconds, or a duration such as `1m30s`, `1.5s` or `500ms`, rounded up to seconds.
pub(super) fn seconds(field: &Field<'_>) -> Result<u32, ManifestError> {
    let text = field.string()?;
    let nanos = text
        .parse::<u64>()
        .map(|seconds| seconds.saturating_mul(SECOND))
        .ok()
        .or_else(|| duration(&text));
    let seconds = nanos
        .map(|nanos| nanos.div_ceil(SECOND))
        .filter(|seconds| *seconds <= MOST.into());
    let Some(seconds) = seconds else {
        return Err(field.error(format!(
            "{text:?} is not a time up to a day, as 10s, 1m30s, 1.5s or 500ms"
        )));
    };
    if nanos != Some(seconds * SECOND) {
        field.warn(format!("is rounded up to {seconds}s"));
    }
    Ok(seconds as u32)
}

/// Nanoseconds of a duration in Go syntax (`time.ParseDuration`): numbers, with fractions, and their units.
fn duration(mut text: &str) -> Option<u64> {
    let mut nanos: u64 = 0;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, rest) = text.split_at(text.find(|c: char| !is_number(c))?);
        let (unit, rest) = rest.split_at(rest.find(is_number).unwrap_or(rest.len()));
        let scale = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3_600 * SECOND,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole = if whole.is_empty() {
            0
        } else {
            whole.parse::<u64>().ok()?
        };
        nanos = nanos.checked_add(whole.checked_mul(scale)?)?;
        // Digits after the ninth are below a nanosecond for all units but the hour.
        let digits = fraction.get(..fraction.len().min(12)).unwrap_or(fraction);
        if !digits.is_empty() {
            let part = digits.parse::<u128>().ok()? * u128::from(scale) / 10u128.pow(digits.len() as u32);
            nanos = nanos.checked_add(u64::try_from(part).ok()?)?;
        }
        text = rest;
    }
    Some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_the_units_of_compose_files() {
        let expected = [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("1.5s", 1_500),
            ("1h0.5m2.25s", 3_632_250),
            (".5s", 500),
            ("1.s", 1_000),
            ("2000000us", 2_000),
        ];
        for (text, millis) in expected {
            assert_eq!(duration(text), Some(millis * 1_000_000), "{text}");
        }
        for text in [
            "",
            "s",
            "10",
            "1d",
            "10s5",
            "99999999999999999999s",
            "-1s",
            ".s",
            "1.2.3s",
            "1 s",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
