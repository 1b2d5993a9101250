//! The order in which objects are listed, rendered and processed. Pure.

use std::sync::Arc;

use jiff::Timestamp;

use super::records::{Bottle, Container, Network, Pod, ReplicaSet, Service};

/// An object with a creation time.
pub trait Created {
    /// The creation time, if known, and a tie-breaker.
    fn created(&self) -> (Option<Timestamp>, &str);
}

macro_rules! created {
    ($($record:ident, $id:ident, $($created_at:ident).+);* $(;)?) => { $(
        impl Created for $record {
            fn created(&self) -> (Option<Timestamp>, &str) {
                (self.$($created_at).+.into(), &self.$id)
            }
        }
    )* };
}

created! {
    Bottle, id, created_at;
    Container, id, status.created_at;
    Network, name, created_at;
    Pod, id, created_at;
    ReplicaSet, id, created_at;
    Service, id, created_at;
}

/// Oldest first; objects created at the same moment by id.
pub fn by_creation<R: Created>(rows: impl IntoIterator<Item = Arc<R>>) -> Vec<Arc<R>> {
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|a, b| a.created().cmp(&b.created()));
    rows
}
