//! Images made on the spot: layers from a list of entries, a configuration, and nothing from the network.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// The statically linked busybox of Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// Content of an image of one platform.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// Bottom first.
    pub layers: Vec<Layer>,
    config: Value,
    architecture: String,
    docker: bool,
}

/// One layer: an archive and how it is packed.
#[derive(Debug, Clone)]
pub struct Layer {
    /// What is uploaded, where `packing` says that it is packed already.
    archive: Vec<u8>,
    packing: Packing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Packing {
    Gzip,
    Zstd,
    Plain,
    /// With gzip, by somebody else; with the digest of the archive.
    Done(String),
}

impl ImageSpec {
    /// Without any layer.
    pub fn scratch() -> Self {
        Self {
            layers: Vec::new(),
            config: json!({ "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["/bin/sh"] }),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .into(),
            docker: false,
        }
    }

    /// A small userland: busybox with all its commands, `/etc/passwd`, `/etc/group` and the usual directories. Runs
    /// `/bin/sh`.
    pub fn busybox() -> Self {
        static BASE: OnceLock<Layer> = OnceLock::new();
        Self::scratch().layer(BASE.get_or_init(busybox_layer).clone())
    }

    /// With one more layer on top.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// `Entrypoint` of the configuration.
    pub fn entrypoint(self, argv: &[&str]) -> Self {
        self.set("Entrypoint", json!(argv))
    }

    /// `Cmd` of the configuration.
    pub fn cmd(self, argv: &[&str]) -> Self {
        self.set("Cmd", json!(argv))
    }

    /// One more entry of `Env`.
    pub fn env(mut self, entry: &str) -> Self {
        self.config["Env"].as_array_mut().unwrap().push(entry.into());
        self
    }

    /// `User` of the configuration.
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// `WorkingDir` of the configuration.
    pub fn workdir(self, path: &str) -> Self {
        self.set("WorkingDir", json!(path))
    }

    /// Any field of the configuration's `config`.
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// For another architecture (`arm64`).
    pub fn architecture(mut self, name: &str) -> Self {
        self.architecture = name.into();
        self
    }

    /// With Docker's media types instead of OCI's.
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// The architecture, in Go naming.
    pub fn platform(&self) -> &str {
        &self.architecture
    }

    /// The image configuration document.
    pub fn config_document(&self) -> Vec<u8> {
        let ids: Vec<_> = self.layers.iter().map(Layer::diff_id).collect();
        let document = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": ids },
            "history": ids.iter().map(|_| json!({ "created_by": "lab" })).collect::<Vec<_>>(),
        });
        document.to_string().into_bytes()
    }

    /// Media type of the manifest.
    pub fn manifest_type(&self) -> &'static str {
        if self.docker {
            "application/vnd.docker.distribution.manifest.v2+json"
        } else {
            "application/vnd.oci.image.manifest.v1+json"
        }
    }

    /// Media type of the configuration.
    pub fn config_type(&self) -> &'static str {
        if self.docker {
            "application/vnd.docker.container.image.v1+json"
        } else {
            "application/vnd.oci.image.config.v1+json"
        }
    }

    /// Media type of a layer.
    pub fn layer_type(&self, layer: &Layer) -> &'static str {
        match (self.docker, &layer.packing) {
            (true, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (false, Packing::Gzip | Packing::Done(_)) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (false, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
        }
    }
}

impl Layer {
    /// An empty one, packed with gzip.
    pub fn new() -> Self {
        Self {
            archive: Vec::new(),
            packing: Packing::Gzip,
        }
    }

    /// One that others have packed with gzip. `diff_id` is the digest of what it unpacks to.
    pub fn packed(blob: Vec<u8>, diff_id: &str) -> Self {
        Self {
            archive: blob,
            packing: Packing::Done(diff_id.into()),
        }
    }

    /// A directory.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, "", mode, (0, 0), &[])
    }

    /// A regular file of root.
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, "", mode, (0, 0), content.as_ref())
    }

    /// A regular file of somebody.
    pub fn owned(self, path: &str, mode: u32, owner: (u64, u64), content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, "", mode, owner, content.as_ref())
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, (0, 0), &[])
    }

    /// A hard link.
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, (0, 0), &[])
    }

    /// An executable shell script.
    pub fn script(self, path: &str, body: &str) -> Self {
        self.file(path, 0o755, format!("#!/bin/sh\n{body}\n"))
    }

    /// Any entry. The path is written as it is, so that it may be one that no good archive has; both names are at
    /// most 100 bytes.
    pub fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        target: &str,
        mode: u32,
        (uid, gid): (u64, u64),
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.archive.extend_from_slice(header.as_bytes());
        self.archive.extend_from_slice(content);
        self.archive.resize(self.archive.len().next_multiple_of(512), 0);
        self
    }

    /// Packed with zstd.
    pub fn zstd(mut self) -> Self {
        self.packing = Packing::Zstd;
        self
    }

    /// Not packed.
    pub fn plain(mut self) -> Self {
        self.packing = Packing::Plain;
        self
    }

    /// The archive. It ends with its last entry: readers must not need the two empty blocks.
    pub fn archive(&self) -> &[u8] {
        &self.archive
    }

    /// Digest of the archive.
    fn diff_id(&self) -> String {
        match &self.packing {
            Packing::Done(diff_id) => diff_id.clone(),
            _ => digest(&self.archive),
        }
    }

    /// The archive as it is uploaded.
    pub fn blob(&self) -> Vec<u8> {
        match self.packing {
            Packing::Plain | Packing::Done(_) => self.archive.clone(),
            Packing::Zstd => zstd::encode_all(&self.archive[..], 1).unwrap(),
            Packing::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&self.archive).unwrap();
                encoder.finish().unwrap()
            }
        }
    }
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn busybox_layer() -> Layer {
    let program = std::fs::read(BUSYBOX).unwrap_or_else(|e| panic!("{BUSYBOX}: {e}; install busybox-static"));
    let list = std::process::Command::new(BUSYBOX).arg("--list").output().unwrap();
    let commands = String::from_utf8(list.stdout).unwrap();
    let modes = BTreeMap::from([("tmp", 0o1777), ("root", 0o700)]);
    let mut layer = Layer::new();
    for path in [
        "bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "var", "www",
    ] {
        layer = layer.dir(path, *modes.get(path).unwrap_or(&0o755));
    }
    layer = layer
        .file("bin/busybox", 0o755, program)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home:/bin/sh\n",
        )
        .file("etc/group", 0o644, "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n")
        // Without it the static libc looks for modules that are not there, and crashes.
        .file(
            "etc/nsswitch.conf",
            0o644,
            "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n",
        )
        .file("www/index.html", 0o644, "hello from the lab\n");
    for command in commands.lines().filter(|command| *command != "busybox") {
        layer = layer.symlink(&format!("bin/{command}"), "busybox");
    }
    layer
}
