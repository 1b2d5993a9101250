//! Resolves paths of a container.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Maximum number of symbolic links in a path, as in the kernel.
const MAX_SYMLINKS: usize = 40;

/// Resolves all symbolic links of a container's path inside `root`, as the container would. Keeps the part of the path
/// that does not exist: the mount makes it (M3).
///
/// Nobody else may change `root` meanwhile. The container does not run yet.
pub fn resolve(root: &Path, path: &Path) -> std::io::Result<PathBuf> {
    let names = |path: &Path| -> Vec<OsString> { path.components().map(|c| c.as_os_str().to_owned()).collect() };
    let mut pending: VecDeque<OsString> = names(path).into();
    let mut resolved = PathBuf::from("/");
    let mut followed = 0;
    while let Some(name) = pending.pop_front() {
        match Path::new(&name).components().next() {
            Some(Component::RootDir) => resolved = PathBuf::from("/"),
            Some(Component::ParentDir) => {
                resolved.pop();
            }
            Some(Component::Normal(_)) => {
                let candidate = resolved.join(&name);
                let on_host = root.join(candidate.strip_prefix("/").unwrap_or(&candidate));
                let Ok(target) = std::fs::read_link(&on_host) else {
                    resolved = candidate;
                    continue;
                };
                followed += 1;
                if followed > MAX_SYMLINKS {
                    let reason = format!("{}: too many levels of symbolic links", path.display());
                    return Err(std::io::Error::other(reason));
                }
                for name in names(&target).into_iter().rev() {
                    pending.push_front(name);
                }
            }
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_is_resolved_as_the_container_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir_all(root.join("data")).unwrap();
        symlink("/run", root.join("var")).unwrap();
        symlink("../../../run/systemd/resolv.conf", root.join("etc/resolv.conf")).unwrap();
        symlink("data", root.join("link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let resolved = |path: &str| resolve(root, Path::new(path)).unwrap();
        assert_eq!(resolved("/etc/hosts"), Path::new("/etc/hosts"));
        assert_eq!(resolved("/etc/resolv.conf"), Path::new("/run/systemd/resolv.conf"));
        assert_eq!(resolved("/var/lock/x"), Path::new("/run/lock/x"));
        assert_eq!(resolved("/link/new/dir"), Path::new("/data/new/dir"));
        assert_eq!(resolved("/../.."), Path::new("/"));
        assert!(resolve(root, Path::new("/loop/x")).is_err());
    }
}
