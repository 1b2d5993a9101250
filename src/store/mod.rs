//! The state store: all durable state of the daemon.
//!
//! All state is small, so it lives in memory as one immutable [`Snapshot`]. Readers take an `Arc` of it: consistent
//! over all kinds, never blocked, no I/O. A change is a closure over a [`Txn`]; it may touch several kinds at once. One
//! writer thread runs the closures in order, commits them to SQLite (queued transactions share one commit), then
//! publishes the new snapshot and a [`Commit`] event. When [`Store::transact`] returns `Ok`, the change is on disk.
//!
//! One mechanism ensures uniqueness across kinds (names, addresses, host ports): a record lists its [`Claim`]s, and a
//! transaction that would give one claim to two records fails with [`Taken`].
//!
//! This module never knows why a record changes. Life cycle rules belong to the domain modules.

mod database;
mod documents;
mod error;
mod holder;
mod writer;

pub use database::SCHEMA_VERSION;
pub use error::StoreError;
pub use writer::Store;
