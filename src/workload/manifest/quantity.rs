//! Kubernetes quantities: `500m`, `1.5`, `64Mi`, `1G`, `1e9`. Pure.

/// A quantity in thousandths, rounded up; `None` if the text is invalid or the value is absurdly large.
fn thousandths(text: &str) -> Option<u128> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 18 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (numerator, denominator) = scale(suffix)?;
    let divisor = 10u128
        .checked_pow(u32::try_from(fraction.len()).ok()?)?
        .checked_mul(denominator)?;
    Some(digits.checked_mul(numerator)?.checked_mul(1000)?.div_ceil(divisor))
}

/// The multiplier of a suffix, as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let exponent: i32 = digits.parse().ok().filter(|n| (-9..=18).contains(n))?;
            let power = 10u128.pow(exponent.unsigned_abs());
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

/// A quantity of memory, in bytes.
pub(super) fn bytes(text: &str) -> Option<u64> {
    thousandths(text)?.div_ceil(1000).try_into().ok()
}

/// A quantity of CPU, in thousandths of one.
pub(super) fn millis(text: &str) -> Option<u32> {
    thousandths(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_all_spellings() {
        let expected = [
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("128M", 128_000_000),
            ("1e9", 1_000_000_000),
            ("12E6", 12_000_000),
            ("1k", 1000),
            ("500", 500),
            ("1500m", 2),
            (".5Ki", 512),
        ];
        for (text, value) in expected {
            assert_eq!(bytes(text), Some(value), "{text}");
        }
    }

    #[test]
    fn processors_are_rounded_up() {
        for (text, value) in [("500m", 500), ("1.5", 1500), ("2", 2000), ("0.0001", 1), ("100u", 1)] {
            assert_eq!(millis(text), Some(value), "{text}");
        }
    }

    #[test]
    fn everything_else_is_none() {
        for text in [
            "",
            "-1",
            "Mi",
            "1.2.3",
            "1MB",
            "1 Gi",
            "0x10",
            "1e",
            "1e99",
            "∞",
            "9999999999999999999999",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(bytes("999999999999999999Ei"), None);
        assert_eq!(millis("1T"), None);
    }
}
