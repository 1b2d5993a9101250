//! What images an archive has: read from its `index.json` or its `manifest.json`.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;
use serde_json::{Value, json};

use super::spool::{Spool, SpoolError, Spooled};
use crate::image::digest::Digest;
use crate::image::index_entry::IndexEntry;
use crate::image::json_null::or_default;
use crate::image::manifest::{Document, ImageConfig, MAX_DOCUMENT};
use crate::image::platform::{choose, offered};
use crate::image::printable::printable;
use crate::image::{ImageRef, Platform, documents};
use crate::model::ImageLayer;

/// Name of an image in an index: of the OCI image specification, and as containerd and docker write it.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
/// Maximum nesting of indexes.
const MAX_DEPTH: usize = 4;
/// Most images, and most names of one image.
const MAX_IMAGES: usize = 256;
/// Most layers of one image: more than a container can have, as some are equal.
const MAX_LAYERS: usize = 512;
/// Most manifests that are looked at, and the size of all documents together, in bytes: an index can name one many times.
const MAX_MANIFESTS: usize = 1024;
/// How many platforms of an image a message names.
const MAX_SHOWN: usize = 10;
const MAX_DOCUMENTS: u64 = 64 << 20;

/// An image of the archive.
pub(crate) struct Found {
    /// May be empty.
    pub names: Vec<ImageRef>,
    /// A name that is only a tag.
    pub tag: Option<String>,
    /// Digest and body.
    pub manifest: (Digest, Vec<u8>),
    /// Digest and body.
    pub config: (Digest, Vec<u8>),
    pub read: ImageConfig,
    /// One for each diff id of the configuration.
    pub layers: Vec<(ImageLayer, Spooled)>,
}

/// An archive whose documents are being read.
struct Reader<'a> {
    spool: &'a Spool,
    platform: &'a Platform,
    /// Manifests that may still be looked at.
    manifests: usize,
    /// Bytes of documents that may still be read.
    bytes: u64,
    /// Platforms of the image that is looked for, as far as they are known.
    offered: Vec<String>,
}

/// All images for a platform. The error says why the archive is none of images.
pub(crate) fn images(spool: &Spool, platform: &Platform) -> Result<Vec<Found>, SpoolError> {
    let mut reader = Reader {
        spool,
        platform,
        manifests: MAX_MANIFESTS,
        bytes: MAX_DOCUMENTS,
        offered: Vec::new(),
    };
    let found = if let Some(index) = reader.read("index.json")? {
        reader.of_layout(&index)?
    } else if let Some(manifest) = reader.read("manifest.json")? {
        reader.of_docker(&manifest)?
    } else if spool.file("repositories").is_some() {
        return Err(SpoolError::refused(
            "it was written by a docker older than 1.10: it has no manifest.json; load it there and save it again with a \
             newer one",
        ));
    } else {
        return Err(SpoolError::refused(
            "it has neither index.json nor manifest.json, so it is no archive of images (oci-archive or docker-archive); a \
             root file system becomes an image with POST /v1/images/import",
        ));
    };
    match found.len() {
        0 => Err(SpoolError::refused("it has no images")),
        1..=MAX_IMAGES => Ok(found),
        _ => Err(SpoolError::refused(format!("it has more than {MAX_IMAGES} images"))),
    }
}

impl Reader<'_> {
    /// A document of that name, if there is one.
    fn read(&mut self, name: &str) -> Result<Option<Vec<u8>>, SpoolError> {
        let body = self.spool.read(name, MAX_DOCUMENT)?;
        let size = body.as_ref().map_or(0, Vec::len) as u64;
        self.bytes = self.bytes.checked_sub(size).ok_or_else(|| {
            SpoolError::refused(format!(
                "its manifests and configurations have more than {MAX_DOCUMENTS} bytes"
            ))
        })?;
        Ok(body)
    }

    fn document(&mut self, digest: &Digest) -> Result<(Digest, Vec<u8>), SpoolError> {
        blob(self.spool, digest)?;
        let body = self.read(&format!("blobs/sha256/{}", digest.hex()))?;
        Ok((*digest, body.unwrap_or_default()))
    }

    fn of_layout(&mut self, index: &[u8]) -> Result<Vec<Found>, SpoolError> {
        let entries = match Document::parse(index, "").map_err(|e| SpoolError::refused(format!("index.json: {e}")))? {
            Document::Index(entries) => entries,
            _ => return Err(SpoolError::refused("index.json is not an index")),
        };
        // Entries of one name are one image for several platforms.
        let mut by_name: BTreeMap<String, Vec<IndexEntry>> = BTreeMap::new();
        for entry in entries.into_iter().filter(IndexEntry::may_be_image) {
            let text = |name| entry.annotations.get(name).and_then(Value::as_str).map(str::to_owned);
            let name = text(FULL_NAME).or(text(REF_NAME)).unwrap_or_default();
            by_name.entry(name).or_default().push(entry);
        }
        // An image with several names is loaded once.
        let mut images: Vec<Found> = Vec::new();
        for (name, entries) in by_name {
            self.offered = offered(&entries);
            let found = self.follow(&entries, MAX_DEPTH)?;
            let mut found = found.ok_or_else(|| no_platform(&name, self.platform, &self.offered))?;
            if let Some(name) = full(&name)? {
                found.names.push(name);
            } else if !name.is_empty() {
                found.tag = Some(name);
            }
            match images.iter_mut().find(|other| other.manifest.0 == found.manifest.0) {
                Some(other) if !found.names.is_empty() => other.names.extend(found.names),
                _ => images.push(found),
            }
        }
        Ok(images)
    }
}

