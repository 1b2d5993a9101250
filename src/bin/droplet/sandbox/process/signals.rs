//! Resets the signals of a process before it executes a program.

/// Number of signals, including real-time signals.
const COUNT: libc::c_long = 64;

/// Sets the default action for every signal and unblocks all. Rust ignores SIGPIPE, and a caller (`nohup`, a test
/// runner) may ignore others; the program would inherit that.
pub fn reset() {
    // The kernel's `struct sigaction`: handler, flags, restorer and mask. All zeros is the default action.
    let default = [0u64; 4];
    for signal in 1..=COUNT {
        // Do not use the C library: it reserves two signals for itself.
        // SAFETY: the kernel reads 32 bytes, and the default action runs no code. KILL and STOP cannot be changed and
        // always have it.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    // An empty mask is always valid.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn no_signal_stays_ignored_or_blocked() {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("grep");
        command.args(["-E", "Sig(Ign|Blk)", "/proc/self/status"]);
        // SAFETY: only system calls between fork and execve.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
                nix::sys::signal::SigSet::all().thread_block()?;
                super::reset();
                Ok(())
            });
        }
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(output, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    }
}
