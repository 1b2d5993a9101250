//! Exit statuses of the runtime's verbs on failure: the status tells whose fault it is, the last line of standard
//! error is the reason.
//!
//! The statuses are those of `docker run` and of shells. The original Droplet only uses [`FAILED`].

/// An internal failure.
pub const FAILED: i32 = 1;
/// The request is invalid: a mount that does not fit its destination, a working directory that cannot be entered.
pub const REFUSED: i32 = 125;
/// The program exists but cannot be executed.
pub const NOT_EXECUTABLE: i32 = 126;
/// The program does not exist.
pub const NOT_FOUND: i32 = 127;

/// Whether the status means that the request is at fault.
pub fn is_refusal(status: i32) -> bool {
    matches!(status, REFUSED | NOT_EXECUTABLE | NOT_FOUND)
}
