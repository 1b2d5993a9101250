//! The AppArmor profile of containers (`docs/spec/security.md` 7), written and loaded if the kernel has AppArmor
//! enabled.
//!
//! The profile is checked before every container start, because other programs may unload it (`aa-remove-unknown`, or
//! a package that runs it). Then it is loaded again. Containers that were started meanwhile stay unconfined until
//! they are restarted.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::runtime::defaults::APPARMOR_PROFILE;

/// The profile's text.
const PROFILE: &str = include_str!("../../assets/apparmor/raind-default");
const PARSER_LIMIT: Duration = Duration::from_secs(3);
/// How long to wait before loading the profile again after a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether containers are confined by AppArmor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confinement {
    /// The profile is loaded.
    Confined,
    /// The profile is not loaded; the reason.
    Unconfined(String),
}

/// The profile and its load state.
#[derive(Debug)]
pub struct AppArmor {
    kernel: Kernel,
    /// Directory of the profile file.
    directory: PathBuf,
    known: Mutex<Known>,
}

/// The kernel's AppArmor files, and the parser that loads a profile.
#[derive(Debug)]
struct Kernel {
    enabled: PathBuf,
    loaded: PathBuf,
    parser: PathBuf,
}

#[derive(Debug, Default)]
struct Known {
    /// This exact profile was loaded by this process, or was found loaded.
    is_ours: bool,
    /// The latest failure to load it.
    refused: Option<(Instant, String)>,
}

impl Kernel {
    fn of_this_machine() -> Self {
        Self {
            enabled: "/sys/module/apparmor/parameters/enabled".into(),
            loaded: "/sys/kernel/security/apparmor/profiles".into(),
            parser: "apparmor_parser".into(),
        }
    }

    fn is_enabled(&self) -> bool {
        fs_err::read_to_string(&self.enabled).is_ok_and(|text| text.starts_with(['Y', 'y', '1']))
    }

    /// The list has lines like `raind-default (enforce)`.
    fn has_profile(&self) -> bool {
        fs_err::read_to_string(&self.loaded).is_ok_and(|text| {
            text.lines()
                .any(|line| line.split_ascii_whitespace().next() == Some(APPARMOR_PROFILE))
        })
    }

