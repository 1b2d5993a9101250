//! How a verb of the runtime ends that failed: its exit status says who is to blame, its last line of standard error why.
//!
//! The statuses are those of `docker run` and of shells. The original Droplet knows only [`FAILED`].

/// Something broke.
pub const FAILED: i32 = 1;
/// What was asked for cannot be: a mount that does not fit its place, a working directory that cannot be entered.
pub const REFUSED: i32 = 125;
/// The program is there and cannot be executed.
pub const NOT_EXECUTABLE: i32 = 126;
/// There is no such program.
pub const NOT_FOUND: i32 = 127;

/// Whether whoever asked is to blame.
pub fn is_refusal(status: i32) -> bool {
    matches!(status, REFUSED | NOT_EXECUTABLE | NOT_FOUND)
}
