//! An image as its archive has it, and what two of them differ in.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::EntryType;

/// Fields of the configuration that are compared.
const FIELDS: [&str; 12] = [
    "Env",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
    "User",
    "Labels",
    "ExposedPorts",
    "Volumes",
    "StopSignal",
    "Healthcheck",
    "Shell",
    "OnBuild",
];
/// What buildah leaves of its own in every image.
const OF_BUILDAH: &str = "/run/.containerenv";

/// Its configuration and its files.
pub struct Image {
    document: Value,
    files: BTreeMap<String, Node>,
}

/// A file: all but its times.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    kind: &'static str,
    mode: u32,
    owner: (u64, u64),
    /// Target of a link, digest of a content, numbers of a device.
    content: String,
    attributes: BTreeMap<String, String>,
}

impl Image {
    /// Of an OCI archive with one image.
    pub fn of_archive(archive: &[u8]) -> Self {
        let mut entries = BTreeMap::new();
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            entries.insert(path, content);
        }
        let index: Value = serde_json::from_slice(&entries["index.json"]).unwrap();
        let blob = |digest: &Value| {
            let digest = digest.as_str().unwrap();
            entries[&format!("blobs/{}", digest.replace(':', "/"))].clone()
        };
        let manifest = blob(&index["manifests"][0]["digest"]);
        Self::new(&manifest, blob)
    }

    /// Of a directory as `dir:` makes it.
    pub fn of_directory(path: &Path) -> Self {
        let read = |name: &str| std::fs::read(path.join(name)).unwrap();
        let manifest = read("manifest.json");
        Self::new(&manifest, |digest| {
            read(digest.as_str().unwrap().trim_start_matches("sha256:"))
        })
    }

    #[allow(clippy::disallowed_types, reason = "layers of the test's own images are small")]
    fn new(manifest: &[u8], blob: impl Fn(&Value) -> Vec<u8>) -> Self {
        let manifest: Value = serde_json::from_slice(manifest).unwrap();
        let mut files = BTreeMap::new();
        for layer in manifest["layers"].as_array().unwrap() {
            let packed = blob(&layer["digest"]);
            let mut plain = Vec::new();
            match packed.starts_with(&[0x1f, 0x8b]) {
                true => drop(
                    flate2::read::MultiGzDecoder::new(&packed[..])
                        .read_to_end(&mut plain)
                        .unwrap(),
                ),
                false => plain = packed,
            }
            apply(&plain, &mut files);
        }
        files.remove(OF_BUILDAH);
        Self {
            document: serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap(),
            files,
        }
    }

    /// What differs, and how.
    pub fn differences(&self, other: &Self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for field in FIELDS {
            let values = [self, other].map(|image| image.field(field));
            if values[0] != values[1] {
                found.insert(
                    format!("config.{field}"),
                    format!("{}, buildah: {}", values[0], values[1]),
                );
            }
        }
        for field in ["architecture", "os", "author"] {
            let values = [self, other].map(|image| plain(image.document[field].clone()));
            if values[0] != values[1] {
                found.insert(field.to_owned(), format!("{}, buildah: {}", values[0], values[1]));
            }
        }
        for path in self.files.keys().chain(other.files.keys()) {
            let nodes = [self, other].map(|image| image.files.get(path));
            if nodes[0] != nodes[1] {
                let [ours, theirs] = nodes.map(|node| node.map_or("nothing".into(), Node::line));
                found.insert(path.clone(), format!("{ours}, buildah: {theirs}"));
            }
        }
        found
    }

    /// A field of the configuration: what is empty is as if it was not there.
    fn field(&self, name: &str) -> Value {
        let value = plain(self.document["config"][name].clone());
        match (name, &value) {
            ("WorkingDir", Value::Null) => json!("/"),
            // buildah puts a variable that is set again at the end.
            ("Env", Value::Array(entries)) => {
                let mut entries: Vec<_> = entries.iter().filter_map(Value::as_str).collect();
                entries.sort_unstable();
                json!(entries)
            }
            _ => value,
        }
    }
}

