//! Runs the OCI hooks (`docs/spec/runtime.md` 6).
//!
//! A hook gets the text of state.json on stdin, has a time-out, and writes one audit record. `createContainer` and
//! `startContainer` hooks run in the network, uts, ipc and pid namespaces of the container, with the file system and
//! the credentials of the host. All other hooks run on the host. The caller decides whether a failure matters.

mod process;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::config::{Config, Hook};
use crate::report::audit::{AuditLog, Event, HookRecord, Record, sha256};
use crate::report::failure::Failure;
use process::Outcome;

/// Time-out of a hook that configures none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The lists of hooks. The names are those of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "section 6.3 says when each runs")]
pub enum Phase {
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    StopContainer,
    Poststop,
}

/// A hook failed. The later hooks of its list did not run.
#[derive(Debug, thiserror::Error)]
#[error("hook {phase}[{index}] failed: {reason}")]
pub struct HookError {
    phase: &'static str,
    index: usize,
    reason: String,
}

/// What all hooks of a container need.
#[derive(Debug)]
pub struct Hooks<'a> {
    /// Container id, for the audit log.
    pub id: &'a str,
    /// The configuration with the hooks.
    pub config: &'a Config,
    /// Gets one record per hook.
    pub audit: &'a AuditLog,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::StopContainer => "stopContainer",
            Self::Poststop => "poststop",
        }
    }

    fn hooks(self, config: &Config) -> &[Hook] {
        match self {
            Self::CreateRuntime => &config.hooks.create_runtime,
            Self::CreateContainer => &config.hooks.create_container,
            Self::StartContainer => &config.hooks.start_container,
            Self::Poststart => &config.hooks.poststart,
            Self::StopContainer => &config.hooks.stop_container,
            Self::Poststop => &config.hooks.poststop,
        }
    }

    /// Returns the longest time that the hooks of this phase can take together.
    pub fn limit(self, config: &Config) -> Duration {
        self.hooks(config).iter().map(timeout).sum()
    }
}

impl Hooks<'_> {
    /// Runs the hooks of a phase in order, until one fails. `state` is the text of state.json. `init` is a pidfd of the
    /// container's init; if given, the hooks run in its namespaces.
    pub fn run(&self, phase: Phase, state: &str, init: Option<&OwnedFd>) -> Result<(), HookError> {
        for (index, hook) in phase.hooks(self.config).iter().enumerate() {
            let started = Instant::now();
            let outcome = self.run_one(hook, state, init);
            let error = outcome.result.err().map(|reason| HookError {
                phase: phase.name(),
                index,
                reason: with_stderr(reason, &outcome.stderr_tail),
            });
            let failure = error.as_ref().map(|error| Failure::new("hook", error.to_string()));
            let record = HookRecord {
                phase: phase.name(),
                path: hook.path.clone(),
                args_sha256: sha256(hook.args.join(",").as_bytes()),
                stdin_sha256: sha256(state.as_bytes()),
                stdin_bytes: state.len(),
                exit_code: outcome.exit_code,
                duration_ms: started.elapsed().as_millis(),
                stderr_tail: outcome.stderr_tail,
            };
            self.audit
                .write(&Record::new(Event::Hook, self.id).hook(record).result(failure.as_ref()));
            if let Some(error) = error {
                return Err(error);
            }
        }
        Ok(())
    }

    fn run_one(&self, hook: &Hook, state: &str, init: Option<&OwnedFd>) -> Outcome {
        process::run(hook, self.config.hook_argv0(), state, init, timeout(hook)).unwrap_or_else(|error| Outcome {
            exit_code: -1,
            stderr_tail: String::new(),
            result: Err(format!("{}: {error}", hook.path.display())),
        })
    }
}

/// Appends the stderr of the hook to the reason, on one line.
fn with_stderr(reason: String, stderr: &str) -> String {
    let text: Vec<&str> = stderr.split_whitespace().collect();
    match text[..] {
        [] => reason,
        _ => format!("{reason}: {}", text.join(" ")),
    }
}

