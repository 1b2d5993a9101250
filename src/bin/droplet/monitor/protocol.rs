//! The messages between `create` and the monitor that it forks.

use serde::{Deserialize, Serialize};

/// The byte that `create` sends to confirm the container.
pub const CONFIRMED: u8 = b'k';

/// The monitor's report to `create`: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// Init waits for the start signal.
    Ready { pid: i32 },
    /// Init could not be set up. Nothing is left of it.
    Failed { reason: String, status: i32 },
}
