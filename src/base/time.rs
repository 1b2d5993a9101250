//! Times on the wire and in logs (`docs/spec/api.md` 4.4): RFC 3339 in the local offset of the
//! host, with the trailing zeros of the fraction dropped.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time as a string.
pub fn rfc3339(time: Timestamp) -> String {
    in_zone(time, &TimeZone::system())
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
    }
}
