//! What an operation that takes a while tells its caller on the way.

use std::sync::Arc;

use tokio::sync::mpsc;

/// How many events wait for a slow reader before transfers skip some of theirs.
const WAITING: usize = 256;

/// Something that happened during a build, a pull, a push or a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgressEvent {
    /// The operation has entered a phase (`resolving`, `layers`, `committing`).
    Phase(&'static str),
    /// A layer or another blob has moved on. Sent repeatedly; a later one replaces an earlier one of the same digest.
    Transfer(Transfer),
    /// A step of a build begins, is taken from the cache or has ended.
    Step(StepProgress),
    /// Output of a step, as it came from the process.
    Output {
        /// Number of the step in the build, from 1.
        step: u32,
        /// What the process has written, both streams together.
        bytes: Vec<u8>,
    },
}

/// How far the transfer of a blob is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Digest of the blob in the registry or the archive; of a layer that has none yet, its diff id.
    pub digest: Arc<str>,
    /// What is happening with it.
    pub state: TransferState,
    /// Bytes transferred so far.
    pub done: u64,
    /// All bytes; 0 if unknown.
    pub total: u64,
}

/// What happens with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferState {
    /// It has not begun.
    Waiting,
    /// Bytes arrive and are unpacked.
    Downloading,
    /// Bytes are sent.
    Uploading,
    /// It is complete.
    Done,
    /// It was there already.
    Present,
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepProgress {
    /// Its number in the build, from 1.
    pub step: u32,
    /// Number of steps of the build.
    pub total: u32,
    /// Name or number of its stage.
    pub stage: Arc<str>,
    /// The instruction, as in the build file.
    pub text: Arc<str>,
    /// What has happened.
    pub state: StepState,
}

/// What has happened to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepState {
    /// It begins.
    Started,
    /// Its result was in the cache.
    Cached,
    /// It has ended well.
    Done,
    /// It has failed.
    Failed,
}

/// Where an operation reports its progress. Clones report to the same reader.
#[derive(Debug, Clone, Default)]
pub struct Reporter {
    reader: Option<mpsc::Sender<ProgressEvent>>,
    without_phases: bool,
}

impl Reporter {
    /// Reports to nobody.
    pub fn silent() -> Self {
        Self::default()
    }

    /// For an operation that is a part of another one, which has its own phases: reports everything but phases.
    pub fn for_part(&self) -> Self {
        Self {
            reader: self.reader.clone(),
            without_phases: true,
        }
    }

    /// A reporter and the events that it reports. The operation goes on when the receiver is dropped.
    pub fn channel() -> (Self, mpsc::Receiver<ProgressEvent>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let reporter = Self {
            reader: Some(sender),
            without_phases: false,
        };
        (reporter, receiver)
    }

    /// Whether somebody reads; if not, events need not be made.
    pub fn is_heard(&self) -> bool {
        self.reader.as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// Reports an event that must not be lost: waits for a slow reader.
    pub async fn report(&self, event: ProgressEvent) {
        if let Some(sender) = self.reader_of(&event) {
            // An error means that nobody reads any more.
            sender.send(event).await.unwrap_or_default();
        }
    }

    /// Reports an event that a later one replaces: skips it if the reader is slow. Never waits.
    pub fn report_lossy(&self, event: ProgressEvent) {
        if let Some(sender) = self.reader_of(&event) {
            sender.try_send(event).unwrap_or_default();
        }
    }

    fn reader_of(&self, event: &ProgressEvent) -> Option<&mpsc::Sender<ProgressEvent>> {
        let is_told = !(self.without_phases && matches!(event, ProgressEvent::Phase(_)));
        self.reader.as_ref().filter(|_| is_told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_loses_only_what_may_be_lost() {
        let (reporter, mut events) = Reporter::channel();
        for _ in 0..2 * WAITING {
            reporter.report_lossy(ProgressEvent::Phase("layers"));
        }
        let certain = reporter.report(ProgressEvent::Phase("committing"));
        let reading = async {
            let mut read = Vec::new();
            while read.last() != Some(&ProgressEvent::Phase("committing")) {
                read.extend(events.recv().await);
            }
            read.len()
        };
        let ((), read) = tokio::join!(certain, reading);
        assert_eq!(read, WAITING + 1);
        drop(events);
        assert!(!reporter.is_heard());
        reporter.report(ProgressEvent::Phase("resolving")).await;
    }

    #[tokio::test]
    async fn a_part_has_no_phases() {
        let (reporter, mut events) = Reporter::channel();
        let output = ProgressEvent::Output {
            step: 1,
            bytes: vec![1],
        };
        reporter.for_part().report(ProgressEvent::Phase("layers")).await;
        reporter.for_part().report(output.clone()).await;
        drop(reporter);
        assert_eq!((events.recv().await, events.recv().await), (Some(output), None));
    }

    #[tokio::test]
    async fn nobody_needs_to_listen() {
        Reporter::silent().report(ProgressEvent::Phase("resolving")).await;
        assert!(!Reporter::silent().is_heard());
    }
}
