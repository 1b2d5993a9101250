//! Optional times on the wire (`docs/spec/api.md` 4.4).

use jiff::Timestamp;

/// The wire form of a time that was never set.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// A time as a string; [`NEVER`] if it was not set.
pub fn rfc3339(time: Option<Timestamp>) -> String {
    time.map_or_else(|| NEVER.to_owned(), crate::base::time::rfc3339)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_was_never_set_is_the_first_of_all() {
        assert_eq!(rfc3339(None), "0001-01-01T00:00:00Z");
        assert!(rfc3339(Some(Timestamp::UNIX_EPOCH)).as_str() > NEVER);
    }
}
