//! The Droplet driver: one short-lived process per verb, started with an argument vector and a timeout.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::process::Command;

use super::dir::{ContainerDir, DEFAULT_ROOT, ROOT_ENV};
use super::exec::ExecOutcome;
use super::state::RuntimeState;
use super::{Runtime, RuntimeError, StopRequest, refusal};

/// Maximum number of bytes of a failing runtime's output in the error.
const MAX_OUTPUT: usize = 4096;
/// Time that a stop may take beyond the grace period: for KILL to take effect and for the hooks.
const STOP_MARGIN: Duration = Duration::from_secs(57);
/// Time that an exec may take beyond its limit: to start the program, and to answer after it exits.
const EXEC_MARGIN: Duration = Duration::from_secs(30);

/// Starts `droplet` (`docs/spec/runtime.md` 1, 4).
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

    #[expect(clippy::disallowed_methods, reason = "the one place that starts the runtime")]
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().stdin(Stdio::null());
        command.env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        );
        if self.root != Path::new(DEFAULT_ROOT) {
            command.env(ROOT_ENV, &self.root);
        }
        command
    }

    /// `word` is the verb in error messages, which clients and scripts rely on.
    async fn run(&self, word: &'static str, limit: Duration, args: &[&str]) -> Result<Output, RuntimeError> {
        let mut command = self.command(args);
        // Dropping the future of `output` on a timeout kills the child; its monitor lives on.
        command.kill_on_drop(true);
        self.finish(word, Some(limit), command).await
    }

    /// Runs a command that is successful with exit status 0.
    async fn finish(
        &self,
        word: &'static str,
        limit: Option<Duration>,
        mut command: Command,
    ) -> Result<Output, RuntimeError> {
        let output = command.output();
        let output = match limit {
            Some(limit) => tokio::time::timeout(limit, output)
                .await
                .map_err(|_| RuntimeError::TimedOut {
                    word,
                    seconds: limit.as_secs(),
                })?,
            None => output.await,
        };
        let output = output.map_err(|source| match source.kind() {
            std::io::ErrorKind::ArgumentListTooLong => RuntimeError::Refused {
                message: "the command is too long: the kernel takes 128 KiB for one argument, and 2 MiB for all".into(),
            },
            _ => RuntimeError::Spawn {
                program: self.program.clone(),
                source,
            },
        })?;
        if output.status.success() {
            Ok(output)
        } else {
            Err(failed(word, &output))
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
    if output.status.code().is_some_and(refusal::is_refusal) {
        // The last line is the reason; messages of a rollback may precede it.
        let message = text.lines().last().unwrap_or_default().to_owned();
        return RuntimeError::Refused { message };
    }
    // `ExitStatus` prints "exit status: 1"; the contract's format has no colon.
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

    fn stop<'a>(&'a self, id: &'a str, request: &'a StopRequest) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            let seconds = request.grace.as_secs().to_string();
            let chosen = ["kill", "--grace", &seconds, id, &request.signal];
            // The original supports no other way to stop.
            let args = if *request == StopRequest::default() {
                &["kill", id][..]
            } else {
                &chosen[..]
            };
            self.run("stop", request.grace + STOP_MARGIN, args).await.map(drop)
        })
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

    fn exec_wait<'a>(
        &'a self,
        id: &'a str,
        argv: &'a [String],
        limit: Option<Duration>,
    ) -> BoxFuture<'a, Result<ExecOutcome, RuntimeError>> {
        let limit_text = limit.map(|limit| format!("--timeout={}", limit.as_secs_f64()));
        let mut args = vec!["exec", "--wait"];
        args.extend(limit_text.as_deref());
        args.push(id);
        args.extend(argv.iter().map(String::as_str));
        // Not killed on drop: it notices that its output is closed, kills the process and then exits.
        let command = self.command(&args);
        Box::pin(async move {
            let output = self
                .finish("exec", limit.map(|limit| limit + EXEC_MARGIN), command)
                .await?;
            ExecOutcome::parse(&output.stdout).map_err(|e| RuntimeError::Failed {
                word: "exec",
                detail: e.to_string(),
            })
        })
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
    async fn a_refusal_is_told_by_the_status() {
        let (_dir, droplet) = droplet("echo 'roll-back of x: it fell' >&2; echo 'sh: not found in PATH' >&2; exit 127");
        let error = droplet.start("x").await.unwrap_err();
        assert!(matches!(error, RuntimeError::Refused { .. }), "{error:?}");
        assert_eq!(error.to_string(), "sh: not found in PATH");
        let long = droplet.exec("x", false, &["x".repeat(200_000)]).await.unwrap_err();
        assert!(matches!(long, RuntimeError::Refused { .. }), "{long:?}");
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
    async fn a_stop_names_signal_and_grace() {
        let (_dir, droplet) = droplet(r#"printf '%s|' "$@" >&2; exit 1"#);
        let request = StopRequest {
            signal: "SIGINT".into(),
            grace: Duration::from_secs(70),
        };
        let error = droplet.stop("x", &request).await.unwrap_err().to_string();
        assert_eq!(error, "droplet stop failed: kill|--grace|70|x|SIGINT|: exit status 1");
        let error = droplet
            .stop("x", &StopRequest::default())
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(error, "droplet stop failed: kill|x|: exit status 1");
    }

    #[tokio::test]
    async fn an_exec_that_waits_has_an_outcome_or_an_error() {
        let (_dir, answering) = droplet(
            r#"printf '{"exit_code":3,"timed_out":false,"truncated":false,"stdout":%s,"stderr":0}\n%s' "${#*}" "$*""#,
        );
        let argv = ["sh", "-c", "-t"].map(String::from);
        let outcome = answering
            .exec_wait("x", &argv, Some(Duration::from_millis(1500)))
            .await
            .unwrap();
        assert_eq!(outcome.exit_code, 3);
        assert_eq!(outcome.stdout, b"exec --wait --timeout=1.5 x sh -c -t");
        let (_dir, broken) = droplet("echo nonsense");
        let error = broken.exec_wait("x", &argv, None).await.unwrap_err().to_string();
        assert!(error.starts_with("droplet exec failed: unreadable answer: "), "{error}");
    }

    #[tokio::test]
    async fn the_environment_of_the_daemon_stays_here() {
        let (dir, droplet) = droplet("env >&2; exit 1");
        let error = droplet
            .stop("x", &StopRequest::default())
            .await
            .unwrap_err()
            .to_string();
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
