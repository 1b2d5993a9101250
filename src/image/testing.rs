//! Archives and overlay mounts for the tests of this module.

use std::path::{Path, PathBuf};

mod builder;
mod names;

pub(crate) use self::builder::{Tar, pax};
pub(crate) use self::names::names;

impl Tar {
    /// Unpacks the archive into a new directory.
    pub(super) fn unpack_to(self, root: &Path) -> Result<(), super::tree::TreeError> {
        std::fs::create_dir(root).unwrap();
        super::unpack::unpack(&self.build()[..], root, 1000)
    }
}

/// Calls `check` on a real overlay mount of the layers, topmost first, in a mount namespace of its own.
pub(super) fn with_overlay(lower_dirs: &[PathBuf], check: impl FnOnce(&Path) + Send) {
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = scratch.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (upper, work, merged) = (place("upper"), place("work"), place("merged"));
    let lower: Vec<_> = lower_dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    std::thread::scope(|scope| {
        let mounted = scope.spawn(|| {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(
                Some("overlay"),
                &merged,
                Some("overlay"),
                MsFlags::empty(),
                Some(&options[..]),
            )
            .unwrap();
            check(&merged);
        });
        if let Err(panic) = mounted.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// All paths beneath `root` with their visible metadata, except access times.
pub(crate) fn listing(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let m = std::fs::symlink_metadata(&path).unwrap();
        let content = if m.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            String::new()
        } else if m.is_symlink() {
            format!("{:?}", std::fs::read_link(&path).unwrap())
        } else if m.is_file() {
            super::digest::Digest::of(&std::fs::read(&path).unwrap()).to_string()
        } else {
            m.rdev().to_string()
        };
        let (mode, times) = (m.mode(), (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()));
        let path = path.strip_prefix(root).unwrap();
        lines.push(format!(
            "{path:?} {mode:o} {}:{} {} {times:?} {content}",
            m.uid(),
            m.gid(),
            m.nlink()
        ));
    }
    lines.sort();
    lines
}
