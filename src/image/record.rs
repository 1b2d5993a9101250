//! Records of the metadata that a plain copy of an unpacked layer loses, so that the copy can be restored.
//!
//! `tar` and `cp -a` without further options drop extended attributes (file capabilities, overlayfs attributes of
//! directories, the layer's own diff id), and `tar` maps owners by user *name* on the machine where it unpacks. The
//! record of a layer holds both, for entries that have attributes or an owner other than root. It also holds a digest
//! over names, kinds, modes, owners, sizes, times and link targets of all entries, which tells whether a copy is
//! complete. The digest does not cover file contents: whoever can change those without changing size or time is root.
//!
//! All functions block.

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::beneath::{Beneath, Object};
use super::digest::Digest;

/// Attributes that are this machine's, not the layer's: labels that its policy gives, and the mark of the layer store.
const NOT_OURS: [&str; 4] = ["security.selinux", "security.ima", "security.evm", super::tree::DIFF_ID];
/// Gives whoever runs a file capabilities.
const CAPABILITY: &str = "security.capability";
/// The set-user-ID and set-group-ID bits.
const SET_ID: u32 = 0o6000;
/// Overhead in bytes, rounded up: of an entry besides its path and attributes, and of an attribute besides name and
/// value.
const FRAME: usize = 100;

/// The record of one layer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Digest over the description of every entry.
    tree: String,
    /// The metadata that a plain copy loses.
    entries: Vec<Entry>,
}

/// The metadata that a plain copy loses of one entry.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Path relative to the layer's root (empty: the root itself); bytes other than plain ASCII are `%` and two hex
    /// digits.
    path: String,
    uid: u32,
    gid: u32,
    /// Mode including the file type, as in `st_mode`. Earlier versions omitted the type.
    mode: u32,
    /// Names and values, base64-encoded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<(String, String)>,
    /// Size and modification time in whole seconds of a file that grants privileges when executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<(u64, i64)>,
}

/// Limits of a record.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// Maximum number of entries of one tree.
    pub(crate) entries: usize,
    /// Approximate number of bytes left for all records together.
    pub(crate) bytes: usize,
    /// When to give up.
    pub(crate) until: Option<Instant>,
}

impl Allowance {
    const UNLIMITED: Self = Self {
        entries: usize::MAX,
        bytes: usize::MAX,
        until: None,
    };

    /// Whether the deadline has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    fn check(&self, entries: usize, root: &Path) -> io::Result<()> {
        let root = root.display();
        if entries > self.entries {
            return Err(io::Error::other(format!(
                "{root} has more than {} entries",
                self.entries
            )));
        }
        if self.is_over() {
            return Err(io::Error::other(format!("no time was left for {root}")));
        }
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> io::Result<()> {
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.ok_or_else(|| io::Error::other("the notes become too large"))?;
        Ok(())
    }
}

impl Record {
    /// Records every entry of an unpacked layer that nobody changes.
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let tree = Beneath::open(root)?;
        let mut seen = Seen::new(Allowance::UNLIMITED);
        if seen.walk(&tree)? {
            return Err(io::Error::other(format!(
                "{} changed while it was read",
                root.display()
            )));
        }
        Ok(Self {
            tree: Digest::finish(seen.hash).to_string(),
            entries: seen.entries,
        })
    }

    /// Restores the lost metadata of a copy. `false` if it is not a copy of the recorded layer and therefore
    /// unusable.
    pub(super) fn restore(&self, root: &Path) -> io::Result<bool> {
        let tree = Beneath::open(root)?;
        for entry in &self.entries {
            if entry.restore(&tree)? != Restored::Yes {
                return Ok(false);
            }
        }
        let now = Self::of(root)?;
        let same = |(a, b): (&Entry, &Entry)| a.agrees_with(b);
        let same = now.entries.len() == self.entries.len() && now.entries.iter().zip(&self.entries).all(same);
        Ok(same && now.tree == self.tree)
    }
}

/// Records a tree that others may be changing. Entries that disappear meanwhile, and names longer than the kernel
/// accepts, are omitted. Fails, without using up `allowance`, if it does not suffice.
pub(crate) fn record_tree(root: &Path, allowance: &mut Allowance) -> io::Result<Vec<Entry>> {
    let tree = Beneath::open(root)?;
    let mut seen = Seen::new(Allowance { ..*allowance });
    seen.walk(&tree)?;
    allowance.bytes = seen.allowance.bytes;
    Ok(seen.entries)
}

/// Restores the lost metadata of a copy of such a tree, for entries that exist and still match. Continues after an
/// error and returns the first one.
pub(crate) fn restore_tree(root: &Path, entries: &[Entry]) -> io::Result<()> {
    let tree = match Beneath::open(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        tree => tree?,
    };
    let (mut others, mut done) = (0, Ok(()));
    for entry in entries {
        match entry.restore(&tree) {
            Ok(Restored::Yes | Restored::Gone) => {}
            Ok(Restored::Other) => others += 1,
            Err(error) => done = done.and(Err(error)),
        }
    }
    if others > 0 {
        let root = root.display();
        tracing::warn!(%root, entries = others, "these entries were replaced by others and are left alone");
    }
    done
}

/// The outcome for one entry.
#[derive(Debug, PartialEq, Eq)]
enum Restored {
    Yes,
    /// The entry does not exist.
    Gone,
    /// Another object has taken its place.
    Other,
}

