//! Manifests, indexes and image configurations as registries really send them (OCI image specification 1.1 and Docker
//! schema 2). Pure.
//!
//! Lenient where registries are: media types are missing or mixed, lists are `null`. Strict where leniency would
//! allow two readings of one document: one with the shape of both a manifest and an index is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::digest::Digest;
use super::index_entry::IndexEntry;
use super::json_null::or_default;
use super::platform::Platform;
use super::printable::printable;
use super::{artifact, health};
use crate::model::ImageRunConfig;

/// Media types that we accept for a manifest.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Largest manifest and largest configuration that is read, in bytes.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// A manifest document.
#[derive(Debug)]
pub(super) enum Document {
    /// One image for several platforms.
    Index(Vec<IndexEntry>),
    /// One image, or an artifact in the form of an image manifest.
    Manifest(Manifest),
    /// An artifact in a form of its own. Holds its media type.
    Artifact(String),
}

/// An image manifest.
#[derive(Debug)]
pub(super) struct Manifest {
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// Kind of artifact, if it is not a container image.
    pub artifact_kind: Option<String>,
}

/// A blob as a manifest describes it. `urls` is left out on purpose: a manifest must not make us fetch from another
/// host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub digest: Digest,
    pub size: u64,
}

impl Document {
    /// Parses a document. `content_type` is the registry's header; the body's own `mediaType` and shape take
    /// precedence.
    pub(super) fn parse(body: &[u8], content_type: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            schema_version: Option<u64>,
            #[serde(default, deserialize_with = "or_default")]
            media_type: String,
            #[serde(default, deserialize_with = "or_default")]
            artifact_type: String,
            manifests: Option<Vec<IndexEntry>>,
            config: Option<RawDescriptor>,
            layers: Option<Vec<RawDescriptor>>,
            #[serde(rename = "fsLayers")]
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let raw: Raw = serde_json::from_slice(body).map_err(|e| format!("the manifest is not understood: {e}"))?;
        if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
            return Err("the manifest has the withdrawn schema version 1; push the image again".into());
        }
        let media_type = if raw.media_type.is_empty() {
            content_type
        } else {
            &raw.media_type
        };
        let is_index_type = media_type.contains("image.index") || media_type.contains("manifest.list");
        let is_manifest_type =
            media_type.contains("image.manifest.") || media_type.contains("distribution.manifest.v2");
        if media_type.contains("artifact.manifest") {
            return Ok(Self::Artifact(if raw.artifact_type.is_empty() {
                media_type.to_owned()
            } else {
                raw.artifact_type
            }));
        }
        match (raw.manifests, raw.config) {
            (Some(_), Some(_)) => Err("the document is both a manifest and an index".into()),
            (Some(_), None) if raw.layers.is_some() => Err("the document is both a manifest and an index".into()),
            (Some(entries), None) if !is_manifest_type => Ok(Self::Index(entries)),
            (None, None) if is_index_type => Ok(Self::Index(Vec::new())),
            (None, Some(config)) if !is_index_type => {
                let layers = raw.layers.unwrap_or_default();
                let types: Vec<String> = layers.iter().map(|layer| layer.media_type.clone()).collect();
                let artifact_kind = artifact::artifact_kind(&config.media_type, &raw.artifact_type, &types);
                let layers = layers.into_iter().map(Descriptor::try_from).collect::<Result<_, _>>()?;
                let config = config.try_into()?;
                Ok(Self::Manifest(Manifest {
                    config,
                    layers,
                    artifact_kind,
                }))
            }
            _ => Err(format!("{media_type:?} is not the manifest of an image")),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default, deserialize_with = "or_default")]
    media_type: String,
    digest: String,
    size: u64,
}

impl TryFrom<RawDescriptor> for Descriptor {
    type Error = String;

    fn try_from(raw: RawDescriptor) -> Result<Self, String> {
        let digest = raw
            .digest
            .parse()
            .map_err(|e: super::digest::NotADigest| e.to_string())?;
        Ok(Self { digest, size: raw.size })
    }
}

/// The annotations of a manifest document; none if it is not understood.
pub(super) fn annotations(body: &[u8]) -> BTreeMap<String, String> {
    #[derive(Default, Deserialize)]
    struct Raw {
        #[serde(default, deserialize_with = "or_default")]
        annotations: BTreeMap<String, String>,
    }
    serde_json::from_slice::<Raw>(body).unwrap_or_default().annotations
}

/// The parts of an image configuration that we use.
#[derive(Debug)]
pub(super) struct ImageConfig {
    pub os: String,
    pub architecture: String,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
    pub run: ImageRunConfig,
}

impl ImageConfig {
    /// Reads a configuration and checks that it belongs to a manifest with `layers` layers.
    pub(super) fn parse(body: &[u8], layers: usize) -> Result<Self, String> {
        let config = Self::parse_alone(body)?;
        let found = config.diff_ids.len();
        if found != layers {
            return Err(format!(
                "the configuration has {found} diff ids, the manifest {layers} layers"
            ));
        }
        Ok(config)
    }

    /// Whether a configuration is empty, as that of an artifact without one.
    pub(super) fn is_empty(body: &[u8]) -> bool {
        matches!(serde_json::from_slice(body), Ok(serde_json::Value::Object(members)) if members.is_empty())
    }

