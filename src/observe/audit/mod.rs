//! The audit log: requests, who made them and their outcome (`docs/spec/api.md` 21).
//!
//! Owns `raind_audit.jsonl`, rotated like the other logs. Records are queued and written by one thread, so that no
//! request waits for the disk. If a line cannot be written, it goes to the daemon's own log together with the error;
//! nothing is lost silently. [`AuditLog::flush`] at shutdown waits for the queue.

mod record;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use crate::observe::logfile::RotatingFile;
pub use record::{Actor, Outcome, Record, RequestInfo, ResultInfo, RuntimeInfo, Severity, Target};

/// The file, below the log directory.
pub const FILE: &str = "raind_audit.jsonl";

/// Handle to the log. Clones share it.
#[derive(Clone)]
pub struct AuditLog(Arc<Shared>);

struct Shared {
    writer: mpsc::Sender<Message>,
    node: String,
    /// First part of generated correlation ids: host name and a random word for this run.
    run: String,
    requests: AtomicU32,
}

enum Message {
    Record(Box<Record>),
    Flush(oneshot::Sender<()>),
    Reopen,
}

impl AuditLog {
    /// Opens `<log_dir>/raind_audit.jsonl` and starts its writer. `node` is the host name.
    pub fn open(log_dir: &Path, node: &str) -> std::io::Result<Self> {
        let file = RotatingFile::open(&log_dir.join(FILE))?;
        let (writer, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("audit-writer".into())
            .spawn(move || write_all(file, &queue))?;
        let word: String = rand::random_iter::<u8>()
            .filter(u8::is_ascii_alphanumeric)
            .take(10)
            .map(char::from)
            .collect();
        Ok(Self(Arc::new(Shared {
            writer,
            node: node.to_owned(),
            run: format!("{node}/{word}"),
            requests: AtomicU32::new(0),
        })))
    }

    /// Queues a record. Does not block.
    pub fn record(&self, record: Record) {
        if let Err(mpsc::SendError(Message::Record(record))) = self.0.writer.send(Message::Record(Box::new(record))) {
            tracing::error!(?record, "audit record lost: the writer has ended");
        }
    }

    /// Waits until everything recorded so far is on disk.
    pub async fn flush(&self) {
        let (done, waiting) = oneshot::channel();
        if self.0.writer.send(Message::Flush(done)).is_ok() {
            let _ = waiting.await;
        }
    }

    /// Opens the file again after an operator has moved it away.
    pub fn reopen(&self) {
        let _ = self.0.writer.send(Message::Reopen);
    }

    /// A correlation id for a request without one: `<host>/<random>-<6-digit counter>`.
    pub fn next_correlation_id(&self) -> String {
        let n = self.0.requests.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        format!("{}-{n:06}", self.0.run)
    }

    /// The description of this process in records.
    pub fn runtime(&self) -> RuntimeInfo {
        RuntimeInfo {
            component: "condenser",
            node: self.0.node.clone(),
        }
    }
}

/// The loop of the writer thread. It ends when the last handle is dropped.
fn write_all(mut file: RotatingFile, queue: &mpsc::Receiver<Message>) {
    for message in queue {
        match message {
            Message::Record(record) => write_one(&mut file, &record),
            Message::Flush(done) => {
                if let Err(error) = file.sync() {
                    tracing::error!(%error, "cannot flush the audit log");
                }
                let _ = done.send(());
            }
            Message::Reopen => {
                if let Err(error) = file.reopen() {
                    tracing::error!(%error, "cannot reopen the audit log");
                }
            }
        }
    }
}

fn write_one(file: &mut RotatingFile, record: &Record) {
    let mut line = match serde_json::to_vec(record) {
        Ok(line) => line,
        Err(error) => return tracing::error!(%error, ?record, "cannot write an audit record"),
    };
    line.push(b'\n');
    // Open the file again and retry once: it may be on a disk that was remounted, or its directory was removed.
    let written = file.write_line(&line).or_else(|_| {
        file.reopen()?;
        file.write_line(&line)
    });
    if let Err(error) = written {
        let record = String::from_utf8_lossy(&line);
        tracing::error!(%error, record = record.trim_end(), "cannot write the audit log");
    }
}

#[cfg(test)]
mod tests;
