//! `raind_metrics.jsonl`: one record per running container every ten seconds (`docs/spec/observability.md` 4), rotated
//! like the other logs. Output only: nothing is ever read from it. Blocks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::cgroup::Usage;
use super::sample::Sample;
use crate::base::time::rfc3339;
use crate::model::Container;
use crate::observe::logfile::RotatingFile;

/// The file, below the log directory.
pub const FILE: &str = "raind_metrics.jsonl";

/// The log.
pub struct MetricsLog {
    path: PathBuf,
    /// `None` after an error: opened again before the next write.
    file: Option<RotatingFile>,
}

/// One line.
#[derive(Serialize)]
struct Record<'a> {
    generated_ts: String,
    container_id: &'a str,
    container_name: &'a str,
    spiffe_id: &'a str,
    pid: i32,
    status: String,
    cgroup_path: &'a str,
    #[serde(flatten)]
    usage: &'a Usage,
}

impl MetricsLog {
    /// Opens `<log_dir>/raind_metrics.jsonl`. If that fails, it is tried again later.
    pub fn open(log_dir: &Path) -> Self {
        let path = log_dir.join(FILE);
        let opened = RotatingFile::open(&path);
        let file = opened.inspect_err(|error| tracing::warn!(%error, "cannot open the metrics log; retrying"));
        Self { file: file.ok(), path }
    }

    /// Appends one line per sample. After an error the remaining lines are lost, which the daemon's own log reports;
    /// the next call opens the file again, because the old one may have been on a disk that was remounted. A file
    /// that logrotate moved away is created again.
    pub fn write(&mut self, samples: &[(Arc<Container>, Sample)]) {
        // If the file cannot be followed, the first write fails and reports it.
        if self.file.as_mut().is_some_and(|file| file.follow_name().is_err()) {
            self.file = None;
        }
        for (n, (container, sample)) in samples.iter().enumerate() {
            if let Err(error) = self.write_one(container, sample) {
                self.file = None;
                tracing::warn!(%error, lost = samples.len() - n, "cannot write the metrics log");
                return;
            }
        }
    }

    fn write_one(&mut self, container: &Container, sample: &Sample) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&Record::new(container, sample))?;
        line.push(b'\n');
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(RotatingFile::open(&self.path)?),
        };
        file.write_line(&line)
    }
}

impl<'a> Record<'a> {
    fn new(container: &'a Container, sample: &'a Sample) -> Self {
        Self {
            generated_ts: sample.taken_at.map(rfc3339).unwrap_or_default(),
            container_id: &container.id,
            container_name: &container.name,
            spiffe_id: container.status.spiffe_id.as_deref().unwrap_or_default(),
            pid: container.status.process.as_ref().map_or(0, |p| p.pid),
            status: container.status.state.to_string(),
            cgroup_path: &sample.cgroup_path,
            usage: &sample.usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::model::ContainerState;
    use crate::model::fixtures::container;

    const RECORDED: &str = include_str!("../../../tests/fixtures/golden/log-metrics.jsonl");

    fn sample() -> Sample {
        let usage = Usage {
            cpu_usage_usec: 1_234_567,
            memory_max_bytes: Some(1 << 30),
            ..Usage::default()
        };
        Sample {
            taken_at: Some("2026-11-23T23:52:29.072509167Z".parse().unwrap()),
            cgroup_path: "/sys/fs/cgroup/raind/01m85d6ag2dj".into(),
            usage,
        }
    }

    fn running() -> Arc<Container> {
        let mut row = container("01m85d6ag2dj", "web").in_state(ContainerState::Running);
        row.status.spiffe_id = Some("spiffe://raind/container/01m85d6ag2dj".into());
        Arc::new(row)
    }

    #[test]
    fn a_record_has_the_keys_and_types_of_the_original() {
        let recorded: Map<String, Value> = serde_json::from_str(RECORDED).unwrap();
        let written = serde_json::to_string(&Record::new(&running(), &sample())).unwrap();
        let written_map: Map<String, Value> = serde_json::from_str(&written).unwrap();
        let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&written_map), keys(&recorded));
        for (key, value) in &recorded {
            assert_eq!(
                std::mem::discriminant(value),
                std::mem::discriminant(&written_map[key]),
                "{key}"
            );
        }
        for key in [
            "container_id",
            "container_name",
            "spiffe_id",
            "status",
            "cgroup_path",
            "cpu_usage_usec",
        ] {
            assert_eq!(written_map[key], recorded[key], "{key}");
        }
    }

    #[test]
    fn a_log_that_could_not_be_opened_is_opened_later() {
        let dir = tempfile::tempdir().unwrap();
        let obstacle = dir.path().join("log");
        std::fs::write(&obstacle, "a file where the directory should be").unwrap();
        let mut log = MetricsLog::open(&obstacle);
        let samples = [(running(), sample()), (running(), sample())];
        log.write(&samples);
        std::fs::remove_file(&obstacle).unwrap();
        log.write(&samples);
        log.write(&samples[..1]);
        let text = std::fs::read_to_string(obstacle.join(FILE)).unwrap();
        assert_eq!(text.lines().count(), 3);
        std::fs::rename(obstacle.join(FILE), obstacle.join("moved")).unwrap();
        log.write(&samples);
        let anew = std::fs::read_to_string(obstacle.join(FILE)).unwrap();
        assert_eq!(anew.lines().count(), 2, "{anew}");
        assert!(
            text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()),
            "{text}"
        );
    }
}
