//! Confinement of a container's processes by AppArmor (`contract/runtime.md` 9.8, 16.6 S2).
//!
//! A profile that is asked for is applied when the kernel has AppArmor switched on and the profile loaded; then it must
//! succeed. Otherwise it is left out: whether a container may run unconfined is decided by the daemon.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};

use crate::config::Config;

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The profile to apply, if any.
pub fn profile(config: &Config) -> Option<&str> {
    let profile = config.apparmor_profile()?;
    let enabled = std::fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'));
    let loaded = || std::fs::read_to_string(LOADED).is_ok_and(|text| lists(&text, profile));
    (enabled && loaded()).then_some(profile)
}

/// The kernel's list has lines like `raind-default (enforce)`.
fn lists(loaded: &str, profile: &str) -> bool {
    loaded
        .lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile))
}

/// Confines this process from its next `execve` on. `proc` is a procfs that shows it and cannot be the container's: there
/// the files could be anything.
pub fn confine_on_exec(proc: impl AsFd, profile: &str) -> rustix::io::Result<()> {
    let open = |path| openat(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    // The second is for kernels before 5.8.
    let file = open("self/attr/apparmor/exec").or_else(|_| open("self/attr/exec"))?;
    rustix::io::write(file, format!("exec {profile}").as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_looked_up_by_its_whole_name() {
        let loaded = "raind-default-2 (enforce)\nraind-default (enforce)\na b (complain)\n";
        assert!(lists(loaded, "raind-default") && lists(loaded, "a b"));
        assert!(!lists(loaded, "raind") && !lists(loaded, "a") && !lists("", "raind-default"));
    }

    #[test]
    fn without_a_request_there_is_nothing_to_apply() {
        assert_eq!(profile(&Config::default()), None);
    }
}
