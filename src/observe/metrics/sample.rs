//! What a container used at one moment.

use jiff::Timestamp;

use super::cgroup::Usage;

/// What is known of a container's use of resources.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// When it was measured. `None`: never, and all else is zero.
    pub taken_at: Option<Timestamp>,
    /// Directory of its cgroup; in version 1 that of the memory controller.
    pub cgroup_path: String,
    /// The figures.
    pub usage: Usage,
}

impl Sample {
    /// The same for a container that has ended.
    pub(super) fn at_rest(self) -> Self {
        Self {
            usage: self.usage.at_rest(),
            ..self
        }
    }
}
