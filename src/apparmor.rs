//! The AppArmor profile of containers (`contract/security.md` 7): written and loaded at start, where the kernel has
//! AppArmor switched on. A profile whose text differs from the file of the last start is loaded again.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::runtime::defaults::APPARMOR_PROFILE;

/// The profile's text.
const PROFILE: &str = include_str!("../assets/apparmor/raind-default");
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSER_LIMIT: Duration = Duration::from_secs(3);

/// Whether containers are confined by AppArmor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confinement {
    /// The profile is loaded.
    Confined,
    /// It is not, for this reason.
    Unconfined(String),
}

/// Writes the profile below `root_dir` and loads it. Never fails: the reason is part of the answer.
pub async fn load(root_dir: &Path) -> Confinement {
    if !std::fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with(['Y', 'y', '1'])) {
        return Confinement::Unconfined("AppArmor is not enabled in this kernel".into());
    }
    match install(&root_dir.join("lsm/apparmor")).await {
        Ok(()) => Confinement::Confined,
        Err(reason) => Confinement::Unconfined(reason),
    }
}

async fn install(directory: &Path) -> Result<(), String> {
    let file = directory.join(APPARMOR_PROFILE);
    let unchanged = std::fs::read_to_string(&file).is_ok_and(|text| text == PROFILE);
    if !unchanged {
        let staged = file.with_extension("new");
        fs_err::create_dir_all(directory).map_err(|e| e.to_string())?;
        fs_err::write(&staged, PROFILE).map_err(|e| e.to_string())?;
        fs_err::rename(&staged, &file).map_err(|e| e.to_string())?;
    }
    if unchanged && is_loaded() {
        return Ok(());
    }
    let mut command = tokio::process::Command::new("apparmor_parser");
    command.arg("-r").arg(&file).stdin(Stdio::null()).kill_on_drop(true);
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
    if is_loaded() {
        Ok(())
    } else {
        Err("the profile does not appear among the loaded ones".into())
    }
}

fn is_loaded() -> bool {
    std::fs::read_to_string(LOADED).is_ok_and(|text| {
        text.lines()
            .any(|line| line.split_ascii_whitespace().next() == Some(APPARMOR_PROFILE))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_profile_that_containers_name() {
        assert!(PROFILE.contains(&format!("profile {APPARMOR_PROFILE} ")));
    }

    #[tokio::test]
    async fn a_machine_without_apparmor_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        if !Path::new(ENABLED).exists() {
            let Confinement::Unconfined(reason) = load(dir.path()).await else {
                panic!("confined without AppArmor")
            };
            assert!(reason.contains("not enabled"), "{reason}");
        }
    }
}
