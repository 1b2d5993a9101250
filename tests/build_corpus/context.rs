//! The context of a fixture, as it is meant: git knows neither most modes nor empty directories.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// A copy of the fixture, removed with this.
pub struct Context(tempfile::TempDir);

impl Context {
    /// Files are 0644 or 0755, directories 0755; then `setup` runs in it.
    pub fn new(fixture: &Path, setup: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        copy(fixture, scratch.path());
        let script = format!("umask 022\n{setup}");
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &script]).current_dir(scratch.path());
        assert!(shell.status().unwrap().success(), "{}: {setup}", fixture.display());
        Self(scratch)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// All of it, owned by root.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        archive.follow_symlinks(false);
        archive.append_dir_all(".", self.path()).unwrap();
        archive.into_inner().unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    set_mode(to, 0o755);
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
            let executable = from.metadata().unwrap().permissions().mode() & 0o100 != 0;
            set_mode(&to, if executable { 0o755 } else { 0o644 });
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}
