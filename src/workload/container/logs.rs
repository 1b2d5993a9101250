//! The log of a container (`docs/spec/api.md` 5.10): its output or, with a terminal, the terminal's output.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::Stream;
use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;

use super::{ContainerError, ContainerService, blocking};
use crate::model::{Change, Container, ContainerState, Kind, Object};
use crate::observe::logs;
use crate::observe::logs::{Follow, LogReader, Selection, View};

/// Default number of lines.
pub const DEFAULT_LINES: i64 = 100;
/// Maximum number of lines counted from the end.
pub const MAX_LINES: usize = 5000;

/// Which part of a log to return, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Only this many lines from the end; a negative number counts as 0.
    pub lines: Option<i64>,
    /// Only lines written at this time or later.
    pub since: Option<Timestamp>,
    /// Whether each line begins with the time of its write.
    pub timestamps: bool,
    /// Whether to follow the log until the container ends.
    pub follow: bool,
}

impl ContainerService {
    /// Path of the log of a container. Rotated files are beside it.
    pub fn log_path(&self, parameter: &str) -> Result<PathBuf, ContainerError> {
        Ok(self.log_of(&*self.find(parameter)?))
    }

    /// Path of the log of a known container.
    pub fn log_of(&self, container: &Container) -> PathBuf {
        self.dir(&container.id).log(container.spec.tty)
    }

    /// The log in chunks, which are read on demand. A missing log is empty.
    pub async fn log(
        &self,
        parameter: &str,
        request: LogRequest,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, ContainerError> {
        let container = self.find(parameter)?;
        let path = self.dir(&container.id).log(container.spec.tty);
        let view = request.view()?;
        let follow = view.follow.then(|| Follow {
            watcher: self.0.services.watcher.clone(),
            ended: Box::pin(self.clone().run_ended(container.id.clone())),
        });
        let reader = blocking(move || Ok(LogReader::open(&path, &view)?)).await?;
        Ok(logs::stream(reader, follow))
    }

    /// Returns when the run has ended or the container is gone, even if it has been started again since.
    pub(super) async fn run_ended(self, id: String) {
        let mut commits = self.0.services.store.subscribe();
        let runs = || {
            let snapshot = self.snapshot();
            let container = snapshot.containers().get(&id);
            container.is_some_and(|container| container.status.state != ContainerState::Stopped)
        };
        while runs() {
            loop {
                match commits.recv().await {
                    Ok(commit) if commit.changes.iter().any(|change| ends(change, &id)) => return,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }
}

impl LogRequest {
    fn view(&self) -> Result<View, ContainerError> {
        let lines = self.lines.map(|lines| usize::try_from(lines).unwrap_or(0));
        if lines.is_some_and(|lines| lines > MAX_LINES) {
            return Err(ContainerError::TooManyLines(MAX_LINES));
        }
        Ok(View {
            selection: Selection {
                lines,
                since: self.since,
            },
            timestamps: self.timestamps,
            follow: self.follow,
        })
    }
}

/// Whether this change stops or removes the container.
fn ends(change: &Change, id: &str) -> bool {
    if change.kind != Kind::Container || change.id != id {
        return false;
    }
    match &change.new {
        Some(Object::Container(container)) => container.status.state == ContainerState::Stopped,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_within_limits() {
        let lines = |lines| {
            let request = LogRequest {
                lines,
                ..LogRequest::default()
            };
            request
                .view()
                .map(|view| view.selection.lines)
                .map_err(|e| e.to_string())
        };
        assert_eq!(lines(None), Ok(None));
        assert_eq!(lines(Some(-1)), Ok(Some(0)));
        assert_eq!(lines(Some(5000)), Ok(Some(5000)));
        assert_eq!(lines(Some(5001)), Err("invalid tail lines: max=5000".into()));
    }
}
