//! Writes images as one archive.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::ArchiveFormat;
use super::index::{FULL_NAME, REF_NAME};
use crate::image::assemble::Assembled;
use crate::image::digest::Digest;
use crate::image::outgoing::{ByteStream, Outgoing, streamed};
use crate::image::{ImageError, ImageRef, ImageService, documents};

const BLOCK: usize = 512;
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

impl ImageService {
    /// Images as one archive. Fails at once if one of them is not present or has lost a layer; an error within the stream
    /// means that the archive is incomplete.
    pub async fn save(&self, images: &[ImageRef], format: ArchiveFormat) -> Result<ByteStream, ImageError> {
        let mut outgoing = Vec::new();
        for image in images {
            outgoing.push(self.outgoing(image).await?);
        }
        Ok(streamed(move |out| match format {
            ArchiveFormat::Oci => write_oci(&outgoing, out),
            ArchiveFormat::Docker => write_docker(&outgoing, out),
        }))
    }
}

/// The name of an image for other tools, which take one without a host for one of Docker Hub.
fn full_name(image: &Outgoing) -> String {
    let row = &image.row;
    let is_digest = row.reference.contains(':');
    let first = row.repository.split('/').next().unwrap_or_default();
    let has_host = first == "localhost" || first.contains(['.', ':']);
    let host = if has_host { "" } else { "docker.io/" };
    let separator = if is_digest { '@' } else { ':' };
    format!("{host}{}{separator}{}", row.repository, row.reference)
}

fn write_oci(images: &[Outgoing], out: &mut dyn Write) -> io::Result<()> {
    let mut archive = Writer::new(out);
    let mut entries = Vec::new();
    let mut manifests = Vec::new();
    for image in images {
        let mut manifest = documents::manifest(&Value::Null, &image.config, &image.plain_layers());
        if let Some(annotations) = image.manifest.get("annotations") {
            manifest["annotations"] = annotations.clone();
        }
        let body = manifest.to_string().into_bytes();
        let mut entry = json!({
            "mediaType": MANIFEST_TYPE, "digest": Digest::of(&body).to_string(), "size": body.len(),
            "platform": { "os": image.row.os, "architecture": image.row.architecture },
        });
        // By digest, an image has no name that a manifest with other layers could keep.
        if !image.row.reference.contains(':') {
            let name = full_name(image);
            entry["annotations"] = json!({ REF_NAME: name, FULL_NAME: name });
        }
        entries.push(entry);
        manifests.push(body);
    }
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries });
    archive.file("index.json", index.to_string().as_bytes())?;
    archive.directory("blobs/")?;
    archive.directory("blobs/sha256/")?;
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    for body in manifests.iter().chain(images.iter().map(|image| &image.config)) {
        archive.file(&blob(&Digest::of(body)), body)?;
    }
    for layer in images.iter().flat_map(|image| &image.layers) {
        archive.layer(&blob(&layer.diff_id), layer)?;
    }
    archive.finish()
}

fn write_docker(images: &[Outgoing], out: &mut dyn Write) -> io::Result<()> {
    let mut archive = Writer::new(out);
    let layer_file = |layer: &Assembled| format!("{}.tar", layer.diff_id.hex());
    let config_file = |image: &Outgoing| format!("{}.json", Digest::of(&image.config).hex());
    // An image with several names is there once.
    let mut manifests: BTreeMap<String, Value> = BTreeMap::new();
    let mut repositories: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    for image in images {
        let layers: Vec<String> = image.layers.iter().map(|layer| layer_file(layer)).collect();
        let entry = manifests
            .entry(config_file(image))
            .or_insert_with(|| json!({ "Config": config_file(image), "RepoTags": [], "Layers": layers }));
        if image.row.reference.contains(':') {
            continue;
        }
        if let Some(tags) = entry["RepoTags"].as_array_mut() {
            tags.push(image.row.id.clone().into());
        }
        if let Some(top) = image.layers.last() {
            let tags = repositories.entry(&image.row.repository).or_default();
            tags.insert(&image.row.reference, top.diff_id.hex());
        }
    }
    let manifests: Vec<&Value> = manifests.values().collect();
    archive.file("manifest.json", &serde_json::to_vec(&manifests)?)?;
    archive.file("repositories", &serde_json::to_vec(&repositories)?)?;
    for image in images {
        archive.file(&config_file(image), &image.config)?;
    }
    for layer in images.iter().flat_map(|image| &image.layers) {
        archive.layer(&layer_file(layer), layer)?;
    }
    archive.finish()
}

/// An archive that is being written. Each name is written once.
struct Writer<'a> {
    out: &'a mut dyn Write,
    written: HashSet<String>,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        let written = HashSet::new();
        Self { out, written }
    }

    fn directory(&mut self, name: &str) -> io::Result<()> {
        self.begin(name, EntryType::Directory, 0o755, 0)
    }

    fn file(&mut self, name: &str, body: &[u8]) -> io::Result<()> {
        if !self.written.insert(name.to_owned()) {
            return Ok(());
        }
        self.begin(name, EntryType::Regular, 0o644, body.len() as u64)?;
        self.out.write_all(body)?;
        self.pad(body.len() as u64)
    }

    fn layer(&mut self, name: &str, layer: &Assembled) -> io::Result<()> {
        if !self.written.insert(name.to_owned()) {
            return Ok(());
        }
        self.begin(name, EntryType::Regular, 0o644, layer.size)?;
        layer.write(&mut *self.out)?;
        self.pad(layer.size)
    }

    /// All names here fit into a header.
    fn begin(&mut self, name: &str, kind: EntryType, mode: u32, size: u64) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_path(name)?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = (size.wrapping_neg() % BLOCK as u64) as usize;
        self.out.write_all(&[0; BLOCK][..padding])
    }

    fn finish(self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])
    }
}