    /// Parses a configuration without checking the number of layers.
    pub(super) fn parse_alone(body: &[u8]) -> Result<Self, String> {
        let raw: RawConfig = serde_json::from_slice(body).map_err(|e| format!("the configuration is wrong: {e}"))?;
        let diff_ids = raw
            .rootfs
            .diff_ids
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Digest>, _>>();
        let diff_ids = diff_ids.map_err(|e| format!("diff id {e}"))?;
        Ok(Self {
            os: raw.os,
            architecture: raw.architecture,
            diff_ids,
            run: ImageRunConfig {
                env: raw.config.env,
                entrypoint: raw.config.entrypoint.0,
                cmd: raw.config.cmd.0,
                working_dir: raw.config.working_dir,
                user: raw.config.user,
                stop_signal: raw.config.stop_signal,
                health_check: health::read(&raw.config.healthcheck, &raw.config.shell),
                volumes: raw.config.volumes.into_keys().collect(),
                exposed_ports: raw.config.exposed_ports.into_keys().collect(),
                labels: raw.config.labels,
                revision: ImageRunConfig::REVISION,
            },
        })
    }

    /// Its platform, for messages.
    pub(super) fn platform(&self) -> String {
        printable(format!("{}/{}", self.os, self.architecture).as_bytes())
    }

    /// Whether the image may be run as `wanted`.
    pub(super) fn is_for(&self, wanted: &Platform) -> bool {
        wanted.accepts(&self.os, &self.architecture)
    }
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    config: RawRun,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    #[serde(default, deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    entrypoint: Words,
    #[serde(default, deserialize_with = "or_default")]
    cmd: Words,
    #[serde(default, deserialize_with = "or_default")]
    working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    user: String,
    #[serde(default, deserialize_with = "or_default")]
    stop_signal: String,
    // Invalid values from a builder must not make the image unusable.
    #[serde(default)]
    healthcheck: serde_json::Value,
    #[serde(default)]
    shell: serde_json::Value,
    #[serde(default, deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

/// A list of words; old images have a single string instead.
#[derive(Default)]
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        Ok(Self(match Either::deserialize(d)? {
            Either::One(word) => vec![word],
            Either::Many(words) => words,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn parse(body: &str, content_type: &str) -> Result<Document, String> {
        Document::parse(body.replace("$A", A).as_bytes(), content_type)
    }

    #[test]
    fn kinds_are_told_by_media_type_or_shape() {
        let manifest = r#"{"config":{"digest":"$A","size":2},"layers":[{"digest":"$A","size":3,"urls":["http://x"]}]}"#;
        for content_type in ["application/vnd.oci.image.manifest.v1+json", "application/json", ""] {
            let Document::Manifest(m) = parse(manifest, content_type).unwrap() else {
                panic!("not a manifest")
            };
            assert_eq!((m.config.size, m.layers[0].size), (2, 3));
        }
        let index = r#"{"manifests":[{"digest":"$A","size":1,"platform":{"os":"linux","architecture":"arm"}}]}"#;
        for content_type in [
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "text/plain",
        ] {
            assert!(matches!(parse(index, content_type).unwrap(), Document::Index(e) if e.len() == 1));
        }
        let empty = r#"{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":null}"#;
        assert!(matches!(parse(empty, "").unwrap(), Document::Index(e) if e.is_empty()));
    }

    #[test]
    fn no_layers_are_allowed() {
        for layers in ["[]", "null"] {
            let body = format!(r#"{{"config":{{"digest":"$A","size":2}},"layers":{layers}}}"#);
            assert!(matches!(parse(&body, "").unwrap(), Document::Manifest(m) if m.layers.is_empty()));
        }
    }

    #[rstest::rstest]
    #[case(
        r#"{"config":{"digest":"$A","size":2},"layers":[],"manifests":[]}"#,
        "both a manifest and an index"
    )]
    #[case(r#"{"layers":[],"manifests":[]}"#, "both a manifest and an index")]
    #[case(r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema version 1")]
    #[case(
        r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#,
        "is not the manifest"
    )]
    #[case(
        r#"{"mediaType":"application/vnd.oci.image.index.v1+json","config":{"digest":"$A","size":2}}"#,
        "is not the"
    )]
    #[case(r#"{"config":{"digest":"sha256:..","size":2}}"#, "not a digest")]
    #[case(r#"{"config":{"digest":"$A","size":-1}}"#, "not understood")]
    #[case("{}", "is not the manifest")]
    #[case("[", "not understood")]
    fn what_is_refused(#[case] body: &str, #[case] reason: &str) {
        let error = parse(body, "application/json").unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn a_configuration_with_nulls_and_strings() {
        let body = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{A}"]}},
                "config":{{"Env":null,"Cmd":"top","Entrypoint":["a","b"],"User":null,"WorkingDir":"/w","Labels":{{}}}}}}"#
        );
        let config = ImageConfig::parse(body.as_bytes(), 1).unwrap();
        assert_eq!(config.run.cmd, ["top"]);
        assert_eq!(config.run.entrypoint, ["a", "b"]);
        assert_eq!((&*config.run.user, &*config.run.working_dir), ("", "/w"));
        assert!(config.run.env.is_empty());
        assert!(config.is_for(&Platform::parse("linux", "amd64")));
        assert!(!config.is_for(&Platform::parse("linux", "arm64")));
        let error = ImageConfig::parse(body.as_bytes(), 2).unwrap_err();
        assert!(error.contains("1 diff ids"), "{error}");
        assert!(
            ImageConfig::parse(b"{\"config\":null,\"rootfs\":null}", 0)
                .unwrap()
                .is_for(&Platform::host())
        );
    }
}
