//! Lists a directory. Tests outside of the library compile this file too.

#![allow(clippy::unwrap_used, reason = "for tests")]

use std::path::Path;

/// The paths beneath `root`, sorted, directories with a slash at the end.
pub(crate) fn names(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let is_dir = path.symlink_metadata().unwrap().is_dir();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            names.push(if is_dir { name + "/" } else { name });
            if is_dir {
                pending.push(path);
            }
        }
    }
    names.sort();
    names
}
