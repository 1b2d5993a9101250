//! The runtime's audit log (`docs/spec/runtime.md` 2.4): one JSON object per line in `<root>/../log/droplet_audit.log`.
//!
//! Every verb writes one record at its end, every hook one of its own; the monitor writes the record of init, which
//! cannot see the host's file system any more. Writing never fails a verb: what cannot be written goes to stderr.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config::{Capabilities, Config, NamespaceKind};
use crate::container::Container;
use crate::failure::Failure;

/// A longer record is dropped.
const MAX_RECORD: usize = 64 * 1024;
/// The file is cut to its last so many lines.
const MAX_LINES: usize = 15_000;
/// No record is shorter, so a file below `MAX_LINES` times this need not be counted.
const MIN_RECORD: u64 = 128;

/// The log cannot be opened. Nothing is done that could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error("audit logger init failed: {0}")]
pub struct AuditError(#[from] std::io::Error);

/// The open log.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
}

/// Which verb or process a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words of the log")]
pub enum Event {
    Create,
    Start,
    Kill,
    Delete,
    Exec,
    Shim,
    ExecShim,
    Init,
    Hook,
}

/// One line. Absent means unknown or empty.
#[derive(Debug, Serialize)]
pub struct Record {
    ts: String,
    log_version: &'static str,
    event: Event,
    runtime: &'static str,
    runtime_version: &'static str,
    container_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exec_command: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oci: Option<Oci>,
    #[serde(skip_serializing_if = "is_zero")]
    pid: i32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    signals: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<BTreeMap<&'static str, bool>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seccomp: Option<Seccomp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lsm: Option<Lsm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<HookRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorRecord>,
}

#[derive(Debug, Serialize)]
struct Oci {
    config_sha256: String,
    process_arg0: String,
}

#[derive(Debug, Serialize)]
struct Seccomp {
    default_action: String,
}

#[derive(Debug, Serialize)]
struct Lsm {
    apparmor: AppArmor,
}

#[derive(Debug, Serialize)]
struct AppArmor {
    profile: String,
    /// Present when it was to be applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<bool>,
}

#[derive(Debug, Serialize)]
struct ErrorRecord {
    stage: &'static str,
    message: String,
}

/// `hook` of a record.
#[derive(Debug, Default, Serialize)]
pub struct HookRecord {
    /// `createRuntime`, …
    pub phase: &'static str,
    /// Program.
    pub path: PathBuf,
    /// Of the arguments joined with commas.
    pub args_sha256: String,
    /// Of what it got on stdin.
    pub stdin_sha256: String,
    /// Length of that.
    pub stdin_bytes: usize,
    /// -1 when it could not be run.
    #[serde(skip_serializing_if = "is_zero")]
    pub exit_code: i32,
    /// Milliseconds.
    pub duration_ms: u128,
    /// Last 1024 bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stderr_tail: String,
}

impl Record {
    /// A record about a container.
    pub fn new(event: Event, container_id: &str) -> Self {
        Self {
            ts: crate::clock::now().strftime("%Y-%m-%dT%H:%M:%S%.9f%:z").to_string(),
            log_version: "0.1.0",
            event,
            runtime: "droplet",
            runtime_version: "0.1.0",
            container_id: container_id.to_owned(),
            bundle: None,
            config_path: None,
            state_path: None,
            exec_command: Vec::new(),
            oci: None,
            pid: 0,
            signals: Vec::new(),
            namespaces: None,
            capabilities: None,
            seccomp: None,
            lsm: None,
            hook: None,
            result: None,
            error: None,
        }
    }

    /// Adds where the container is and what its `config.json` is now.
    pub fn container(mut self, container: &Container) -> Self {
        self.bundle = Some(container.dir.path().to_owned());
        self.config_path = Some(container.dir.config());
        self.state_path = Some(container.dir.state());
        self.oci = Some(Oci {
            config_sha256: std::fs::read(container.dir.config()).map_or_else(|_| String::new(), |text| sha256(&text)),
            process_arg0: String::new(),
        });
        self
    }

    /// Adds what the configuration asks for.
    pub fn config(mut self, config: &Config) -> Self {
        let oci = self.oci.get_or_insert(Oci {
            config_sha256: String::new(),
            process_arg0: String::new(),
        });
        oci.process_arg0 = config.process.args.first().cloned().unwrap_or_default();
        let listed = |kind| config.namespace(kind).is_some();
        self.namespaces = Some(BTreeMap::from([
            ("mount", listed(NamespaceKind::Mount)),
            ("network", listed(NamespaceKind::Network)),
            ("uts", listed(NamespaceKind::Uts)),
            ("pid", listed(NamespaceKind::Pid)),
            ("ipc", listed(NamespaceKind::Ipc)),
            ("user", listed(NamespaceKind::User)),
            ("cgroup", listed(NamespaceKind::Cgroup)),
        ]));
        self.capabilities = Some(config.process.capabilities.clone());
        self.seccomp = config.linux.seccomp.as_ref().map(|seccomp| Seccomp {
            default_action: seccomp.default_action.clone(),
        });
        self.lsm = config.apparmor_profile().map(|profile| Lsm {
            apparmor: AppArmor {
                profile: profile.to_owned(),
                applied: None,
            },
        });
        self
    }

