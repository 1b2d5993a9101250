//! What a plain copy of an unpacked layer loses, noted beside it, so that a copy becomes the layer again.
//!
//! `tar` and `cp -a` without further options drop extended attributes (file capabilities, what overlayfs notes in
//! directories, the layer's own mark), and `tar` gives files to users by their *names* on the machine where it unpacks.
//! The record of a layer holds both, for entries that have attributes or an owner other than root, and a digest over
//! names, kinds, modes, owners, sizes, times and link targets of all entries, by which a copy is judged. It does not vouch
//! for the bytes in files: who can change those without a trace in size and time is root.
//!
//! All functions block.

use std::fmt::Write;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::capture::{attribute, attribute_names};
use super::digest::Digest;

/// Attributes that are this machine's, not the layer's: labels that its policy gives, and the mark of the layer store.
const NOT_OURS: [&str; 4] = [
    "security.selinux",
    "security.ima",
    "security.evm",
    super::layers::DIFF_ID,
];

/// The record of one layer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Digest over the description of every entry.
    tree: String,
    /// What a plain copy loses.
    entries: Vec<Entry>,
}

/// What a plain copy loses of one entry.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Below the layer's root, which is empty; what is not plain ASCII is `%` and two hexadecimal digits.
    path: String,
    uid: u32,
    gid: u32,
    mode: u32,
    /// Name and value in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<(String, String)>,
}

impl Record {
    /// Looks at every entry of an unpacked layer.
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let mut seen = Seen {
            root,
            hash: Sha256::new(),
            entries: Vec::new(),
        };
        walk(root, usize::MAX, |path| seen.entry(path))?;
        Ok(Self {
            tree: Digest::finish(seen.hash).to_string(),
            entries: seen.entries,
        })
    }

    /// Gives a copy what it has lost. `false` if it is not a copy of the recorded layer; then it is of no use.
    pub(super) fn restore(&self, root: &Path) -> io::Result<bool> {
        for entry in &self.entries {
            let Some(path) = unescape(&entry.path) else {
                return Ok(false);
            };
            match entry.restore(&root.join(path)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                restored => restored?,
            }
        }
        Ok(Self::of(root)? == *self)
    }
}

/// Notes the same of a tree that others may be changing. An error if it has more than `most` entries.
pub(crate) fn note(root: &Path, most: usize) -> io::Result<Vec<Entry>> {
    let mut seen = Seen {
        root,
        hash: Sha256::new(),
        entries: Vec::new(),
    };
    walk(root, most, |path| match seen.entry(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        seen => seen,
    })?;
    Ok(seen.entries)
}

/// Gives a copy of such a tree what it has lost, as far as the entries are there.
pub(crate) fn give_back(root: &Path, entries: &[Entry]) -> io::Result<()> {
    for entry in entries {
        let Some(path) = unescape(&entry.path) else { continue };
        match entry.restore(&root.join(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            restored => restored?,
        }
    }
    Ok(())
}

/// Visits every entry, directories first, in an order that does not change. `visit` says whether it is a directory.
fn walk(root: &Path, most: usize, mut visit: impl FnMut(&Path) -> io::Result<bool>) -> io::Result<()> {
    let mut pending = vec![PathBuf::new()];
    let mut left = most;
    while let Some(path) = pending.pop() {
        left = left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other(format!("{} has more than {most} entries", root.display())))?;
        if !visit(&path)? {
            continue;
        }
        let listing = match fs_err::read_dir(root.join(&path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            listing => listing?,
        };
        let mut names = listing
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        pending.extend(names.into_iter().map(|name| path.join(name)));
    }
    Ok(())
}

impl Entry {
    fn restore(&self, path: &Path) -> io::Result<()> {
        let metadata = fs_err::symlink_metadata(path)?;
        if (metadata.uid(), metadata.gid()) != (self.uid, self.gid) {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))?;
        }
        // A change of owner takes setuid away, and capabilities.
        if !metadata.is_symlink() {
            fs_err::set_permissions(path, PermissionsExt::from_mode(self.mode))?;
        }
        for (name, value) in &self.attributes {
            let value = BASE64.decode(value).map_err(io::Error::other)?;
            rustix::fs::lsetxattr(path, name.as_str(), &value, XattrFlags::empty())?;
        }
        Ok(())
    }
}

struct Seen<'a> {
    root: &'a Path,
    hash: Sha256,
    entries: Vec<Entry>,
}

