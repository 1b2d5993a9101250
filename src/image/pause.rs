//! The built-in image of infra containers: one layer with one program, which sleeps until it is told to stop.
//!
//! The program is an ELF file of a few hundred bytes that the assembler builds inside the daemon's own read-only
//! data: no download, no second binary, no libc (`docs/decisions/0008-a-pause-program-in-assembler.md`). As init of
//! its container it ignores SIGCHLD, so that the kernel reaps its children, and waits for SIGTERM or SIGINT, which it
//! keeps blocked: the kernel discards a signal that an init has no handler for, but it queues a blocked one.

use std::arch::global_asm;
use std::io;

use jiff::Timestamp;
use tar::{EntryType, Header};

use super::digest::Digest;
use super::platform::Platform;
use crate::model::{Image, ImageLayer, ImageRunConfig};

/// The name that infra containers show for it (`docs/spec/api.md` 8).
const REPOSITORY: &str = "registry.k8s.io/pause";
const REFERENCE: &str = "3.9";
/// Name of the program in the image.
const PROGRAM: &str = "pause";

crate::base::elf::begin!("condenser_pause");

#[cfg(target_arch = "x86_64")]
global_asm!(
    // rt_sigaction(SIGCHLD, ignore, 0, 8)
    "mov eax, 13",
    "mov edi, 17",
    "lea rsi, [rip + condenser_pause_ignore]",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    // rt_sigprocmask(SIG_BLOCK, ends, 0, 8)
    "mov eax, 14",
    "xor edi, edi",
    "lea rsi, [rip + condenser_pause_ends]",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    // rt_sigtimedwait(ends, 0, 0, 8), repeated when interrupted
    "2:",
    "mov eax, 128",
    "lea rdi, [rip + condenser_pause_ends]",
    "xor esi, esi",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "test eax, eax",
    "js 2b",
    // exit_group(0)
    "mov eax, 231",
    "xor edi, edi",
    "syscall",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    // rt_sigaction(SIGCHLD, ignore, 0, 8)
    "mov x0, #17",
    "adr x1, condenser_pause_ignore",
    "mov x2, #0",
    "mov x3, #8",
    "mov x8, #134",
    "svc #0",
    // rt_sigprocmask(SIG_BLOCK, ends, 0, 8)
    "mov x0, #0",
    "adr x1, condenser_pause_ends",
    "mov x2, #0",
    "mov x3, #8",
    "mov x8, #135",
    "svc #0",
    // rt_sigtimedwait(ends, 0, 0, 8), repeated when interrupted
    "2:",
    "adr x0, condenser_pause_ends",
    "mov x1, #0",
    "mov x2, #0",
    "mov x3, #8",
    "mov x8, #137",
    "svc #0",
    "tbnz x0, #63, 2b",
    // exit_group(0)
    "mov x0, #0",
    "mov x8, #94",
    "svc #0",
);

global_asm!(
    ".balign 8",
    // The kernel's struct sigaction: SIG_IGN, and zeros for flags, restorer and mask.
    "condenser_pause_ignore:",
    ".quad 1, 0, 0, 0",
    // SIGINT (2) and SIGTERM (15).
    "condenser_pause_ends:",
    ".quad (1 << 1) | (1 << 14)",
);

crate::base::elf::end!("condenser_pause");

unsafe extern "C" {
    static condenser_pause_start: u8;
    static condenser_pause_end: u8;
}

/// The executable file.
fn program() -> &'static [u8] {
    // SAFETY: the labels delimit the file above.
    unsafe { crate::base::elf::bytes(&raw const condenser_pause_start, &raw const condenser_pause_end) }
}

/// The layer's archive. The bytes are always the same, so the digest is a stable name.
pub(super) fn archive() -> io::Result<Vec<u8>> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(program().len() as u64);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, PROGRAM, program())?;
    builder.into_inner()
}

/// The image row. It is not stored: the image is in no list and cannot be removed.
pub(super) fn image(diff_id: Digest, size: usize) -> Image {
    let platform = Platform::host();
    Image {
        id: format!("{REPOSITORY}:{REFERENCE}"),
        repository: REPOSITORY.into(),
        reference: REFERENCE.into(),
        manifest_digest: String::new(),
        config_digest: String::new(),
        size_bytes: size as u64,
        layers: vec![ImageLayer {
            diff_id: diff_id.to_string(),
            digest: diff_id.to_string(),
            size: size as u64,
        }],
        config: ImageRunConfig {
            entrypoint: vec![format!("/{PROGRAM}")],
            ..ImageRunConfig::default()
        },
        os: platform.os,
        architecture: platform.architecture,
        created_at: Timestamp::UNIX_EPOCH,
    }
}

/// Whether it is the built-in image, the only one without a manifest.
pub(super) fn is_builtin(image: &Image) -> bool {
    image.manifest_digest.is_empty()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    /// It ignores SIGCHLD and sleeps, so it has reached its wait.
    fn wait_until_asleep(pid: u32) {
        let end = Instant::now() + Duration::from_secs(5);
        let ignores_children = |status: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
            u64::from_str_radix(mask.unwrap(), 16).unwrap() & (1 << 16) != 0
        };
        loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            if status.contains("State:\tS") && ignores_children(&status) {
                return;
            }
            assert!(Instant::now() < end, "{status}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_sleeps_until_it_is_told_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PROGRAM);
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        // As the first process of a pid namespace, like in a container.
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut unshare = Command::new("unshare")
                .args(["-p", "-f", "--kill-child"])
                .arg(&path)
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let children = format!("/proc/{0}/task/{0}/children", unshare.id());
            let end = Instant::now() + Duration::from_secs(5);
            let pid: u32 = loop {
                if let Ok(pid) = std::fs::read_to_string(&children).unwrap().trim().parse() {
                    break pid;
                }
                assert!(Instant::now() < end);
                std::thread::yield_now();
            };
            wait_until_asleep(pid);
            // A signal that it does not handle must not end it.
            kill(Pid::from_raw(pid as i32), Signal::SIGHUP).unwrap();
            wait_until_asleep(pid);
            kill(Pid::from_raw(pid as i32), signal).unwrap();
            assert_eq!(unshare.wait().unwrap().code(), Some(0), "{signal}");
        }
    }

    #[test]
    fn its_layer_is_the_same_every_time() {
        assert_eq!(archive().unwrap(), archive().unwrap());
        assert!(program().len() < 512);
    }
}
