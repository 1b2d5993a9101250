//! Why a build failed. The messages are part of the contract (`docs/spec/api.md` 7.4); the API adds its prefix.

use super::context::ContextError;
use super::file::FileError;
use crate::base::cause::Cause;
use crate::image::ImageError;
use crate::image::tree::TreeError;
use crate::model::Exit;
use crate::ops::task::Unfinished;
use crate::workload::container::ContainerError;

/// Why a build failed. A failed build leaves nothing behind but its cache.
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
    File(#[from] FileError),
    /// The file of ignored paths is invalid.
    #[error("{path}: {problem}")]
    #[allow(missing_docs)]
    Ignore { path: String, problem: String },
    /// The requested stage does not exist.
    #[error("there is no stage {name:?}; the build file has {known}")]
    #[allow(missing_docs)]
    NoTarget { name: String, known: String },
    /// The name of a new image cannot be a digest, which depends on the content.
    #[error("invalid image reference: {0}; a built image needs a tag, not a digest")]
    DigestTag(String),
    /// A platform that is none.
    #[error("invalid platform {0:?}; write it as os/architecture, such as linux/amd64")]
    NoPlatform(String),
    /// A platform that this host cannot run.
    #[error("platform {0} cannot be built here: its programs do not run on this host")]
    OtherPlatform(String),
    /// A step failed; where it stands.
    #[error("{file} line {line} ({instruction}): {source}")]
    #[allow(missing_docs)]
    At {
        file: String,
        line: u32,
        instruction: &'static str,
        #[source]
        source: Box<BuildError>,
    },
    /// The source of a copy does not exist.
    #[error("{path}: no such file or directory in {place}")]
    #[allow(missing_docs)]
    NoSource { path: String, place: String },
    /// A step cannot be carried out: why.
    #[error("{0}")]
    Refused(String),
    /// A secret is required and was not given.
    #[error("the secret {0:?} was not given; send it with the header X-Build-Secret: {0}=<base64>")]
    NoSecret(String),
    /// `RUN` in an image without any files.
    #[error("RUN requires files in the image; copy some first")]
    NothingToRun,
    /// A file cannot be downloaded.
    #[error("{url}: {problem}")]
    #[allow(missing_docs)]
    Download { url: String, problem: String },
    /// A build makes more than it may.
    #[error("the build has made more than {0} bytes of files (max_build_bytes)")]
    TooMuch(u64),
    /// A command failed.
    #[error(
        "RUN command failed: {}, at={place}\n--- build log tail ---\n{output}",
        described(exit)
    )]
    #[allow(missing_docs)]
    Run { exit: Exit, place: String, output: String },
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
            TreeError::Refused(message) => Self::Refused(message),
            TreeError::System(message) => Self::Io(Cause::new(message)),
        }
    }
}

impl From<std::io::Error> for BuildError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.into())
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

    /// With its place in the build file, unless that is known or does not matter.
    pub(super) fn at(self, file: &str, line: u32, instruction: &'static str) -> Self {
        match self {
            Self::At { .. } | Self::File(_) | Self::Run { .. } | Self::RunTime(_) | Self::Cancelled => self,
            Self::Io(_) | Self::Unfinished { .. } => self,
            // Of a base image: there it is no place of this file.
            source if line == 0 => source,
            source => Self::At {
                file: file.to_owned(),
                line,
                instruction,
                source: Box::new(source),
            },
        }
    }

    /// Whether the context is too large.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Context(ContextError::TooLarge(_)))
    }

    /// Whether the failure is not the client's fault.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Context(ContextError::System(_)))
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
            place: "Dripfile:3".into(),
            output: "oops\n".into(),
        };
        assert_eq!(
            run("Error", "").to_string(),
            "RUN command failed: exit_code=7, reason=Error, at=Dripfile:3\n--- build log tail ---\noops\n"
        );
        assert_eq!(
            run("", "m").to_string(),
            "RUN command failed: exit_code=7, message=m, at=Dripfile:3\n--- build log tail ---\noops\n"
        );
    }

    #[test]
    fn a_place_is_told_once() {
        let error = BuildError::NothingToRun
            .at("Dripfile", 3, "RUN")
            .at("Dripfile", 9, "COPY");
        assert!(
            error.to_string().starts_with("Dripfile line 3 (RUN): RUN requires"),
            "{error}"
        );
        let error = BuildError::NothingToRun.at("", 0, "RUN");
        assert!(matches!(error, BuildError::NothingToRun));
    }
}