impl Seen<'_> {
    /// Takes note of one entry. Whether it is a directory.
    fn entry(&mut self, path: &Path) -> io::Result<bool> {
        let full = self.root.join(path);
        let metadata = fs_err::symlink_metadata(&full)?;
        let kind = metadata.file_type();
        let mut said = escape(path.as_os_str().as_bytes());
        let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
        // Writing to a string has no way to fail.
        let _ = write!(said, " {mode:o} {uid} {gid}");
        if kind.is_file() {
            // Tar keeps whole seconds.
            let _ = write!(said, " {} {}", metadata.size(), metadata.mtime());
        } else if kind.is_symlink() {
            let target = fs_err::read_link(&full)?;
            let _ = write!(said, " {}", escape(target.as_os_str().as_bytes()));
        } else if kind.is_char_device() || kind.is_block_device() {
            let _ = write!(said, " {}", metadata.rdev());
        }
        said.push('\n');
        self.hash.update(said.as_bytes());
        let attributes = kept_attributes(&full)?;
        if !attributes.is_empty() || (uid, gid) != (0, 0) {
            self.entries.push(Entry {
                path: escape(path.as_os_str().as_bytes()),
                uid,
                gid,
                mode: mode & 0o7777,
                attributes,
            });
        }
        Ok(kind.is_dir())
    }
}

fn kept_attributes(path: &Path) -> io::Result<Vec<(String, String)>> {
    let mut names = attribute_names(path)?;
    // What else overlayfs notes in upper directories speaks of the file system that they are on.
    let is_overlays = |name: &str| name.starts_with("trusted.overlay.") && name != super::tree::OPAQUE;
    names.retain(|name| !NOT_OURS.contains(&&**name) && !is_overlays(name));
    names.sort();
    let value = |name: String| Ok((name.clone(), BASE64.encode(attribute(path, &name)?.unwrap_or_default())));
    names.into_iter().map(value).collect()
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'%' | 0..=b' ' | 0x7f.. => drop(write!(text, "%{byte:02x}")),
            plain => text.push(char::from(plain)),
        }
    }
    text
}

/// `None` for what [`escape`] has not written, and for a path that would leave the layer.
fn unescape(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let mut byte = [0];
        hex::decode_to_slice(tail.get(..2)?, &mut byte).ok()?;
        bytes.push(byte[0]);
        rest = &tail[2..];
    }
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
    let is_plain = |part| matches!(part, std::path::Component::Normal(_));
    path.components().all(is_plain).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer with everything that gets lost.
    fn layer(root: &Path) {
        std::fs::create_dir_all(root.join("srv/opaque")).unwrap();
        std::fs::create_dir(root.join("bin")).unwrap();
        std::fs::write(root.join("bin/ping"), "ping").unwrap();
        std::fs::write(root.join("srv/of app\u{e4}"), "mine").unwrap();
        std::os::unix::fs::symlink("ping", root.join("bin/link")).unwrap();
        let set = |path: &str, name: &str, value: &[u8]| {
            rustix::fs::lsetxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
        };
        std::os::unix::fs::chown(root.join("srv/of app\u{e4}"), Some(1001), Some(1002)).unwrap();
        fs_err::set_permissions(root.join("srv/of app\u{e4}"), PermissionsExt::from_mode(0o4750)).unwrap();
        set("srv/opaque", "trusted.overlay.opaque", b"y");
        set(
            "bin/ping",
            "security.capability",
            &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
    }

    fn run(command: &str) {
        assert!(
            std::process::Command::new("sh")
                .args(["-c", command])
                .status()
                .unwrap()
                .success()
        );
    }

    #[test]
    fn a_plain_copy_becomes_the_layer_again() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::create_dir(&one).unwrap();
        layer(&one);
        let record = Record::of(&one).unwrap();
        run(&format!(
            "cd {0} && tar -cf x.tar one && mkdir two && tar -xf x.tar -C two --strip-components=1",
            dir.path().display()
        ));
        assert_ne!(Record::of(&two).unwrap(), record, "nothing was lost");
        // As on a machine where that name has another number.
        std::os::unix::fs::chown(two.join("srv/of app\u{e4}"), Some(7), None).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        let record: Record = serde_json::from_str(&text).unwrap();
        assert!(record.restore(&two).unwrap());
        assert_eq!(Record::of(&two).unwrap(), record);
    }

    #[test]
    fn what_is_no_copy_is_not_taken_for_one() {
        for change in [
            "rm bin/link",
            "echo more >> bin/ping",
            "touch new",
            "chmod 700 bin",
            "rm -r srv",
            "ln -sf sh bin/link",
            "touch -d 2001-01-01 bin/ping",
        ] {
            let dir = tempfile::tempdir().unwrap();
            layer(dir.path());
            let record = Record::of(dir.path()).unwrap();
            assert!(record.restore(dir.path()).unwrap());
            run(&format!("cd {} && {change}", dir.path().display()));
            assert!(!record.restore(dir.path()).unwrap(), "{change}");
        }
    }

    #[test]
    fn names_come_back() {
        for name in [&b"a b%/\xff\n"[..], b"", b"x/y"] {
            assert_eq!(unescape(&escape(name)).unwrap().as_os_str().as_bytes(), name);
        }
        for bad in ["%", "%zz", "../x", "/x", "a/../../b", "%2e%2e/x"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }
}
