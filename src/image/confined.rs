//! Reads files that hostile processes may be changing: in a thread whose root is the directory that is read.
//!
//! Whatever a link or a renamed directory leads to, it leads to something within that root. The mount has no devices, no
//! set-user-ID programs and cannot be written; it exists only in the mount namespace of the thread, which ends with the
//! work. Files of the host, `/proc` among them, do not exist there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

const SAFE: MountFlags = MountFlags::NODEV
    .union(MountFlags::NOSUID)
    .union(MountFlags::NOEXEC)
    .union(MountFlags::RDONLY);

/// Calls `work` with `/`, which is a directory. `at` is an empty directory to mount on.
pub(super) fn in_directory<T: Send>(source: &Path, at: &Path, work: impl FnOnce(&Path) -> T + Send) -> io::Result<T> {
    confined(at, work, || {
        rustix::mount::mount_bind(source, at)?;
        rustix::mount::mount_remount(at, MountFlags::BIND | SAFE, "")?;
        Ok(())
    })
}

/// Calls `work` with `/`, which is what an overlay of these directories shows, topmost first. They may be in use by
/// another mount.
pub(super) fn in_layers<T: Send>(
    directories: &[PathBuf],
    at: &Path,
    work: impl FnOnce(&Path) -> T + Send,
) -> io::Result<T> {
    if let [single] = directories {
        return in_directory(single, at, work);
    }
    confined(at, work, || {
        let open =
            |path: &PathBuf| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let layers = directories.iter().map(open).collect::<Result<Vec<OwnedFd>, _>>()?;
        // Descriptors instead of paths: the options of many layers must fit into one page.
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let lower = layers.iter().map(path).collect::<Vec<_>>().join(":");
        let options = format!("lowerdir={lower},index=off,redirect_dir=off,metacopy=off");
        let options = CString::new(options).map_err(io::Error::other)?;
        rustix::mount::mount("overlay", at, "overlay", SAFE, Some(options.as_c_str()))?;
        Ok(())
    })
}

fn confined<T: Send>(
    at: &Path,
    work: impl FnOnce(&Path) -> T + Send,
    mount: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> io::Result<T> {
            // SAFETY: replaces the mount namespace and the file system attributes of this thread only, which is not a
            // pool thread and ends here; memory and descriptors are not affected.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount()?;
            rustix::process::chroot(at)?;
            rustix::process::chdir("/")?;
            Ok(work(Path::new("/")))
        });
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the work on the files of a container panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_nothing_of_the_host() {
        let scratch = tempfile::tempdir().unwrap();
        let [one, two, at] = ["one", "two", "at"].map(|name| scratch.path().join(name));
        for path in [&one, &two, &at] {
            std::fs::create_dir(path).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", one.join("link")).unwrap();
        std::os::unix::fs::symlink(&two, one.join("out")).unwrap();
        std::fs::write(two.join("below"), "below").unwrap();
        let seen = |root: &Path| {
            let read = |name: &str| std::fs::read_to_string(root.join(name)).ok();
            let written = std::fs::write(root.join("new"), "").is_ok();
            (
                read("link"),
                read("below"),
                std::fs::read_dir(root.join("out")).is_ok(),
                written,
            )
        };
        assert_eq!(in_directory(&one, &at, seen).unwrap(), (None, None, false, false));
        let both = [one.clone(), two];
        assert_eq!(
            in_layers(&both, &at, seen).unwrap(),
            (None, Some("below".into()), false, false)
        );
        assert_eq!(in_layers(&both[..1], &at, seen).unwrap(), (None, None, false, false));
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0, "nothing is mounted here");
    }
}
