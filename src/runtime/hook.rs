//! The reports of runtime hooks to the daemon (`docs/spec/api.md` 16, `docs/spec/runtime.md` 6.3).

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// The HTTP header that names the event of a report, in lower case.
pub const EVENT_HEADER: &str = "x-hook-event";

/// The events that a runtime reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookEvent {
    /// `create` has begun.
    CreateRuntime,
    /// The container is set up and waits for `start`.
    CreateContainer,
    /// The process was released.
    Poststart,
    /// The process exited (not an OCI hook).
    StopContainer,
    /// The runtime has finished deleting the container.
    Poststop,
}

impl HookEvent {
    /// The value of the `X-Hook-Event` header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::StopContainer => "stopContainer",
            Self::Poststop => "poststop",
        }
    }
}

impl fmt::Display for HookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HookEvent {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [
            Self::CreateRuntime,
            Self::CreateContainer,
            Self::Poststart,
            Self::StopContainer,
            Self::Poststop,
        ]
        .into_iter()
        .find(|event| event.as_str() == word)
        .ok_or(())
    }
}

/// The body of a report, as far as the daemon reads it. Unknown fields are ignored.
///
/// `status` and `pid` are not trusted: the new state follows from the event, the pid from `state.json`
/// (`docs/spec/runtime.md` 6.6).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct HookState {
    /// Container id.
    #[serde(default)]
    pub id: String,
    /// `creating`, `created`, `running` or `stopped`.
    #[serde(default)]
    pub status: String,
    /// Process id; ignored.
    #[serde(default)]
    pub pid: i64,
    /// Exit status; read for [`HookEvent::StopContainer`] only.
    #[serde(default)]
    pub exit_code: i32,
    /// Reason of the exit.
    #[serde(default)]
    pub reason: String,
    /// Message of the exit.
    #[serde(default)]
    pub message: String,
}
