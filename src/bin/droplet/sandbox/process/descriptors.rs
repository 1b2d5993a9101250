//! Closes the descriptors of this process.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Closes every descriptor except stdio and the given ones. Their owners never use them again: this process ends with
/// `execve` or `_exit`.
pub fn close_others<const N: usize>(kept: [BorrowedFd<'_>; N]) -> std::io::Result<()> {
    let mut kept = kept.map(|fd| fd.as_raw_fd().cast_unsigned());
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().chain([libc::c_uint::MAX]) {
        // SAFETY: no owner uses its descriptor again, see above.
        if first < end && unsafe { libc::close_range(first, end - 1, 0) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        first = end.saturating_add(1).max(3);
    }
    Ok(())
}
