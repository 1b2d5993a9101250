//! Confinement of a container's processes by AppArmor (`docs/spec/runtime.md` 9.8, 16.6 S2).
//!
//! A profile that is asked for is applied when the kernel has AppArmor switched on and the profile loaded; then it must
//! succeed. Otherwise it is left out, unless the configuration says that the container must be confined. What the kernel has
//! is looked at when the container is set up, and what it says counts when the program is executed: in between somebody
//! may unload the profile, or load it again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use crate::config::Config;

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The container must be confined and cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("AppArmor profile {0} is required and not loaded")]
pub struct Unconfined(String);

/// The profile to apply, if any.
pub fn profile(config: &Config) -> Result<Option<String>, Unconfined> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    applicable(config, &read(ENABLED), &read(LOADED))
}

fn applicable(config: &Config, enabled: &str, loaded: &str) -> Result<Option<String>, Unconfined> {
    let profile = config.apparmor_profile();
    match profile.filter(|profile| enabled.starts_with('Y') && lists(loaded, profile)) {
        None if config.must_be_confined() => Err(Unconfined(profile.unwrap_or("(none)").to_owned())),
        found => Ok(found.map(str::to_owned)),
    }
}

/// The kernel's list has lines like `raind-default (enforce)`.
fn lists(loaded: &str, profile: &str) -> bool {
    loaded
        .lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile))
}

/// Confines this process from its next `execve` on. `proc` is a procfs that shows it and cannot be the container's: there
/// the files could be anything.
fn confine_on_exec(proc: impl AsFd, profile: &str) -> rustix::io::Result<()> {
    let open = |path| openat(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    // The second is for kernels before 5.8.
    let file = open("self/attr/apparmor/exec").or_else(|_| open("self/attr/exec"))?;
    rustix::io::write(file, format!("exec {profile}").as_bytes())?;
    Ok(())
}

/// What a process needs to confine itself where it does not see the host's files any more.
#[derive(Debug)]
pub struct Confinement {
    /// Of the host.
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
    /// For a profile that is loaded.
    pub fn new(profile: String, required: bool) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        Ok(Self {
            proc,
            profile,
            required,
        })
    }

    /// Confines this process from its next `execve` on. `Ok(false)`: the profile is not loaded any more, and need not be.
    pub fn on_exec(&self) -> Result<bool, String> {
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
    fn a_profile_is_looked_up_by_its_whole_name() {
        let loaded = "raind-default-2 (enforce)\nraind-default (enforce)\na b (complain)\n";
        assert!(lists(loaded, "raind-default") && lists(loaded, "a b"));
        assert!(!lists(loaded, "raind") && !lists(loaded, "a") && !lists("", "raind-default"));
    }

    #[test]
    fn without_a_request_there_is_nothing_to_apply() {
        assert_eq!(profile(&Config::default()), Ok(None));
    }

    #[test]
    fn a_profile_that_is_required_and_not_loaded_is_an_error() {
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
