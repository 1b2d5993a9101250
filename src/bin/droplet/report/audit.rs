//! The runtime's audit log (`docs/spec/runtime.md` 2.4): one JSON object per line in `<root>/../log/droplet_audit.log`.
//!
//! Every verb and every hook writes one record at its end. The monitor writes the record of init, which no longer sees
//! the host's file system. A verb does not fail because a record cannot be written; the error goes to stderr.

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
use crate::report::failure::Failure;

/// Maximum length of a record. A longer one is dropped.
const MAX_RECORD: usize = 64 * 1024;
/// Maximum number of lines. `trim` keeps the last ones.
const MAX_LINES: usize = 15_000;
/// Minimum length of a record: a file shorter than `MAX_LINES` times this need not be counted.
const MIN_RECORD: u64 = 128;

/// The log cannot be opened. The verb fails, because it could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error("audit logger init failed: {0}")]
pub struct AuditError(#[from] std::io::Error);

/// The audit log.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
}

/// The verb or process of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are those of the log")]
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

/// One line of the log. An absent key means unknown or empty.
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
    /// Whether the profile was applied. Absent if no process was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<bool>,
}

#[derive(Debug, Serialize)]
struct ErrorRecord {
    stage: &'static str,
    message: String,
}

/// The key `hook` of a record.
#[derive(Debug, Default, Serialize)]
pub struct HookRecord {
    /// Name of the list of hooks, such as `createRuntime`.
    pub phase: &'static str,
    /// Path of the program.
    pub path: PathBuf,
    /// SHA-256 of the arguments, joined with commas.
    pub args_sha256: String,
    /// SHA-256 of the standard input.
    pub stdin_sha256: String,
    /// Length of the standard input.
    pub stdin_bytes: usize,
    /// Exit status; -1 if the hook could not be run or was killed.
    #[serde(skip_serializing_if = "is_zero")]
    pub exit_code: i32,
    /// Duration in milliseconds.
    pub duration_ms: u128,
    /// Last 1024 bytes of stderr.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stderr_tail: String,
}

impl Record {
    /// Starts a record about a container.
    pub fn new(event: Event, container_id: &str) -> Self {
        Self {
            ts: crate::report::clock::now()
                .strftime("%Y-%m-%dT%H:%M:%S%.9f%:z")
                .to_string(),
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

    /// Adds the paths of the container and the hash of its `config.json`.
    pub fn container(mut self, container: &Container) -> Self {
        self.bundle = Some(container.dir.path().to_owned());
        self.config_path = Some(container.dir.config());
        self.state_path = Some(container.dir.state());
        self.oci = Some(Oci {
            config_sha256: fs_err::read(container.dir.config()).map_or_else(|_| String::new(), |text| sha256(&text)),
            process_arg0: String::new(),
        });
        self
    }

    /// Adds the security settings of the configuration.
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

    /// Adds whether the configured AppArmor profile is applied (S2).
    pub fn confined(mut self, confined: bool) -> Self {
        if let Some(lsm) = &mut self.lsm {
            lsm.apparmor.applied = Some(confined);
        }
        self
    }

    /// Adds the pid.
    pub fn pid(mut self, pid: i32) -> Self {
        self.pid = pid;
        self
    }

    /// Adds the names of the signals that were sent, without `SIG`.
    pub fn signals(mut self, signals: Vec<String>) -> Self {
        self.signals = signals;
        self
    }

    /// Adds the command of an exec.
    pub fn exec_command(mut self, command: Vec<String>) -> Self {
        self.exec_command = command;
        self
    }

    /// Adds the result of a hook.
    pub fn hook(mut self, hook: HookRecord) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Adds the result.
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
    /// Opens the log next to the directory `root`. Fails if the log cannot be written.
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
                    return Err(std::io::Error::other(format!(
                        "a record of {} bytes is too long and was dropped",
                        line.len()
                    )));
                }
                // Writers share the lock with each other, not with `trim`: no line gets lost in a file that is being
                // replaced.
                let mut file = self.locked(FlockOperation::LockShared)?;
                file.write_all(&line)
            });
        if let Err(error) = written {
            crate::report::output::print_error(format_args!("audit log: {error}"));
        }
    }

    /// Removes all but the last lines. This reads the whole file, so only the monitor does it, while nobody waits.
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

    /// Opens and locks the file that is now at the path.
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

/// Mode 0640; does not follow a symbolic link.
fn options() -> fs_err::OpenOptions {
    let mut options = fs_err::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW);
    options
}

/// Returns the SHA-256 of `data` in hexadecimal.
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

    fn paths() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("container");
        (dir, root)
    }

    #[test]
    fn a_record_is_one_line_with_the_keys_of_the_contract() {
        let (dir, root) = paths();
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
    fn a_symbolic_link_is_refused() {
        let (dir, root) = paths();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("log/droplet_audit.log")).unwrap();
        assert!(AuditLog::open(&root).is_err());
    }

    #[test]
    fn trimming_keeps_the_last_lines() {
        let (dir, root) = paths();
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
