//! Adopts images that an earlier installation unpacked (`docs/spec/storage.md` 5.2), in place.
//!
//! A bundle has one directory with all layers applied. It becomes the only layer of the image, under a digest that no
//! registry can have: its content is that installation's view of the archives, so it must not be mistaken for a layer
//! that a pull would unpack. The directory is never changed and never deleted.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use super::digest::Digest;
use super::layers::LayerStore;
use super::manifest::{Document, ImageConfig, MAX_DOCUMENT};
use super::{ImageError, ImageRef, ImageService, Platform, blocking, documents};
use crate::model::{Image, ImageLayer};

/// An image as the earlier installation stored it. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its name.
    pub image: ImageRef,
    /// Directory of its manifests, if there is one: an image that was built there has none.
    pub directory: PathBuf,
    /// The image configuration; at least its `config` member.
    pub config: PathBuf,
    /// Root file system with all layers applied.
    pub rootfs: PathBuf,
    /// When it was pulled or built.
    pub created_at: Timestamp,
}

impl ImageService {
    /// Stores everything that the rows of these images refer to, durably, and returns the rows, or the reason why
    /// there is none. The next sweep removes whatever no committed row refers to, so no sweep may run before the
    /// commit.
    pub async fn adopt(&self, bundles: Vec<Bundle>) -> Result<Vec<Result<Image, ImageError>>, ImageError> {
        let store = self.0.layers.clone();
        blocking(move || {
            let rows = bundles.iter().map(|bundle| adopt(&store, bundle)).collect();
            store.sync()?;
            Ok(rows)
        })
        .await
    }
}

fn adopt(store: &LayerStore, bundle: &Bundle) -> Result<Image, ImageError> {
    let bad = |message: String| ImageError::BadImage {
        image: bundle.image.canonical(),
        message,
    };
    if !bundle.rootfs.is_dir() {
        return Err(bad(format!("{} is no directory", bundle.rootfs.display())));
    }
    let config = read(&bundle.config)?.ok_or_else(|| bad(format!("{} is missing", bundle.config.display())))?;
    let parsed = ImageConfig::parse_alone(&config).map_err(bad)?;
    let config_digest = Digest::of(&config);
    let name = layer_name(bundle, &config_digest);
    let mut layer = ImageLayer {
        diff_id: name.to_string(),
        digest: name.to_string(),
        size: 0,
    };
    store.adopt_layer(&bundle.rootfs, &name)?;
    let manifest = match manifest(bundle, &config_digest)? {
        Some((manifest, size)) => {
            layer.size = size;
            manifest
        }
        None => documents::manifest(&Value::Null, &config, std::slice::from_ref(&layer))
            .to_string()
            .into_bytes(),
    };
    let manifest_digest = Digest::of(&manifest);
    store.publish_blob(&config_digest, &config)?;
    store.publish_blob(&manifest_digest, &manifest)?;
    let platform = match parsed.os.is_empty() || parsed.architecture.is_empty() {
        true => Platform::host(),
        false => Platform::parse(&parsed.os, &parsed.architecture),
    };
    Ok(Image {
        id: bundle.image.canonical(),
        repository: bundle.image.repository().to_owned(),
        reference: bundle.image.reference().to_owned(),
        manifest_digest: manifest_digest.to_string(),
        config_digest: config_digest.to_string(),
        size_bytes: layer.size.saturating_add(config.len() as u64),
        layers: vec![layer],
        config: parsed.run,
        os: platform.os,
        architecture: platform.architecture,
        created_at: bundle.created_at,
    })
}

/// Name of the layer. A pulled layer can never get this name, because nobody can choose content with a given digest.
fn layer_name(bundle: &Bundle, config: &Digest) -> Digest {
    let (path, at) = (bundle.rootfs.display(), bundle.created_at);
    Digest::of(format!("bundle of an earlier installation\n{path}\n{config}\n{at}\n").as_bytes())
}

/// The manifest for the platform and the size of its layers, if the bundle has a manifest that refers to the
/// configuration.
fn manifest(bundle: &Bundle, config: &Digest) -> io::Result<Option<(Vec<u8>, u64)>> {
    for name in ["manifest.selected.json", "manifest.json"] {
        let Some(body) = read(&bundle.directory.join(name))? else {
            continue;
        };
        if let Ok(Document::Manifest(manifest)) = Document::parse(&body, "")
            && manifest.config.digest == *config
        {
            let sizes = manifest.layers.iter().map(|layer| layer.size);
            return Ok(Some((body, sizes.fold(0, u64::saturating_add))));
        }
    }
    Ok(None)
}

