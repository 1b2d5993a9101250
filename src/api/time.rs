//! Times on the wire (`contract/api.md` 4.4): RFC 3339 in the daemon's local offset, trailing zeros dropped.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What clients are sent for a time that was never set.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// A time as a string; [`NEVER`] when it was not set.
pub fn rfc3339(time: Option<Timestamp>) -> String {
    time.map_or_else(|| NEVER.to_owned(), |t| in_zone(t, &TimeZone::system()))
}

fn in_zone(time: Timestamp, zone: &TimeZone) -> String {
    let offset = zone.to_offset(time);
    if offset.is_zero() {
        time.to_string()
    } else {
        time.display_with_offset(offset).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_fractions() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let tokyo = TimeZone::fixed(jiff::tz::offset(9));
        assert_eq!(
            in_zone(at("2026-02-07T05:06:14.976263167Z"), &tokyo),
            "2026-02-07T14:06:14.976263167+09:00"
        );
        assert_eq!(
            in_zone(at("2026-02-07T05:06:14.500Z"), &TimeZone::UTC),
            "2026-02-07T05:06:14.5Z"
        );
        assert_eq!(
            in_zone(at("2026-02-07T05:06:14Z"), &TimeZone::UTC),
            "2026-02-07T05:06:14Z"
        );
        assert_eq!(rfc3339(None), "0001-01-01T00:00:00Z");
    }
}
