//! Local time for logs.

use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, ZonedDateTime};

/// Now, with the offset of the machine's time zone. The C library finds that by reading one file; `jiff` would look
/// through the whole directory of time zones, in every one of our short processes.
pub fn now() -> ZonedDateTime {
    let now = Timestamp::now();
    let offset = Offset::from_seconds(offset_at(now.as_second())).unwrap_or(Offset::UTC);
    now.to_zoned_datetime(TimeZone::fixed(offset))
}

/// Seconds east of Greenwich.
fn offset_at(second: i64) -> i32 {
    // SAFETY: all zero is a valid value: numbers, and a null pointer that may be null.
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
    fn it_is_local_time() {
        let (ours, jiffs) = (now(), ZonedDateTime::now());
        assert_eq!(ours.offset(), jiffs.offset());
        assert!(jiffs.timestamp().as_second() - ours.timestamp().as_second() <= 1);
    }
}
