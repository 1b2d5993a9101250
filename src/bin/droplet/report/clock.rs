//! Local time for logs.

use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, ZonedDateTime};

/// Returns the current time with the offset of the local time zone. The C library reads one file for that; `jiff` would
/// read the whole directory of time zones, in every short process.
pub fn now() -> ZonedDateTime {
    let now = Timestamp::now();
    let offset = Offset::from_seconds(offset_at(now.as_second())).unwrap_or(Offset::UTC);
    now.to_zoned_datetime(TimeZone::fixed(offset))
}

/// Returns the offset from UTC in seconds.
fn offset_at(second: i64) -> i32 {
    // SAFETY: all zeros is a valid value: the fields are numbers and one pointer that may be null.
    let mut time: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid; the function reads one and fills the other. No other thread changes `TZ`.
    let found = unsafe { libc::localtime_r(&second, &mut time) };
    if found.is_null() {
        return 0;
    }
    i32::try_from(time.tm_gmtoff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_local_time() {
        let (ours, jiffs) = (now(), ZonedDateTime::now());
        assert_eq!(ours.offset(), jiffs.offset());
        assert!(jiffs.timestamp().as_second() - ours.timestamp().as_second() <= 1);
    }
}
