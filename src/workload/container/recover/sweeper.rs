//! The sweeper: retries the cleanup that an operation, a start or a removal could not finish.
//!
//! A failed removal keeps its row, and with it an address, a name and ports that nobody else can use. Every resync
//! finds such rows and leftovers without a row, and retries failures with a growing delay. If the outcome of a start
//! could not be written (a full disk), the row stays `created`; while its process lives, it is compared with the
//! runtime's state.

use std::fmt::{self, Display};
use std::time::Duration;

use super::{is_idle, may_run};
use crate::model::{Change, Container, Kind, Operation, Snapshot};
use crate::ops::conditions::Failure;
use crate::ops::controller::{Backoff, Outcome, Reconcile};
use crate::workload::container::ContainerService;

/// Backoff of failed removals.
pub const SWEEPS: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_secs(8),
};

/// Removes leftovers of containers while the daemon runs.
pub struct Sweeper(pub ContainerService);

/// A possible leftover.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Litter {
    /// The id of a row whose operation was interrupted, or that may have been started.
    Row(String),
    /// Objects without a row.
    Leftovers,
}

impl Display for Litter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(id) => f.write_str(id),
            Self::Leftovers => f.write_str("leftovers"),
        }
    }
}

impl Reconcile for Sweeper {
    type Key = Litter;

    /// Nothing: an operation that has just begun or failed is still handled by its caller.
    fn concerned(&self, _: &Change, _: &Snapshot) -> Vec<Litter> {
        Vec::new()
    }

    fn all(&self, now: &Snapshot) -> Vec<Litter> {
        let rows = now.containers().iter().filter(|row| is_litter(row));
        rows.map(|row| Litter::Row(row.id.clone()))
            .chain([Litter::Leftovers])
            .collect()
    }

    fn subject(&self, litter: &Litter) -> Option<(Kind, String)> {
        match litter {
            Litter::Row(id) => Some((Kind::Container, id.clone())),
            Litter::Leftovers => None,
        }
    }

    async fn reconcile(&self, litter: &Litter) -> Outcome {
        match litter {
            Litter::Row(id) => match self.0.unwind(id).await {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed(Failure::new(error.reason(), &error)),
            },
            Litter::Leftovers if self.0.remove_leftovers().await => Outcome::Done,
            Litter::Leftovers => Outcome::Failed(Failure::new("CleanupFailed", &"leftovers cannot be removed")),
        }
    }
}

/// A build holds no lock while its command runs; it is litter only once its removal has begun.
fn is_litter(row: &Container) -> bool {
    match row.is_build() {
        true => row.journal.operation == Some(Operation::Delete),
        false => !is_idle(row) || may_run(row),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ContainerState;
    use crate::model::Role;
    use crate::model::fixtures::container;

    #[test]
    fn a_running_build_is_nobodys_litter() {
        let row = |role: &Role, operation| {
            let mut row = container("01kg2cnf0ytv", "x").in_state(ContainerState::Running);
            row.role = role.clone();
            row.journal.operation = operation;
            is_litter(&row)
        };
        use Operation::{Create, Delete};
        assert_eq!(
            [None, Some(Create), Some(Delete)].map(|o| row(&Role::Build, o)),
            [false, false, true]
        );
        assert_eq!(
            [None, Some(Create), Some(Delete)].map(|o| row(&Role::Alone, o)),
            [false, true, true]
        );
    }
}