    #[expect(clippy::disallowed_methods, reason = "ended when it takes too long")]
    async fn load(&self, file: &Path) -> Result<(), String> {
        let mut command = tokio::process::Command::new(&self.parser);
        command.arg("-r").arg(file).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PARSER_LIMIT, command.output())
            .await
            .map_err(|_| "apparmor_parser did not end in time".to_owned())?
            .map_err(|e| format!("cannot start apparmor_parser: {e}"))?;
        if !output.status.success() {
            return Err(format!(
                "apparmor_parser refused the profile: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
        match self.has_profile() {
            true => Ok(()),
            false => Err("the kernel does not list the profile after loading it".into()),
        }
    }
}

impl AppArmor {
    /// `root_dir` is where the profile file will be written. Nothing is loaded yet.
    pub fn new(root_dir: &Path) -> Self {
        Self {
            kernel: Kernel::of_this_machine(),
            directory: root_dir.join("lsm/apparmor"),
            known: Mutex::default(),
        }
    }

    /// Loads the profile if necessary and returns whether it is loaded. Never fails: the result includes the reason.
    pub async fn confine(&self) -> Confinement {
        if !self.kernel.is_enabled() {
            return Confinement::Unconfined("AppArmor is not enabled in this kernel".into());
        }
        let mut known = self.known.lock().await;
        if known.is_ours && self.kernel.has_profile() {
            return Confinement::Confined;
        }
        if let Some((_, reason)) = known.refused.as_ref().filter(|(at, _)| at.elapsed() < PATIENCE) {
            return Confinement::Unconfined(reason.clone());
        }
        match self.install().await {
            Ok(()) => {
                if known.is_ours {
                    tracing::warn!(
                        profile = APPARMOR_PROFILE,
                        "the AppArmor profile was unloaded and has been loaded again; containers that were started \
                         meanwhile stay unconfined until they are restarted"
                    );
                }
                *known = Known {
                    is_ours: true,
                    refused: None,
                };
                Confinement::Confined
            }
            Err(reason) => {
                tracing::warn!(profile = APPARMOR_PROFILE, reason, "cannot load the AppArmor profile");
                known.refused = Some((Instant::now(), reason.clone()));
                Confinement::Unconfined(reason)
            }
        }
    }

    /// If the text differs from the file of the last start, load the profile even if one with its name is loaded.
    async fn install(&self) -> Result<(), String> {
        let file = self.directory.join(APPARMOR_PROFILE);
        let unchanged = fs_err::read_to_string(&file).is_ok_and(|text| text == PROFILE);
        if !unchanged {
            let staged = file.with_extension("new");
            fs_err::create_dir_all(&self.directory).map_err(|e| e.to_string())?;
            fs_err::write(&staged, PROFILE).map_err(|e| e.to_string())?;
            fs_err::rename(&staged, &file).map_err(|e| e.to_string())?;
        }
        if unchanged && self.kernel.has_profile() {
            return Ok(());
        }
        self.kernel.load(&file).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A fake machine made of files, and a parser that adds its argument to the list of profiles.
    struct Machine {
        dir: tempfile::TempDir,
        apparmor: AppArmor,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            std::fs::write(path("enabled"), "Y\n").unwrap();
            std::fs::write(path("profiles"), "raind-default-2 (enforce)\n").unwrap();
            let apparmor = AppArmor {
                kernel: Kernel {
                    enabled: path("enabled"),
                    loaded: path("profiles"),
                    parser: path("parser"),
                },
                directory: path("lsm"),
                known: Mutex::default(),
            };
            let machine = Self { dir, apparmor };
            let loads = format!(
                "echo \"raind-default (enforce)\" >> {0}/profiles; echo $1 $2 >> {0}/calls",
                machine.dir.path().display()
            );
            machine.parser(&loads);
            machine
        }

        /// Replaces the file: one that is open for writing cannot be executed.
        fn parser(&self, body: &str) {
            let (new, path) = (self.dir.path().join("parser.new"), self.dir.path().join("parser"));
            std::fs::write(&new, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
            std::fs::rename(new, path).unwrap();
        }

        fn unload(&self) {
            std::fs::write(self.dir.path().join("profiles"), "").unwrap();
        }

        fn loads(&self) -> usize {
            let calls = std::fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
            calls.lines().filter(|line| line.starts_with("-r ")).count()
        }
    }

    #[test]
    fn the_text_is_the_profile_that_containers_name() {
        assert!(PROFILE.contains(&format!("profile {APPARMOR_PROFILE} ")));
        assert!(PROFILE.contains(&format!("peer={APPARMOR_PROFILE}")));
    }

    #[tokio::test]
    async fn a_machine_without_apparmor_is_told_apart() {
        let machine = Machine::new();
        std::fs::remove_file(machine.dir.path().join("enabled")).unwrap();
        let Confinement::Unconfined(reason) = machine.apparmor.confine().await else {
            panic!("confined without AppArmor")
        };
        assert!(reason.contains("not enabled"), "{reason}");
        assert_eq!(machine.loads(), 0);
    }

    #[tokio::test]
    async fn a_profile_that_was_unloaded_is_loaded_again() {
        let machine = Machine::new();
        for loads in [1, 2] {
            for _ in 0..2 {
                assert_eq!(machine.apparmor.confine().await, Confinement::Confined);
                assert_eq!(machine.loads(), loads);
            }
            machine.unload();
        }
    }

    #[tokio::test]
    async fn an_older_text_is_replaced_although_it_is_loaded() {
        let machine = Machine::new();
        std::fs::create_dir(machine.dir.path().join("lsm")).unwrap();
        let file = machine.dir.path().join("lsm").join(APPARMOR_PROFILE);
        std::fs::write(&file, "profile raind-default {}").unwrap();
        std::fs::write(machine.dir.path().join("profiles"), "raind-default (enforce)\n").unwrap();
        assert_eq!(machine.apparmor.confine().await, Confinement::Confined);
        assert_eq!(machine.loads(), 1);
        assert_eq!(std::fs::read_to_string(file).unwrap(), PROFILE);
    }

    #[tokio::test]
    async fn what_cannot_be_loaded_is_said_and_not_tried_for_every_container() {
        let machine = Machine::new();
        machine.parser(&format!(
            "echo -r x >> {}/calls; echo no such thing >&2; exit 1",
            machine.dir.path().display()
        ));
        for _ in 0..2 {
            let Confinement::Unconfined(reason) = machine.apparmor.confine().await else {
                panic!("confined")
            };
            assert!(reason.contains("refused the profile: no such thing"), "{reason}");
        }
        assert_eq!(machine.loads(), 1);
    }
}
