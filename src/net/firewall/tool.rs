//! Runs iptables-save and iptables-restore: found once, argument vectors, a timeout, the tool's own message on failure.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::FirewallError;

/// Timeout of one run, including the wait for the lock.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long the tool itself waits for the xtables lock, in seconds. The nft variant has no lock.
const LOCK_WAIT: &str = "--wait=20";

/// Which of the host's tools to use; if both are installed, each has its own rules in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variant {
    /// The host's default `iptables`.
    #[default]
    Host,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// The pair of tools of one family.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    save: PathBuf,
    restore: PathBuf,
}

impl Tool {
    /// Finds the tools on the PATH and in Debian's directories, which not every PATH contains.
    pub fn find(variant: Variant, family: Family) -> Result<Self, FirewallError> {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let infix = match variant {
            Variant::Host => "",
            Variant::Nft => "-nft",
            Variant::Legacy => "-legacy",
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories: Vec<_> = std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .collect();
        let find = |verb: &str| {
            let program = format!("{name}{infix}-{verb}");
            let found = directories.iter().map(|d| d.join(&program)).find(|p| p.is_file());
            found.ok_or(FirewallError::Missing(program))
        };
        Ok(Self {
            save: find("save")?,
            restore: find("restore")?,
        })
    }

    /// All rules of the kernel, as text.
    pub async fn save(&self) -> Result<String, FirewallError> {
        let output = run(&self.save, &[], None).await?;
        if !output.status.success() {
            return Err(refused(&self.save, &output, ""));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies `input` on top of the existing rules; each table entirely or not at all.
    pub async fn restore(&self, input: &str) -> Result<(), FirewallError> {
        let output = run(&self.restore, &["--noflush", LOCK_WAIT], Some(input)).await?;
        if output.status.success() {
            Ok(())
        } else {
            Err(refused(&self.restore, &output, input))
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that starts the packet filter's tools"
)]
async fn run(program: &Path, arguments: &[&str], input: Option<&str>) -> Result<Output, FirewallError> {
    let failed = |e: std::io::Error| FirewallError::Run {
        program: name(program),
        source: e.into(),
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // If the tool stops reading, it says why on standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    match tokio::time::timeout(TIMEOUT, both).await {
        Ok(output) => output.map_err(failed),
        Err(_) => Err(FirewallError::Timeout {
            program: name(program),
            seconds: TIMEOUT.as_secs(),
        }),
    }
}

fn name(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn refused(program: &Path, output: &Output, input: &str) -> FirewallError {
    let text = String::from_utf8_lossy(&output.stderr);
    let told = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with("Try `"));
    let mut message = told.collect::<Vec<_>>().join("; ");
    if message.is_empty() {
        message = output.status.to_string();
    }
    if let Some(line) = blamed_line(&text).and_then(|n| input.lines().nth(n.checked_sub(1)?)) {
        message = format!("{message}: {line}");
    }
    FirewallError::Refused {
        program: name(program),
        message,
    }
}

/// The number after the word `line` in the tool's message, as in `line 2 failed` and `Error occurred at line: 2`.
fn blamed_line(text: &str) -> Option<usize> {
    let (_, after) = text.rsplit_once("line")?;
    let digits = after.trim_start_matches([':', ' ']);
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blamed_line_is_found() {
        assert_eq!(blamed_line("iptables-nft-restore: line 2 failed: Bad rule."), Some(2));
        assert_eq!(
            blamed_line("iptables-restore v1.8.9 (legacy): unknown protocol\nError occurred at line: 13\n"),
            Some(13)
        );
        assert_eq!(blamed_line("Fatal: can't open lock file"), None);
    }

    #[tokio::test]
    async fn a_tool_that_does_not_read_its_input_is_no_problem() {
        let input = "x".repeat(1 << 20);
        let output = run(Path::new("/bin/true"), &[], Some(&input)).await.unwrap();
        assert!(output.status.success());
    }

    #[tokio::test]
    async fn failure_carries_the_tools_words() {
        let tool = Tool {
            save: "/bin/false".into(),
            restore: "/bin/cat".into(),
        };
        assert!(tool.save().await.unwrap_err().to_string().contains("exit status: 1"));
        let error = tool.restore("").await.unwrap_err().to_string();
        assert!(error.contains("cat") && error.contains("--noflush"), "{error}");
    }
}