/// A document, or `None` if it does not exist.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match fs_err::File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut body = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut body)?;
    match body.len() as u64 > MAX_DOCUMENT {
        true => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} is longer than {MAX_DOCUMENT} bytes", path.display()),
        )),
        false => Ok(Some(body)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::stack;
    use super::*;

    const CONFIG: &str = r#"{"config":{"Env":["A=1"],"Cmd":["/bin/sh"],"WorkingDir":"/srv","User":"7"}}"#;

    fn bundle(root: &Path) -> Bundle {
        let directory = root.join("layers/library/web/1");
        std::fs::create_dir_all(directory.join("rootfs/etc")).unwrap();
        std::fs::write(directory.join("rootfs/etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        std::fs::write(directory.join("config.json"), CONFIG).unwrap();
        Bundle {
            image: ImageRef::parse("library/web:1").unwrap(),
            config: directory.join("config.json"),
            rootfs: directory.join("rootfs"),
            directory,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_built_image_gets_a_manifest_and_its_files_stay() {
        let root = tempfile::tempdir().unwrap();
        let bundle = bundle(root.path());
        let store = LayerStore::open(root.path()).unwrap();
        let row = adopt(&store, &bundle).unwrap();
        assert_eq!(row, adopt(&store, &bundle).unwrap(), "a second time changes nothing");
        assert_eq!((&*row.id, &*row.config.user), ("library/web:1", "7"));
        assert_eq!(row.architecture, Platform::host().architecture);
        let digests = [&row.config_digest, &row.manifest_digest].map(|d| d.parse::<Digest>().unwrap());
        assert_eq!(store.read_blob(&digests[0]).unwrap().unwrap(), CONFIG.as_bytes());
        let manifest = store.read_blob(&digests[1]).unwrap().unwrap();
        let Document::Manifest(manifest) = Document::parse(&manifest, "").unwrap() else {
            panic!("no manifest");
        };
        assert_eq!(manifest.config.digest, digests[0]);
        let lower = store.lower_dir(&stack::stack(&row.diff_ids())[0]);
        assert!(lower.join("etc/passwd").exists());
        let name = row.layers[0].diff_id.parse::<Digest>().unwrap();
        assert!(
            store.layer_size(&name).unwrap() > 4096,
            "what is behind the link counts"
        );
        drop(store.sweep(HashSet::new).unwrap());
        assert!(
            !lower.exists() && bundle.rootfs.join("etc/passwd").exists(),
            "only the link goes"
        );
    }

    #[test]
    fn a_pulled_image_keeps_its_manifest() {
        let root = tempfile::tempdir().unwrap();
        let bundle = bundle(root.path());
        let store = LayerStore::open(root.path()).unwrap();
        let digest = Digest::of(CONFIG.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":80}},"layers":[{{"digest":"{digest}","size":100}}]}}"#
        );
        std::fs::write(bundle.directory.join("manifest.json"), r#"{"manifests":[]}"#).unwrap();
        std::fs::write(bundle.directory.join("manifest.selected.json"), &manifest).unwrap();
        let row = adopt(&store, &bundle).unwrap();
        assert_eq!(row.manifest_digest, Digest::of(manifest.as_bytes()).to_string());
        assert_eq!(row.size_bytes, 100 + CONFIG.len() as u64);
        std::fs::write(
            bundle.directory.join("manifest.selected.json"),
            manifest.replace(&digest.hex()[..4], "0000"),
        )
        .unwrap();
        assert_ne!(
            adopt(&store, &bundle).unwrap().manifest_digest,
            row.manifest_digest,
            "of another image"
        );
    }

    #[test]
    fn half_a_bundle_is_no_image() {
        let root = tempfile::tempdir().unwrap();
        let bundle = bundle(root.path());
        let store = LayerStore::open(root.path()).unwrap();
        std::fs::write(&bundle.config, "{").unwrap();
        adopt(&store, &bundle).unwrap_err();
        std::fs::remove_file(&bundle.config).unwrap();
        assert!(adopt(&store, &bundle).unwrap_err().to_string().contains("is missing"));
        std::fs::remove_dir_all(&bundle.rootfs).unwrap();
        assert!(adopt(&store, &bundle).unwrap_err().to_string().contains("no directory"));
    }
}
