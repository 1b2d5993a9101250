//! The Droplet driver: one short-lived process per verb, started with an argument vector and a time-out.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::process::Command;

use super::dir::{ContainerDir, DEFAULT_ROOT, ROOT_ENV};
use super::state::RuntimeState;
use super::{Runtime, RuntimeError};

/// How much of a failing runtime's output goes into the error, in bytes.
const MAX_OUTPUT: usize = 4096;

/// Starts `droplet` (`contract/runtime.md` 1, 4).
#[derive(Debug, Clone)]
pub struct Droplet {
    program: PathBuf,
    root: PathBuf,
}

impl Droplet {
    /// `program` is a path or a name on the `PATH`; `root` holds the container directories.
    pub fn new(program: PathBuf, root: PathBuf) -> Self {
        Self { program, root }
    }

    /// `word` names the verb in error texts, which clients and scripts know.
    async fn run(&self, word: &'static str, limit: Duration, args: &[&str]) -> Result<Output, RuntimeError> {
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        command.env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        );
        if self.root != Path::new(DEFAULT_ROOT) {
            command.env(ROOT_ENV, &self.root);
        }
        let spawn_failed = |source| RuntimeError::Spawn {
            program: self.program.clone(),
            source,
        };
        // Dropping the future of `output` on a time-out kills the child (kill_on_drop); its monitor lives on.
        match tokio::time::timeout(limit, command.output()).await {
            Err(_) => Err(RuntimeError::TimedOut {
                word,
                seconds: limit.as_secs(),
            }),
            Ok(output) => {
                let output = output.map_err(spawn_failed)?;
                if output.status.success() {
                    Ok(output)
                } else {
                    Err(failed(word, &output))
                }
            }
        }
    }
}

/// `droplet <word> failed: <output>: exit status <n>`, stdout and stderr together.
fn failed(word: &'static str, output: &Output) -> RuntimeError {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let mut start = text.len().saturating_sub(MAX_OUTPUT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let text = text[start..].trim();
    // `ExitStatus` prints "exit status: 1"; the contract's form has no colon.
    let status = output
        .status
        .code()
        .map_or_else(|| output.status.to_string(), |code| format!("exit status {code}"));
    let detail = if text.is_empty() {
        status
    } else {
        format!("{text}: {status}")
    };
    RuntimeError::Failed { word, detail }
}

impl Runtime for Droplet {
    fn create<'a>(&'a self, id: &'a str, tty: bool) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let args = if tty {
            vec!["create", "-t", id]
        } else {
            vec!["create", id]
        };
        Box::pin(async move { self.run("create", Duration::from_secs(150), &args).await.map(drop) })
    }

    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.run("start", Duration::from_secs(60), &["start", id])
                .await
                .map(drop)
        })
    }

    fn stop<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move { self.run("stop", Duration::from_secs(60), &["kill", id]).await.map(drop) })
    }

    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.run("delete", Duration::from_secs(60), &["delete", id])
                .await
                .map(drop)
        })
    }

    fn exec<'a>(&'a self, id: &'a str, tty: bool, argv: &'a [String]) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let mut args = if tty { vec!["exec", "-t", id] } else { vec!["exec", id] };
        args.extend(argv.iter().map(String::as_str));
        Box::pin(async move { self.run("exec", Duration::from_secs(30), &args).await.map(drop) })
    }

    fn state<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<RuntimeState>, RuntimeError>> {
        Box::pin(async move {
            if !ContainerDir::new(&self.root, id).state().exists() {
                return Ok(None);
            }
            let output = self.run("state", Duration::from_secs(10), &["state", id]).await?;
            serde_json::from_slice(&output.stdout)
                .map(Some)
                .map_err(|e| RuntimeError::Failed {
                    word: "state",
                    detail: format!("unreadable answer: {e}"),
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn droplet(script: &str) -> (tempfile::TempDir, Droplet) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("droplet");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let root = dir.path().to_owned();
        (dir, Droplet::new(program, root))
    }

    #[tokio::test]
    async fn a_failure_carries_the_output_and_the_status() {
        let (_dir, droplet) = droplet("echo out; echo 'no such container' >&2; exit 1");
        let error = droplet.create("x", false).await.unwrap_err().to_string();
        assert_eq!(error, "droplet create failed: out\nno such container: exit status 1");
    }

    #[tokio::test]
    async fn arguments_are_not_interpreted() {
        let (_dir, droplet) = droplet(r#"printf '%s|' "$@" >&2; exit 1"#);
        let argv = ["sh", "-c", "a  'b' \"c\"\n$d"].map(String::from);
        let error = droplet.exec("x", true, &argv).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "droplet exec failed: exec|-t|x|sh|-c|a  'b' \"c\"\n$d|: exit status 1"
        );
    }

    #[tokio::test]
    async fn the_environment_of_the_daemon_stays_here() {
        let (dir, droplet) = droplet("env >&2; exit 1");
        let error = droplet.stop("x").await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("RAIND_ROOT_DIR={}", dir.path().display())),
            "{error}"
        );
        assert!(!error.contains("CARGO_MANIFEST_DIR"), "{error}");
    }

    #[tokio::test]
    async fn a_runtime_that_hangs_is_given_up() {
        let (_dir, droplet) = droplet("exec sleep 1000");
        let error = droplet
            .run("start", Duration::from_millis(50), &[])
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(error, "droplet start failed: no answer within 0 s; it was killed");
    }
}
