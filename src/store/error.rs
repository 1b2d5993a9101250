//! Errors of the store.

use std::path::PathBuf;

use crate::base::cause::Cause;
use crate::model::{BrokenRecord, Kind};

/// Why a store operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened or is damaged.
    #[error("cannot use the state store {path}: {source}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// What is wrong with it.
        source: Cause,
    },
    /// Another process, usually another daemon, has the database locked.
    #[error(
        "the state store {path} is in use by {holder}: one daemon at a time can have it; end that one first (its \
         containers go on running), or give this one a root_dir of its own"
    )]
    InUse {
        /// The database file.
        path: PathBuf,
        /// Pid and program of the process.
        holder: String,
    },
    /// A stored document cannot be parsed.
    #[error("the state store has a broken record in {}: {source}", kind.table_name())]
    Document {
        /// Kind of the record.
        kind: Kind,
        /// What is wrong with it.
        source: Cause,
    },
    /// The change could not be written; none of it took effect.
    #[error("cannot write the state store: {0}")]
    Commit(#[source] Cause),
    /// The closure of a transaction panicked; none of it took effect.
    #[error("a state change failed unexpectedly")]
    Panicked,
    /// The writer has ended, which happens only when the daemon exits.
    #[error("the state store is closed")]
    Closed,
}

impl From<BrokenRecord> for StoreError {
    fn from(BrokenRecord { kind, source }: BrokenRecord) -> Self {
        Self::Document { kind, source }
    }
}
