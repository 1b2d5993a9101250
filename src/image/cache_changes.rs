//! What one build changes of the build cache. Pure.

use jiff::Timestamp;

use super::ImageError;
use crate::model::{BuildCacheEntry, Txn};

/// What a build changes of the cache.
#[derive(Debug, Clone, Default)]
pub struct CacheChanges {
    /// New entries; one of the same id is replaced.
    pub made: Vec<BuildCacheEntry>,
    /// Ids of entries that were used, with the time.
    pub used: Vec<(String, Timestamp)>,
}

impl CacheChanges {
    pub(super) fn apply(self, t: &mut Txn) -> Result<(), ImageError> {
        for entry in self.made {
            t.put(entry)?;
        }
        for (id, at) in self.used {
            if let Some(row) = t.get::<BuildCacheEntry>(&id) {
                let mut row = BuildCacheEntry::clone(&row);
                row.last_used_at = row.last_used_at.max(at);
                row.uses += 1;
                t.put(row)?;
            }
        }
        Ok(())
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty() && self.used.is_empty()
    }
}
