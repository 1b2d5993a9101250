//! Credential helper programs: `docker-credential-NAME get`, the server on standard input, JSON on standard output.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::credential::{Credential, Secret};

/// Time limit of a helper program.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum size of the answer, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// User name by which helpers indicate that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";
/// Message that helpers print, by convention, for an unknown server.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The helper's credential for `server`. Errors contain the program and its exit status, never its output.
pub(super) async fn ask(name: &str, server: &str) -> Result<Option<Credential>, String> {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !plain {
        return Err(format!("{name:?} is not the name of a credential helper"));
    }
    ask_program(&format!("docker-credential-{name}"), server, LIMIT).await
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that starts credential helpers, and ends them in time"
)]
async fn ask_program(program: &str, server: &str, limit: Duration) -> Result<Option<Credential>, String> {
    let failed =
        |reason: &dyn std::fmt::Display| format!("the credential helper {program} fails for {server}: {reason}");
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A process group of its own, so that the helper's children are killed with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(&e))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let talked = tokio::time::timeout(limit, talk(&mut child, server)).await;
    if let (Err(_), Some(group)) = (&talked, group) {
        // The leader has not been reaped yet, so the group id is still valid.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let (status, answer) = talked
        .map_err(|_| failed(&format!("no answer within {} s", limit.as_secs_f32())))?
        .map_err(|e| failed(&e))?;
    if !status.success() {
        let unknown = String::from_utf8_lossy(&answer).contains(NOT_FOUND);
        return if unknown { Ok(None) } else { Err(failed(&status)) };
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| failed(&"its answer is not understood"))?;
    if answer.secret.0.is_empty() {
        return Ok(None);
    }
    Ok(Some(match answer.username {
        user if user == TOKEN_USER => Credential::Identity(answer.secret),
        user => Credential::Password {
            user,
            password: answer.secret,
        },
    }))
}

async fn talk(child: &mut Child, server: &str) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input is not an error.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    }
    Ok((child.wait().await?, answer))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn helper(script: &str, limit: Duration) -> Result<Option<Credential>, String> {
        let scratch = tempfile::tempdir().unwrap();
        let program = scratch.path().join("helper");
        let text = format!("#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread server\n{script}\n");
        // Installed by another process: a fork of a parallel test cannot hold the file open for writing.
        let made = std::process::Command::new("install")
            .args(["-m", "755", "/dev/stdin"])
            .arg(&program)
            .stdin(Stdio::piped())
            .spawn()
            .map(|mut child| {
                std::io::Write::write_all(child.stdin.as_mut().unwrap(), text.as_bytes()).unwrap();
                child.wait_with_output().unwrap().status
            });
        assert!(made.unwrap().success());
        assert!(program.metadata().unwrap().permissions().mode() & 0o111 != 0);
        ask_program(program.to_str().unwrap(), "reg.io", limit).await
    }

    #[tokio::test]
    async fn answers() {
        let both = r#"echo "{\"ServerURL\":\"$server\",\"Username\":\"u\",\"Secret\":\"p-$server\"}""#;
        let password = Secret("p-reg.io".into());
        let wanted = Credential::Password {
            user: "u".into(),
            password,
        };
        assert_eq!(helper(both, LIMIT).await.unwrap(), Some(wanted));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(
            helper(token, LIMIT).await.unwrap(),
            Some(Credential::Identity(Secret("t".into())))
        );
        let unknown = format!("echo {NOT_FOUND}; exit 1");
        assert_eq!(helper(&unknown, LIMIT).await.unwrap(), None);
    }

    #[tokio::test]
    async fn failures_do_not_show_what_it_printed() {
        for (script, reason) in [
            ("echo hunter2; exit 3", "exit status: 3"),
            ("echo hunter2", "its answer is not understood"),
            ("echo '{\"Username\":\"hunter2\"}'", "its answer is not understood"),
        ] {
            let error = helper(script, LIMIT).await.unwrap_err();
            assert!(error.contains(reason) && error.contains("reg.io"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = ask("none-such", "reg.io").await.unwrap_err();
        assert!(
            error.contains("docker-credential-none-such fails for reg.io"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_ended_with_its_children() {
        let scratch = tempfile::tempdir().unwrap();
        let pid_file = scratch.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let error = helper(&script, Duration::from_millis(500)).await.unwrap_err();
        assert!(error.contains("no answer within 0.5 s"), "{error}");
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z ")) {
            assert!(std::time::Instant::now() < end, "its child lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