impl Entry {
    fn restore(&self, tree: &Beneath) -> io::Result<Restored> {
        let Some(path) = unescape(&self.path) else {
            return Ok(Restored::Gone);
        };
        let Some(object) = tree.object(&path)? else {
            return Ok(Restored::Gone);
        };
        if !self.is_of(&object) {
            return Ok(Restored::Other);
        }
        self.restore_attributes(&object).map_err(|error| {
            let path = tree.path().join(path);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Ok(Restored::Yes)
    }

    fn restore_attributes(&self, object: &Object) -> io::Result<()> {
        let metadata = &object.metadata;
        if (metadata.uid(), metadata.gid()) != (self.uid, self.gid) {
            object.set_owner(self.uid, self.gid)?;
        }
        // A change of owner clears setuid bits and capabilities.
        if !metadata.is_symlink() {
            object.set_mode(self.mode & 0o7777)?;
        }
        for (name, value) in &self.attributes {
            let value = BASE64.decode(value).map_err(io::Error::other)?;
            object.set_attribute(name, &value)?;
        }
        Ok(())
    }

    /// Whether this entry describes the object, as far as a copy preserves it.
    fn is_of(&self, object: &Object) -> bool {
        let metadata = &object.metadata;
        let noted = FileType::from_raw_mode(self.mode);
        (noted == FileType::Unknown || noted == FileType::from_raw_mode(metadata.mode()))
            && self
                .content
                .is_none_or(|content| content == (metadata.size(), metadata.mtime()))
    }

    /// Earlier versions recorded less.
    fn agrees_with(&self, other: &Self) -> bool {
        let all = |entry: &Self| (entry.uid, entry.gid, entry.mode & 0o7777);
        self.path == other.path && all(self) == all(other) && self.attributes == other.attributes
    }
}

struct Seen {
    hash: Sha256,
    entries: Vec<Entry>,
    allowance: Allowance,
}

impl Seen {
    fn new(allowance: Allowance) -> Self {
        Self {
            hash: Sha256::new(),
            entries: Vec::new(),
            allowance,
        }
    }

    /// Records every entry, directories first, in a stable order. Returns whether some disappeared meanwhile.
    fn walk(&mut self, tree: &Beneath) -> io::Result<bool> {
        let mut pending: Vec<(Rc<Path>, OsString)> = vec![(Path::new("").into(), OsString::new())];
        let (mut found, mut lost) = (1, false);
        while let Some((parent, name)) = pending.pop() {
            self.allowance.check(found, tree.path())?;
            let path = parent.join(name);
            let Some(object) = tree.object(&path)? else {
                lost = true;
                continue;
            };
            self.entry(&path, &object)?;
            if !object.metadata.is_dir() {
                continue;
            }
            let path: Rc<Path> = path.into();
            let children = match object.children() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    lost = true;
                    continue;
                }
                children => children?,
            };
            let mut names = Vec::new();
            for child in children {
                found += 1;
                self.allowance.check(found, tree.path())?;
                names.push(child?.file_name());
            }
            names.sort();
            pending.extend(names.into_iter().map(|name| (path.clone(), name)));
        }
        Ok(lost)
    }

    /// Records one entry.
    fn entry(&mut self, path: &Path, object: &Object) -> io::Result<()> {
        let metadata = &object.metadata;
        let kind = metadata.file_type();
        let path = escape(path.as_os_str().as_bytes());
        let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
        // Writing to a string cannot fail.
        let mut said = path.clone();
        let _ = write!(said, " {mode:o} {uid} {gid}");
        if kind.is_file() {
            // Tar stores whole seconds.
            let _ = write!(said, " {} {}", metadata.size(), metadata.mtime());
        } else if kind.is_symlink() {
            let _ = write!(said, " {}", escape(&object.target()?));
        } else if kind.is_char_device() || kind.is_block_device() {
            let _ = write!(said, " {}", metadata.rdev());
        }
        said.push('\n');
        self.hash.update(said.as_bytes());
        let attributes = self.attributes(object)?;
        if !attributes.is_empty() || (uid, gid) != (0, 0) {
            self.allowance.spend(FRAME + path.len())?;
            let gives = mode & SET_ID != 0 || attributes.iter().any(|(name, _)| name == CAPABILITY);
            self.entries.push(Entry {
                path,
                uid,
                gid,
                mode,
                attributes,
                content: (kind.is_file() && gives).then(|| (metadata.size(), metadata.mtime())),
            });
        }
        Ok(())
    }

    fn attributes(&mut self, object: &Object) -> io::Result<Vec<(String, String)>> {
        let mut names = object.attribute_names()?;
        // Other overlayfs attributes of upper directories refer to the file system that they are on.
        let is_overlays = |name: &str| name.starts_with("trusted.overlay.") && name != super::tree::OPAQUE;
        names.retain(|name| !NOT_OURS.contains(&&**name) && !is_overlays(name));
        names.sort();
        let mut attributes = Vec::new();
        for name in names {
            let Some(value) = object.attribute(&name)? else {
                continue;
            };
            let value = BASE64.encode(value);
            self.allowance.spend(FRAME + name.len() + value.len())?;
            attributes.push((name, value));
        }
        Ok(attributes)
    }
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

/// `None` for text that [`escape`] does not produce, and for a path that would leave the layer.
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
mod hostile;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::XattrFlags;

    use super::*;

    /// A layer with all the metadata that a copy loses.
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
        // As on a machine where that name has another uid.
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