fn plain(value: Value) -> Value {
    match value {
        Value::String(text) if text.is_empty() => Value::Null,
        Value::Array(list) if list.is_empty() => Value::Null,
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, value));
            let kept: serde_json::Map<_, _> = fields.filter(|(_, value)| *value != json!(0)).collect();
            match kept.is_empty() {
                true => Value::Null,
                false => Value::Object(kept),
            }
        }
        value => value,
    }
}

/// Puts a layer on top. What it removes is below it.
fn apply(layer: &[u8], files: &mut BTreeMap<String, Node>) {
    let mut added = Vec::new();
    let mut archive = tar::Archive::new(layer);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = clean(&name);
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", ""));
        if name == ".wh..wh..opq" {
            remove_below(files, parent);
        } else if let Some(name) = name.strip_prefix(".wh.") {
            remove(files, &format!("{parent}/{name}"));
        } else if !name.is_empty() {
            added.push((path.clone(), node(&mut entry)));
        }
    }
    for (path, node) in added {
        let node = match node.kind {
            "hard link" => files[&clean(&node.content)].clone(),
            _ => node,
        };
        let keeps_content = node.kind == "directory" && files.get(&path).is_some_and(|old| old.kind == "directory");
        if !keeps_content {
            remove(files, &path);
        }
        files.insert(path, node);
    }
}

fn remove(files: &mut BTreeMap<String, Node>, path: &str) {
    files.remove(path);
    remove_below(files, path);
}

fn remove_below(files: &mut BTreeMap<String, Node>, path: &str) {
    let below = format!("{path}/");
    files.retain(|path, _| !path.starts_with(&below));
}

/// `/a/b`.
fn clean(name: &str) -> String {
    let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.fold(String::new(), |path, part| path + "/" + part)
}

fn node(entry: &mut tar::Entry<'_, &[u8]>) -> Node {
    let mut attributes = BTreeMap::new();
    for record in entry.pax_extensions().unwrap().into_iter().flatten() {
        let record = record.unwrap();
        if let Some(name) = record.key().unwrap().strip_prefix("SCHILY.xattr.") {
            attributes.insert(name.to_owned(), hex::encode(record.value_bytes()));
        }
    }
    let header = entry.header().clone();
    let target = entry
        .link_name_bytes()
        .map(|target| String::from_utf8_lossy(&target).into_owned());
    let device = || format!("{:?}:{:?}", header.device_major(), header.device_minor());
    let (kind, content) = match header.entry_type() {
        EntryType::Directory => ("directory", String::new()),
        EntryType::Symlink => ("symlink", target.unwrap()),
        EntryType::Link => ("hard link", target.unwrap()),
        EntryType::Fifo => ("fifo", String::new()),
        EntryType::Char => ("character device", device()),
        EntryType::Block => ("block device", device()),
        _ => {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let shown = match String::from_utf8(content) {
                Ok(text) if text.len() < 200 => format!("{text:?}"),
                Ok(text) => hex::encode(Sha256::digest(text)),
                Err(bytes) => hex::encode(Sha256::digest(bytes.as_bytes())),
            };
            ("file", shown)
        }
    };
    Node {
        kind,
        // Of a link nobody asks.
        mode: if kind == "symlink" {
            0o777
        } else {
            header.mode().unwrap() & 0o7777
        },
        owner: (header.uid().unwrap(), header.gid().unwrap()),
        content,
        attributes,
    }
}

impl Node {
    fn line(&self) -> String {
        let (uid, gid) = self.owner;
        let attributes: Vec<_> = self.attributes.iter().collect();
        format!(
            "{} {:o} {uid}:{gid} {} {attributes:?}",
            self.kind, self.mode, self.content
        )
    }
}