/// A reference with a repository. `None` for no name and for a lone tag, as umoci and skopeo write it.
fn full(name: &str) -> Result<Option<ImageRef>, SpoolError> {
    if !name.contains(['/', ':', '@']) {
        return Ok(None);
    }
    let name = ImageRef::parse(name).map_err(|e| SpoolError::refused(e.to_string()))?;
    Ok(Some(name).filter(|name| !name.reference().contains(':')))
}

/// `offered`: the platforms that the image is for, as far as they are known.
fn no_platform(name: &str, platform: &Platform, offered: &[String]) -> SpoolError {
    let name = printable(name.as_bytes());
    SpoolError::refused(match &offered[..offered.len().min(MAX_SHOWN)] {
        [] => format!("the image \"{name}\" is not there for {platform}"),
        shown => format!("the image \"{name}\" is for {}, not for {platform}", shown.join(", ")),
    })
}

impl Reader<'_> {
    /// The first image for the platform. Entries without a platform are tried one after the other.
    fn follow(&mut self, entries: &[IndexEntry], depth: usize) -> Result<Option<Found>, SpoolError> {
        for entry in choose(self.platform, entries) {
            if depth == 0 || self.manifests == 0 {
                return Err(SpoolError::refused("its index leads to too many others"));
            }
            self.manifests -= 1;
            let digest: Digest = entry.digest.parse().map_err(|e| SpoolError::refused(format!("{e}")))?;
            let (_, body) = self.document(&digest)?;
            let found = match Document::parse(&body, "").map_err(SpoolError::Refused)? {
                Document::Index(entries) => {
                    self.offered.extend(offered(&entries));
                    self.follow(&entries, depth - 1)?
                }
                Document::Artifact(kind) => return Err(artifact(&kind)),
                Document::Manifest(manifest) => {
                    if let Some(kind) = manifest.artifact_kind {
                        return Err(artifact(&kind));
                    }
                    let config = self.document(&manifest.config.digest)?;
                    let read = configuration(&config.1, manifest.layers.len())?;
                    if !read.is_for(self.platform) {
                        self.offered.push(read.platform());
                        continue;
                    }
                    let mut layers = Vec::new();
                    for (diff_id, layer) in read.diff_ids.iter().zip(&manifest.layers) {
                        let file = blob(self.spool, &layer.digest)?;
                        layers.push((image_layer(diff_id, &file), file));
                    }
                    Some(Found {
                        names: Vec::new(),
                        tag: None,
                        manifest: (digest, body),
                        config,
                        read,
                        layers,
                    })
                }
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

fn configuration(body: &[u8], layers: usize) -> Result<ImageConfig, SpoolError> {
    if layers > MAX_LAYERS {
        return Err(SpoolError::refused(format!(
            "an image has {layers} layers, more than {MAX_LAYERS}"
        )));
    }
    ImageConfig::parse(body, layers).map_err(SpoolError::Refused)
}

fn artifact(kind: &str) -> SpoolError {
    SpoolError::refused(format!("it holds no container image but {kind}"))
}

fn blob(spool: &Spool, digest: &Digest) -> Result<Spooled, SpoolError> {
    let file = spool.file(&format!("blobs/sha256/{}", digest.hex()));
    let file = file.ok_or_else(|| SpoolError::refused(format!("the blob {digest} is missing")))?;
    if file.digest != *digest {
        let found = file.digest;
        return Err(SpoolError::refused(format!("the blob {digest} has the digest {found}")));
    }
    Ok(file.clone())
}

fn image_layer(diff_id: &Digest, file: &Spooled) -> ImageLayer {
    ImageLayer {
        diff_id: diff_id.to_string(),
        digest: file.digest.to_string(),
        size: file.size,
    }
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default, deserialize_with = "or_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<String>,
}

impl Reader<'_> {
    fn of_docker(&mut self, manifest: &[u8]) -> Result<Vec<Found>, SpoolError> {
        let refused = SpoolError::refused;
        let entries: Vec<Entry> =
            serde_json::from_slice(manifest).map_err(|e| refused(format!("manifest.json is not understood: {e}")))?;
        let mut images = Vec::new();
        for entry in entries.into_iter().take(MAX_IMAGES + 1) {
            let missing = |name: &str| {
                let name = printable(name.as_bytes());
                refused(format!("manifest.json names \"{name}\", which is missing"))
            };
            let config = self.read(&entry.config)?.ok_or_else(|| missing(&entry.config))?;
            let read = configuration(&config, entry.layers.len())?;
            if !read.is_for(self.platform) {
                let name = entry.repo_tags.join(", ");
                return Err(no_platform(&name, self.platform, &[read.platform()]));
            }
            let (mut layers, mut types) = (Vec::new(), Vec::new());
            for (diff_id, name) in read.diff_ids.iter().zip(&entry.layers) {
                let file = self.spool.file(name).ok_or_else(|| missing(name))?;
                types.push(json!({ "digest": file.digest.to_string(), "mediaType": media_type(file)? }));
                layers.push((image_layer(diff_id, file), file.clone()));
            }
            let rows: Vec<ImageLayer> = layers.iter().map(|(layer, _)| layer.clone()).collect();
            let manifest = documents::manifest(&json!({ "layers": types }), &config, &rows)
                .to_string()
                .into_bytes();
            let names = entry.repo_tags.iter().take(MAX_IMAGES).map(|name| {
                let name = ImageRef::parse(name).map_err(|e| refused(e.to_string()))?;
                match name.reference().contains(':') {
                    true => Err(refused(format!("{name} in manifest.json is not a tag"))),
                    false => Ok(name),
                }
            });
            images.push(Found {
                names: names.collect::<Result<_, _>>()?,
                tag: None,
                manifest: (Digest::of(&manifest), manifest),
                config: (Digest::of(&config), config),
                read,
                layers,
            });
        }
        Ok(images)
    }
}

/// Media type of a layer, by how it begins.
fn media_type(file: &Spooled) -> Result<&'static str, SpoolError> {
    let mut start = Vec::new();
    let opened = fs_err::File::open(&file.path).map_err(SpoolError::System)?;
    opened.take(4).read_to_end(&mut start).map_err(SpoolError::System)?;
    Ok(match start[..] {
        [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::Tar;

    fn found(tar: Tar) -> Result<Vec<Vec<String>>, String> {
        let directory = tempfile::tempdir().unwrap();
        let spooled = Spool::fill(&tar.build()[..], directory.path());
        match spooled.and_then(|spool| images(&spool, &Platform::parse("linux", "amd64"))) {
            Ok(found) => {
                let names = |image: &Found| -> Vec<String> {
                    let names = image.names.iter().map(ImageRef::canonical);
                    names.chain(image.tag.iter().map(|tag| format!("({tag})"))).collect()
                };
                Ok(found.iter().map(names).collect())
            }
            Err(SpoolError::Refused(message)) => Err(message),
            Err(SpoolError::System(error)) => panic!("{error}"),
        }
    }

    const LAYER: &[u8] = &[0; 1024];

    fn config(architecture: &str) -> String {
        json!({ "os": "linux", "architecture": architecture,
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(LAYER).to_string()] } })
        .to_string()
    }

    fn blob(tar: Tar, body: &[u8]) -> Tar {
        tar.file(format!("blobs/sha256/{}", Digest::of(body).hex()), body)
    }

    /// A layout with an image for each architecture, and its entries.
    fn layout(architectures: &[&str]) -> (Tar, Vec<Value>) {
        let mut tar = blob(Tar::new().file("oci-layout", "{}"), LAYER);
        let mut entries = Vec::new();
        for architecture in architectures {
            let config = config(architecture);
            let manifest = json!({ "schemaVersion": 2,
                "config": { "digest": Digest::of(config.as_bytes()).to_string(), "size": config.len() },
                "layers": [{ "digest": Digest::of(LAYER).to_string(), "size": LAYER.len() }] })
            .to_string();
            tar = blob(blob(tar, config.as_bytes()), manifest.as_bytes());
            entries.push(
                json!({ "digest": Digest::of(manifest.as_bytes()).to_string(), "size": manifest.len(),
                "platform": { "os": "linux", "architecture": architecture } }),
            );
        }
        (tar, entries)
    }

    fn index(entries: &[Value]) -> String {
        json!({ "schemaVersion": 2, "manifests": entries }).to_string()
    }

    fn named(entry: &Value, name: &str) -> Value {
        let mut entry = entry.clone();
        entry["annotations"] = json!({ REF_NAME: name });
        entry
    }

    #[test]
    fn a_layout_with_names() {
        let (tar, entries) = layout(&["amd64"]);
        let names = |names: &[&str]| {
            let entries: Vec<Value> = names.iter().map(|name| named(&entries[0], name)).collect();
            found(tar.clone().file("index.json", index(&entries)))
        };
        assert_eq!(names(&["docker.io/a/b:1", "c:2"]).unwrap(), [["library/c:2", "a/b:1"]]);
        assert_eq!(names(&["latest"]).unwrap(), [["(latest)"]]);
        assert_eq!(
            found(tar.clone().file("index.json", index(&entries))).unwrap(),
            [[""; 0]]
        );
        assert!(names(&["A:b"]).unwrap_err().contains("invalid image reference"));
    }

    #[test]
    fn platforms_of_one_name_and_nested_indexes() {
        let (tar, entries) = layout(&["s390x", "amd64"]);
        let both: Vec<Value> = entries.iter().map(|entry| named(entry, "a:1")).collect();
        assert_eq!(
            found(tar.clone().file("index.json", index(&both))).unwrap(),
            [["library/a:1"]]
        );
        let inner = index(&entries);
        let outer = json!({ "digest": Digest::of(inner.as_bytes()).to_string(), "size": 1 });
        let tar = blob(tar, inner.as_bytes());
        let nested = tar.clone().file("index.json", index(&[named(&outer, "b:1")]));
        assert_eq!(found(nested).unwrap(), [["library/b:1"]]);
        let other = found(tar.file("index.json", index(&both[..1]))).unwrap_err();
        assert_eq!(other, "the image \"a:1\" is for linux/s390x, not for linux/amd64");
    }

    #[test]
    fn an_index_that_leads_to_itself_ends() {
        let (tar, _) = layout(&["s390x"]);
        // Each leads a thousand times to the next one.
        let mut body = index(&[]);
        let mut tar = blob(tar, body.as_bytes());
        for _ in 0..3 {
            let entry = json!({ "digest": Digest::of(body.as_bytes()).to_string() });
            body = index(&vec![entry; 1000]);
            tar = blob(tar, body.as_bytes());
        }
        let error = found(tar.file("index.json", body)).unwrap_err();
        assert!(
            error.contains("leads to too many others") || error.contains("67108864 bytes"),
            "{error}"
        );
    }

    #[test]
    fn a_layout_that_lies() {
        let (tar, entries) = layout(&["amd64"]);
        let spoilt = format!("blobs/sha256/{}", Digest::of(LAYER).hex());
        let error = found(tar.clone().file(spoilt, "x").file("index.json", index(&entries))).unwrap_err();
        assert!(error.contains("has the digest"), "{error}");
        let (empty, _) = layout(&[]);
        let error = found(empty.clone().file("index.json", index(&entries))).unwrap_err();
        assert!(error.contains("is missing"), "{error}");
        assert_eq!(
            found(empty.file("index.json", index(&[]))).unwrap_err(),
            "it has no images"
        );
        let error = found(tar.file("index.json", "{}")).unwrap_err();
        assert!(error.contains("index.json"), "{error}");
    }

    fn docker(manifest: &Value) -> Tar {
        Tar::new()
            .file("c.json", config("amd64"))
            .file("one/layer.tar", LAYER)
            .symlink("two/layer.tar", "../one/layer.tar")
            .file("manifest.json", manifest.to_string())
    }

    #[test]
    fn an_archive_of_docker() {
        let entry = json!({ "Config": "c.json", "RepoTags": ["a:1", "b/c:2"], "Layers": ["two/layer.tar"] });
        assert_eq!(found(docker(&json!([entry]))).unwrap(), [["library/a:1", "b/c:2"]]);
        let unnamed = json!([{ "Config": "c.json", "RepoTags": null, "Layers": ["one/layer.tar"] }]);
        assert_eq!(found(docker(&unnamed)).unwrap(), [[""; 0]]);
        for (wrong, reason) in [
            (
                json!([{ "Config": "../c.json", "Layers": [] }]),
                "names \"../c.json\", which is missing",
            ),
            (json!([{ "Config": "c.json", "Layers": [] }]), "1 diff ids"),
            (json!([{ "Config": "c.json", "Layers": ["three"] }]), "names \"three\""),
            (
                json!([{ "Config": "one/layer.tar", "Layers": [] }]),
                "the configuration is wrong",
            ),
            (
                json!([{ "Config": "c.json", "RepoTags": ["A"], "Layers": ["one/layer.tar"] }]),
                "invalid image reference",
            ),
            (json!({}), "not understood"),
            (json!([]), "it has no images"),
        ] {
            let error = found(docker(&wrong)).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
        assert!(
            found(Tar::new().file("etc/passwd", ""))
                .unwrap_err()
                .contains("/v1/images/import")
        );
        assert!(
            found(Tar::new().file("repositories", "{}"))
                .unwrap_err()
                .contains("older than 1.10")
        );
    }
}
