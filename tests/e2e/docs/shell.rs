//! A shell on the host of a lab that is told one block after the other.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::ROOT;
use crate::support::{Lab, Machine, Place};

/// How long one block may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Where it is at work, in the lab. The pages' readers are in their clone.
const DIRECTORY: &str = "/run/docs/work";
/// After each block, with its exit status.
const MARK: &str = "==== the block has ended: ";
/// What differs from a reader's shell. `curl` and `api` are also used by what the page defines.
const SETTINGS: &str = r#"
set -euo pipefail
exec 2>&1
sudo() { "$@"; }
curl() {
    case " $* " in
        *" -N "*) command curl --no-progress-meter --max-time 2 "$@" || [ $? = 28 ] ;;
        *" http://"*) command curl --no-progress-meter --max-time 50 --retry 20 --retry-delay 1 --retry-connrefused "$@" ;;
        *) command curl --no-progress-meter --max-time 50 "$@" ;;
    esac
}
"#;

/// It ends with the lab.
pub struct Shell {
    machine: Arc<Machine>,
    process: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    blocks: usize,
}

impl Shell {
    pub fn start(lab: &Lab) -> Self {
        let machine = lab.machine().clone();
        std::fs::create_dir_all(machine.path(DIRECTORY)).unwrap();
        for name in ["assets", "scripts"] {
            std::os::unix::fs::symlink(format!("{ROOT}/{name}"), machine.path(&format!("{DIRECTORY}/{name}"))).unwrap();
        }
        let mut process = machine
            .command(Place::Host, "bash")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = process.stdout.take().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let stdin = process.stdin.take().unwrap();
        let mut shell = Self {
            machine,
            process,
            stdin,
            output,
            blocks: 0,
        };
        shell.define(&format!("cd {DIRECTORY}\n{SETTINGS}"));
        shell
    }

    /// Definitions for all blocks to come.
    pub fn define(&mut self, text: &str) {
        self.run(text).unwrap_or_else(|said| panic!("{text}: {said}"));
    }

    /// Runs commands and returns what they print, on both streams. `Err`, with the same, when one of them fails.
    pub fn run(&mut self, commands: &str) -> Result<String, String> {
        self.blocks += 1;
        let file = format!("/run/docs/block-{}", self.blocks);
        self.machine.write(&file, commands);
        // From a file, so that no command reads the script as its input.
        let line = format!(". {file} < /dev/null\necho; echo '{MARK}'$?\n");
        let sent = self.stdin.write_all(line.as_bytes());
        let mut said = Vec::new();
        let end = Instant::now() + LIMIT;
        loop {
            let text = String::from_utf8_lossy(&said);
            if let Some((output, _)) = text.split_once(&format!("\n{MARK}")) {
                return Ok(output.to_owned());
            }
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(more) => said.extend(more),
                // With `set -e` a command that fails ends the shell.
                Err(reason) => {
                    return Err(format!(
                        "{text}\n(a command failed, or took too long: {reason}, {sent:?})"
                    ));
                }
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether an output is what the page says, but for ids, times, digests, and `…` for anything.
pub fn same(wanted: &str, said: &str) -> bool {
    let (wanted, said) = (settled(wanted), settled(said));
    let Some((first, others)) = wanted.split_once('…') else {
        return wanted == said;
    };
    let (middle, last) = others.rsplit_once('…').unwrap_or(("", others));
    let Some(rest) = said.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else {
        return false;
    };
    let mut rest = rest;
    middle.split('…').all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => part.is_empty(),
    })
}

/// With a word in the place of each id and time, and without blanks around lines.
fn settled(text: &str) -> String {
    let mut settled = String::new();
    let mut word = String::new();
    for letter in text.trim().chars().chain([' ']) {
        if letter.is_ascii_alphanumeric() || "-:.".contains(letter) {
            word.push(letter);
            continue;
        }
        // What ends a sentence is not a part of the word.
        let (bare, end) = word.split_at(word.trim_end_matches([':', '.']).len());
        settled.push_str(kind(bare).unwrap_or(bare));
        settled.push_str(end);
        settled.push(letter);
        word.clear();
    }
    let lines: Vec<_> = settled.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("\n")
}

fn kind(word: &str) -> Option<&'static str> {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_id = || word.len() >= 11 && word.bytes().all(letters) && word.bytes().any(|byte| byte.is_ascii_digit());
    let is_time = || word.len() >= 19 && word.as_bytes()[10] == b'T' && word[..4].parse::<u32>().is_ok();
    match word {
        // Also one that the page cuts off.
        word if word.starts_with("sha256:") => Some("DIGEST"),
        _ if is_time() => Some("TIME"),
        _ if is_id() => Some("ID"),
        _ => None,
    }
}

#[test]
fn ids_and_times_may_differ_and_nothing_else() {
    let page = "{\"id\":\"01m8ms68k2j9\",\"at\":\"2026-11-24T09:00:16Z\",\"a\":1, …}\n";
    assert!(same(
        page,
        " {\"id\":\"01m8ms68k2ab\",\"at\":\"2027-01-01T00:00:00.123Z\",\"a\":1, \"b\":2}\n\n"
    ));
    assert!(!same(
        page,
        "{\"id\":\"01m8ms68k2ab\",\"at\":\"2027-01-01T00:00:00Z\",\"a\":2, \"b\":2}"
    ));
    assert!(same("digest sha256:e088…: bad", "digest sha256:e088aa11bb22: bad"));
    assert!(!same("one", "one more"));
    assert!(!same("one … two", "one two three"));
}