    /// Adds whether the AppArmor profile that the configuration asks for is applied (S2).
    pub fn confined(mut self, confined: bool) -> Self {
        if let Some(lsm) = &mut self.lsm {
            lsm.apparmor.applied = Some(confined);
        }
        self
    }

    /// Adds the process in question.
    pub fn pid(mut self, pid: i32) -> Self {
        self.pid = pid;
        self
    }

    /// Adds the signals that were sent, without `SIG`.
    pub fn signals(mut self, signals: Vec<String>) -> Self {
        self.signals = signals;
        self
    }

    /// Adds the command of an exec.
    pub fn exec_command(mut self, command: Vec<String>) -> Self {
        self.exec_command = command;
        self
    }

    /// Adds what became of a hook.
    pub fn hook(mut self, hook: HookRecord) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Adds how it ended.
    pub fn result(mut self, failure: Option<&Failure>) -> Self {
        self.result = Some(if failure.is_some() { "fail" } else { "success" });
        self.error = failure.map(|failure| ErrorRecord {
            stage: failure.stage,
            message: failure.message.clone(),
        });
        self
    }
}

impl AuditLog {
    /// The log beside the container directories below `root`. Fails when it cannot be written.
    pub fn open(root: &Path) -> Result<Self, AuditError> {
        let directory = root.parent().unwrap_or(root).join("log");
        fs_err::create_dir_all(&directory)?;
        let log = Self {
            path: directory.join("droplet_audit.log"),
        };
        log.file()?;
        Ok(log)
    }

    /// Appends a record.
    pub fn write(&self, record: &Record) {
        let written = serde_json::to_vec(record)
            .map_err(std::io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                if line.len() > MAX_RECORD {
                    return Err(std::io::Error::other(format!("record of {} bytes dropped", line.len())));
                }
                // Shared with other writers, not with `trim`: no line gets lost in a file that is being replaced.
                let mut file = self.locked(FlockOperation::LockShared)?;
                file.write_all(&line)
            });
        if let Err(error) = written {
            crate::output::complain(format_args!("audit log: {error}"));
        }
    }

    /// Cuts the file to its last lines. Reads all of it, so only the monitor does this, when nobody waits for it.
    pub fn trim(&self) -> std::io::Result<()> {
        if fs_err::metadata(&self.path)?.len() < MAX_LINES as u64 * MIN_RECORD {
            return Ok(());
        }
        let _lock = self.locked(FlockOperation::LockExclusive)?;
        let lines = BufReader::new(fs_err::File::open(&self.path)?).split(b'\n').count();
        let Some(surplus) = lines.checked_sub(MAX_LINES).filter(|surplus| *surplus > 0) else {
            return Ok(());
        };
        let temporary = self.path.with_extension("log.tmp");
        let mut output = std::io::BufWriter::new(options().truncate(true).open(&temporary)?);
        for line in BufReader::new(fs_err::File::open(&self.path)?)
            .split(b'\n')
            .skip(surplus)
        {
            output.write_all(&line?)?;
            output.write_all(b"\n")?;
        }
        output.flush()?;
        fs_err::rename(&temporary, &self.path)
    }

    /// The file, locked, and still the one that the path names.
    fn locked(&self, operation: FlockOperation) -> std::io::Result<File> {
        use std::os::unix::fs::MetadataExt;
        loop {
            let file = self.file()?;
            rustix::io::retry_on_intr(|| flock(&file, operation))?;
            let held = file.metadata()?.ino();
            if fs_err::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == held) {
                return Ok(file);
            }
        }
    }

    fn file(&self) -> std::io::Result<File> {
        Ok(options().append(true).open(&self.path)?.into())
    }
}

/// 0640, never through a symbolic link.
fn options() -> fs_err::OpenOptions {
    let mut options = fs_err::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW);
    options
}

/// Hex digits of the SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("container");
        (dir, root)
    }

    #[test]
    fn a_record_is_one_line_with_the_contracts_keys() {
        let (dir, root) = site();
        let log = AuditLog::open(&root).unwrap();
        let failure = Failure::new("load_spec", "no such file");
        log.write(
            &Record::new(Event::Kill, "abc")
                .signals(vec!["TERM".into()])
                .result(Some(&failure)),
        );
        let text = std::fs::read_to_string(dir.path().join("log/droplet_audit.log")).unwrap();
        let record: serde_json::Value = serde_json::from_str(text.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!(record["event"], "kill");
        assert_eq!(record["signals"][0], "TERM");
        assert_eq!(record["result"], "fail");
        assert_eq!(record["error"]["stage"], "load_spec");
        assert!(record["ts"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
        assert!(record.get("pid").is_none() && record.get("hook").is_none());
    }

    #[test]
    fn a_symlink_is_refused() {
        let (dir, root) = site();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("log/droplet_audit.log")).unwrap();
        assert!(AuditLog::open(&root).is_err());
    }

    #[test]
    fn trimming_keeps_the_last_lines() {
        let (dir, root) = site();
        let log = AuditLog::open(&root).unwrap();
        let path = dir.path().join("log/droplet_audit.log");
        let lines: String = (0..MAX_LINES + 7).map(|n| format!("{n:0200}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        log.trim().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), MAX_LINES);
        assert!(text.starts_with(&format!("{:0200}\n", 7)));
    }
}
