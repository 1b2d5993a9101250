//! The controller of what is left: it takes up again what an operation, a start or a removal could not finish.
//!
//! A failed removal keeps its row, and with it an address, a name and ports that nobody can use. Every resync looks for
//! such rows and for leftovers without a row; what fails is tried again, each time later. A start whose outcome could not
//! be written (a full disk) leaves a row in `created`: as long as these live they are compared with what the runtime says.

use std::fmt::{self, Display};
use std::time::Duration;

use super::{is_idle, may_run};
use crate::model::{Change, Container, Operation, Snapshot};
use crate::ops::controller::{Backoff, Outcome, Reconcile};
use crate::workload::container::ContainerService;

/// How the delay grows when something cannot be removed.
pub const SWEEPS: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_secs(8),
};

/// Removes what is left of containers, while the daemon runs.
pub struct Sweeper(pub ContainerService);

/// What there may be to sweep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Litter {
    /// A row that an operation was at work on, or that may have been started, by its id.
    Row(String),
    /// Things without a row.
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

    /// Nothing: an operation that has just begun or failed is somebody's.
    fn concerned(&self, _: &Change, _: &Snapshot) -> Vec<Litter> {
        Vec::new()
    }

    fn all(&self, now: &Snapshot) -> Vec<Litter> {
        let rows = now.containers().iter().filter(|row| is_litter(row));
        rows.map(|row| Litter::Row(row.id.clone()))
            .chain([Litter::Leftovers])
            .collect()
    }

    async fn reconcile(&self, litter: &Litter) -> Outcome {
        let is_clean = match litter {
            Litter::Row(id) => self.0.unwind(id).await.is_ok(),
            Litter::Leftovers => self.0.remove_leftovers().await,
        };
        if is_clean { Outcome::Done } else { Outcome::Failed }
    }
}

/// A build holds no lock while its command runs; only once its removal has begun nobody else is going to end it.
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
    use crate::model::fixtures::container;

    #[test]
    fn a_running_build_is_nobodys_litter() {
        let row = |id: &str, operation| {
            let mut row = container(id, id).in_state(ContainerState::Running);
            row.journal.operation = operation;
            is_litter(&row)
        };
        use Operation::{Create, Delete};
        let build = "build-01kg2cnf0ytv";
        assert_eq!(
            [None, Some(Create), Some(Delete)].map(|o| row(build, o)),
            [false, false, true]
        );
        let plain = "01kg2cnf0ytv";
        assert_eq!(
            [None, Some(Create), Some(Delete)].map(|o| row(plain, o)),
            [false, true, true]
        );
    }
}