fn timeout(hook: &Hook) -> Duration {
    hook.timeout
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_TIMEOUT, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        audit: AuditLog,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let audit = AuditLog::open(&dir.path().join("container")).unwrap();
            Self { dir, audit }
        }

        fn run(&self, argv0: bool, hook: serde_json::Value) -> Result<(), String> {
            let annotations = match argv0 {
                true => serde_json::json!({}),
                false => serde_json::json!({ "io.raind.runtime.annotation.version": "0.1.0" }),
            };
            let text = serde_json::json!({ "hooks": { "poststop": [hook] }, "annotations": annotations }).to_string();
            let config = Config::parse(text.as_bytes(), std::path::Path::new("config.json")).unwrap();
            let hooks = Hooks {
                id: "abc",
                config: &config,
                audit: &self.audit,
            };
            hooks.run(Phase::Poststop, "the state", None).map_err(|e| e.to_string())
        }

        fn record(&self) -> serde_json::Value {
            let text = std::fs::read_to_string(self.dir.path().join("log/droplet_audit.log")).unwrap();
            serde_json::from_str(text.lines().last().unwrap()).unwrap()
        }
    }

    #[test]
    fn a_hook_gets_the_state_its_arguments_and_only_its_environment() {
        let fixture = Fixture::new();
        let out = fixture.dir.path().join("out").display().to_string();
        let script = format!("{{ cat; echo; echo $0; echo $1; env; }} > {out}");
        let args = |argv0: &[&str]| -> Vec<String> {
            argv0
                .iter()
                .copied()
                .chain(["-c", &script, "zero", "one"])
                .map(str::to_owned)
                .collect()
        };
        let hook = |args: Vec<String>, env: &[&str]| serde_json::json!({ "path": "/bin/sh", "args": args, "env": env });
        let output = || std::fs::read_to_string(&out).unwrap();
        fixture.run(true, hook(args(&["/bin/sh"]), &["A-B=1"])).unwrap();
        assert!(output().starts_with("the state\nzero\none\n"), "{}", output());
        fixture.run(false, hook(args(&[]), &[])).unwrap();
        assert!(output().contains("zero\none\n"), "{}", output());
        assert!(
            !output().contains("CARGO"),
            "the environment of the runtime leaked: {}",
            output()
        );
        assert_eq!(fixture.record()["hook"]["stdin_bytes"], 9);
        assert_eq!(fixture.record()["result"], "success");
    }

    #[test]
    fn a_failure_names_the_phase_the_position_the_status_and_the_stderr() {
        let fixture = Fixture::new();
        let shell = |script: &str| serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1 });
        let error = fixture.run(true, shell("echo no >&2; exit 3")).unwrap_err();
        assert_eq!(error, "hook poststop[0] failed: exit status 3: no");
        assert_eq!(fixture.record()["hook"]["exit_code"], 3);
        assert_eq!(fixture.record()["hook"]["stderr_tail"], "no\n");
        let error = fixture.run(true, shell("kill -9 $$")).unwrap_err();
        assert_eq!(error, "hook poststop[0] failed: signal 9");
        let error = fixture
            .run(true, serde_json::json!({ "path": "/no/such" }))
            .unwrap_err();
        assert!(error.starts_with("hook poststop[0] failed: /no/such: "), "{error}");
        assert_eq!(fixture.record()["hook"]["exit_code"], -1);
    }

    #[test]
    fn a_hook_that_hangs_is_killed_and_its_background_processes_are_not_waited_for() {
        let fixture = Fixture::new();
        let shell = |script: &str| serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1 });
        let error = fixture.run(true, shell("exec sleep 1000")).unwrap_err();
        assert_eq!(error, "hook poststop[0] failed: it did not end within 1 s");
        // The child inherits stderr and outlives the hook.
        fixture.run(true, shell("sleep 2 >/dev/null & exit 0")).unwrap();
    }
}
