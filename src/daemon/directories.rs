//! What must be so before anything else: the user is root, and the directories are there.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::DaemonError;
use crate::config::Config;

/// Everything that can be refused without having touched more than directories.
pub(super) fn prepare(config: &Config) -> Result<(), DaemonError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    // Files say their mode themselves; whatever the daemon was started with must not take from it.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let directories = [
        (config.root_dir.clone(), 0o755),
        (config.container_root(), 0o755),
        (config.image_root(), 0o755),
        (config.pod_root(), 0o755),
        (config.volume_root(), 0o700),
        (config.root_dir.join("log"), 0o755),
        (config.cert_dir(), 0o700),
        (config.log_dir.clone(), 0o750),
        (config.run_dir.clone(), 0o755),
    ];
    for (path, mode) in directories {
        make_directory(&path, mode)?;
    }
    Ok(())
}

/// An existing directory keeps its mode, except that an earlier installation made some that nobody can enter.
fn make_directory(path: &Path, mode: u32) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::Directory {
        path: path.display().to_string(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed)?;
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.permissions().mode() & 0o100 == 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(())
}
