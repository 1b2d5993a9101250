//! Removals that succeed if there is nothing to remove.

use std::io;

/// The result of a removal; what did not exist has been removed.
pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_absent_is_fine() {
        absent_is_fine(Ok(())).unwrap();
        absent_is_fine(Err(io::ErrorKind::NotFound.into())).unwrap();
        absent_is_fine(Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
    }
}
