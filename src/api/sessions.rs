//! Tasks that outlive their request.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks that outlive their request: terminals and streamed answers.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// Stops them all.
    pub stop: CancellationToken,
    /// The shutdown waits for it after `stop`.
    pub tasks: TaskTracker,
}
