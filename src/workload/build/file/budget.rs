//! What the variables of one instruction may cost.

use super::limits::{PATTERN_WORK, RESOLVED_BYTES};

/// What one instruction may still use.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
    work: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            bytes: RESOLVED_BYTES,
            work: PATTERN_WORK,
        }
    }
}

impl Budget {
    /// For text that a variable adds.
    pub(super) fn produced(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.ok_or_else(|| format!("with its variables it is longer than {RESOLVED_BYTES} bytes"))?;
        Ok(())
    }

    /// For one step of a pattern.
    pub(super) fn work(&mut self) -> Result<(), String> {
        let left = self.work.checked_sub(1);
        self.work = left.ok_or("its patterns (as in ${x#a*b}) take too long")?;
        Ok(())
    }
}
