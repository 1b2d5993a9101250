//! Images made in memory: archives, blobs, configurations, manifests.

use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An archive with these files.
pub fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An archive with one entry whose name is written as it is.
pub fn raw_archive(path: &str, kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    [header.as_bytes().as_slice(), &[0; 1024]].concat()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

/// A layer: the archive and the blob it travels as.
#[derive(Clone)]
pub struct Layer {
    pub archive: Vec<u8>,
    pub blob: Vec<u8>,
}

impl Layer {
    pub fn plain(archive: Vec<u8>) -> Self {
        let blob = archive.clone();
        Self { archive, blob }
    }

    pub fn gzip(archive: Vec<u8>) -> Self {
        let blob = gzip(&archive);
        Self { archive, blob }
    }

    pub fn zstd(archive: Vec<u8>) -> Self {
        let blob = zstd(&archive);
        Self { archive, blob }
    }

    /// A gzip layer with one file.
    pub fn file(path: &str, content: &str) -> Self {
        Self::gzip(archive(&[(path, content)]))
    }

    pub fn digest(&self) -> String {
        digest(&self.blob)
    }

    pub fn diff_id(&self) -> String {
        digest(&self.archive)
    }

    fn descriptor(&self) -> Value {
        let compression = match self.blob[..] {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, ..] => "+zstd",
            _ => "",
        };
        json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{compression}"),
            "digest": self.digest(),
            "size": self.blob.len(),
        })
    }
}

/// An image whose documents can be bent before it is pushed.
#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<Layer>,
    pub config: Value,
    pub manifest: Value,
}

impl TestImage {
    /// For the architecture of Go's naming.
    pub fn new(architecture: &str, layers: &[Layer]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(Layer::diff_id).collect();
        let config = json!({
            "os": "linux",
            "architecture": architecture,
            "config": {"Env": ["A=b"], "Cmd": ["sh"], "User": "web"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self::with_config(layers, config)
    }

    pub fn with_config(layers: &[Layer], config: Value) -> Self {
        let body = config.to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(body.as_bytes()), "size": body.len()},
            "layers": layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        });
        Self {
            layers: layers.to_vec(),
            config,
            manifest,
        }
    }

    /// For the machine that runs the test.
    pub fn of(layers: &[Layer]) -> Self {
        Self::new(&condenser::image::Platform::host().architecture, layers)
    }

    pub fn blobs(&self) -> Vec<Vec<u8>> {
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(|l| l.blob.clone()).collect();
        blobs.push(self.config.to_string().into_bytes());
        blobs
    }

    pub fn manifest_digest(&self) -> String {
        digest(self.manifest.to_string().as_bytes())
    }
}

/// An index of images by platform (`os/architecture[/variant]`).
pub fn index(entries: &[(&str, &TestImage)]) -> Value {
    let entries = entries.iter().map(|(platform, image)| {
        let mut parts = platform.split('/');
        json!({
            "mediaType": MANIFEST,
            "digest": image.manifest_digest(),
            "size": image.manifest.to_string().len(),
            "platform": {"os": parts.next(), "architecture": parts.next(), "variant": parts.next()},
        })
    });
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries.collect::<Vec<_>>()})
}
