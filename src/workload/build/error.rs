//! Why a build failed. The messages are part of the contract (`docs/spec/api.md` 7.4); the API adds its prefix.

use super::context::ContextError;
use super::dripfile::DripfileError;
use crate::base::cause::Cause;
use crate::image::ImageError;
use crate::image::tree::TreeError;
use crate::model::Exit;
use crate::ops::task::Unfinished;
use crate::workload::container::ContainerError;

/// Why a build failed. A failed build leaves nothing behind.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The new image has no name.
    #[error("missing tag query: name the new image, as in ?tag=team/app:1.0")]
    NoTag,
    /// The context is refused.
    #[error("invalid build context: {0}")]
    Context(#[from] ContextError),
    /// The build file is asked for outside of the context.
    #[error("invalid dripfile path: name a file in the build context, relative to its root and without ..")]
    DripfilePath,
    /// The context has no such build file.
    #[error("{0}: no such build file in the build context; name it with the query dripfile")]
    NoDripfile(String),
    /// The build file is too large.
    #[error("{path}: the build file is longer than {limit} bytes")]
    #[allow(missing_docs)]
    LongDripfile { path: String, limit: u64 },
    /// The build file is invalid.
    #[error(transparent)]
    Dripfile(#[from] DripfileError),
    /// The name of a new image cannot be a digest, which depends on the content.
    #[error("invalid image reference: {0}; a built image needs a tag, not a digest")]
    DigestTag(String),
    /// The source of a copy does not exist.
    #[error("{0}: no such file or directory in the build context")]
    NoSource(String),
    /// A path of the image does not suit the step.
    #[error("{0}")]
    Files(String),
    /// `RUN` in an image without any files.
    #[error("RUN requires files in the image; copy some first")]
    NothingToRun,
    /// A command failed.
    #[error("RUN command failed: {}\n--- build log tail ---\n{output}", described(exit))]
    #[allow(missing_docs)]
    Run { exit: Exit, output: String },
    /// A command exceeded the time limit.
    #[error("RUN command failed: it took longer than {0} s (build_step_seconds)")]
    RunTime(u64),
    /// The client has disconnected, or the daemon is stopping.
    #[error("the build was cancelled")]
    Cancelled,
    /// An error of the base image or of a layer.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An error of the container of a `RUN`.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// An error of the daemon's files.
    #[error("{0}")]
    Io(#[source] Cause),
    /// The build file cannot be read.
    #[error("{path}: {source}")]
    #[allow(missing_docs)]
    Read { path: String, source: std::io::Error },
    /// Work ended without a result: a defect.
    #[error("{work} unexpectedly: {source}")]
    #[allow(missing_docs)]
    Unfinished { work: &'static str, source: Cause },
}

impl From<Unfinished> for BuildError {
    fn from(unfinished: Unfinished) -> Self {
        Self::Unfinished {
            work: "the operation ended",
            source: unfinished.into(),
        }
    }
}

impl From<TreeError> for BuildError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Refused(message) => Self::Files(message),
            TreeError::System(message) => Self::Io(Cause::new(message)),
        }
    }
}

impl BuildError {
    /// Of work whose task has ended without a result.
    pub(super) fn unfinished(work: &'static str) -> impl Fn(tokio::task::JoinError) -> Self {
        move |error| Self::Unfinished {
            work,
            source: error.into(),
        }
    }
}

fn described(exit: &Exit) -> String {
    let mut text = format!("exit_code={}", exit.code);
    for (name, value) in [("reason", &exit.reason), ("message", &exit.message)] {
        if !value.is_empty() {
            text.push_str(&format!(", {name}={value}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_tells_its_status_and_output() {
        let run = |reason: &str, message: &str| BuildError::Run {
            exit: Exit {
                code: 7,
                reason: reason.into(),
                message: message.into(),
            },
            output: "oops\n".into(),
        };
        assert_eq!(
            run("Error", "").to_string(),
            "RUN command failed: exit_code=7, reason=Error\n--- build log tail ---\noops\n"
        );
        assert_eq!(
            run("", "m").to_string(),
            "RUN command failed: exit_code=7, message=m\n--- build log tail ---\noops\n"
        );
    }
}
