//! Confines the processes of a container with AppArmor (`docs/spec/runtime.md` 9.8, 16.6 S2).
//!
//! If AppArmor is enabled and the configured profile is loaded, the profile is applied, and this must succeed.
//! Otherwise it is skipped, unless the configuration requires confinement. The profile is looked up when the container
//! is set up, and applied when the program is executed. In between it may be unloaded or loaded again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use crate::config::Config;

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The configuration requires confinement, but the profile is not loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("AppArmor profile {0} is required and not loaded")]
pub struct ProfileNotLoaded(String);

/// Returns the profile to apply, if any.
pub fn profile(config: &Config) -> Result<Option<String>, ProfileNotLoaded> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    applicable(config, &read(ENABLED), &read(LOADED))
}

fn applicable(config: &Config, enabled: &str, loaded: &str) -> Result<Option<String>, ProfileNotLoaded> {
    let profile = config.apparmor_profile();
    match profile.filter(|profile| enabled.starts_with('Y') && is_loaded(loaded, profile)) {
        None if config.requires_apparmor() => Err(ProfileNotLoaded(profile.unwrap_or("(none)").to_owned())),
        found => Ok(found.map(str::to_owned)),
    }
}

/// The kernel's list has lines like `raind-default (enforce)`.
fn is_loaded(loaded: &str, profile: &str) -> bool {
    loaded
        .lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile))
}

/// Confines this process at its next `execve`. `proc` must be a procfs of the host that shows this process: in the
/// container's `/proc`, the files could be anything.
fn confine_on_exec(proc: impl AsFd, profile: &str) -> rustix::io::Result<()> {
    let open = |path| openat(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    // Kernels before 5.8 have only the second file.
    let file = open("self/attr/apparmor/exec").or_else(|_| open("self/attr/exec"))?;
    rustix::io::write(file, format!("exec {profile}").as_bytes())?;
    Ok(())
}

/// Lets a process confine itself when it no longer sees the host's files.
#[derive(Debug)]
pub struct Confinement {
    /// The `/proc` of the host.
    proc: OwnedFd,
    profile: String,
    required: bool,
}

impl AsFd for Confinement {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }
}

impl Confinement {
    /// Prepares a profile that is loaded.
    pub fn new(profile: String, required: bool) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        Ok(Self {
            proc,
            profile,
            required,
        })
    }

    /// Confines this process at its next `execve`. Returns `false` if the profile was unloaded and is not required.
    pub fn apply_on_exec(&self) -> Result<bool, String> {
        match confine_on_exec(&self.proc, &self.profile) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) if !self.required => Ok(false),
            Err(errno) => Err(format!("cannot apply AppArmor profile {}: {errno}", self.profile)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_whole_name() {
        let loaded = "raind-default-2 (enforce)\nraind-default (enforce)\na b (complain)\n";
        assert!(is_loaded(loaded, "raind-default") && is_loaded(loaded, "a b"));
        assert!(!is_loaded(loaded, "raind") && !is_loaded(loaded, "a") && !is_loaded("", "raind-default"));
    }

    #[test]
    fn without_a_configured_profile_nothing_is_applied() {
        assert_eq!(profile(&Config::default()), Ok(None));
    }

    #[test]
    fn a_required_profile_that_is_not_loaded_is_an_error() {
        let config = |required: bool| {
            let text = format!(
                r#"{{"linux":{{"apparmorProfile":"p"}},"annotations":{{"io.raind.apparmor.required":"{required}"}}}}"#
            );
            Config::parse(text.as_bytes(), std::path::Path::new("config.json")).unwrap()
        };
        for required in [true, false] {
            assert_eq!(
                applicable(&config(required), "Y\n", "p (enforce)\n"),
                Ok(Some("p".into()))
            );
        }
        for (enabled, loaded) in [("Y\n", "q (enforce)\n"), ("N\n", "p (enforce)\n"), ("", "")] {
            assert_eq!(applicable(&config(false), enabled, loaded), Ok(None));
            let error = applicable(&config(true), enabled, loaded).unwrap_err().to_string();
            assert_eq!(error, "AppArmor profile p is required and not loaded");
        }
    }
}
