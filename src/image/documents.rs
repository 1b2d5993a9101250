//! Configuration and manifest of an image that is built here (OCI image specification). Pure.
//!
//! Settings of the base that a build does not change are kept: user, labels, ports, volumes.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::digest::Digest;
use crate::model::{ImageLayer, ImageRunConfig};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Layer media type when the base does not specify one.
const PULLED_LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One step of the build history.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// The lines of the build file.
    pub by: String,
    /// Whether the step created a layer.
    pub layer: bool,
    pub at: Timestamp,
}

/// Input for the documents of an image.
pub(super) struct Parts<'a> {
    /// Configuration of the base; `null` without one.
    pub base: &'a Value,
    /// The member `config`.
    pub config: Map<String, Value>,
    /// Replaces the base's.
    pub author: Option<String>,
    pub layers: &'a [ImageLayer],
    pub made: &'a [Made],
    pub os: &'a str,
    pub architecture: &'a str,
    pub now: Timestamp,
}

/// The member `config` of the base with the settings of `run`.
pub(super) fn with_run(base: &Value, run: &ImageRunConfig) -> Map<String, Value> {
    let mut config = base
        .get("config")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    config.insert("Env".into(), json!(run.env));
    config.insert("Entrypoint".into(), json!(run.entrypoint));
    config.insert("Cmd".into(), json!(run.cmd));
    config.insert("WorkingDir".into(), json!(run.working_dir));
    config.insert("User".into(), json!(run.user));
    config
}

/// The image configuration.
pub(super) fn config(parts: &Parts<'_>) -> Value {
    let mut document = parts.base.as_object().cloned().unwrap_or_default();
    // These members describe the container that the base was once committed from, not this image.
    for stale in ["id", "parent", "container", "container_config", "docker_version"] {
        document.remove(stale);
    }
    let history = history(document.remove("history"), parts);
    let ids: Vec<&str> = parts.layers.iter().map(|layer| &layer.diff_id[..]).collect();
    if let Some(author) = &parts.author {
        document.insert("author".into(), json!(author));
    }
    document.extend([
        ("created".into(), json!(parts.now.to_string())),
        ("os".into(), json!(parts.os)),
        ("architecture".into(), json!(parts.architecture)),
        ("config".into(), Value::Object(parts.config.clone())),
        ("rootfs".into(), json!({ "type": "layers", "diff_ids": ids })),
        ("history".into(), Value::Array(history)),
    ]);
    Value::Object(document)
}

/// The manifest. `base` is the base image's manifest, which has the media types of its layers; `null` without a base.
pub(super) fn manifest(base: &Value, config: &[u8], layers: &[ImageLayer]) -> Value {
    let said: Vec<&Value> = base["layers"]
        .as_array()
        .map(|all| all.iter().collect())
        .unwrap_or_default();
    let layers = layers.iter().map(|layer| {
        let known = said.iter().find(|other| other["digest"] == json!(layer.digest));
        let media_type = match known.and_then(|known| known["mediaType"].as_str()) {
            Some(media_type) => media_type,
            None if layer.digest == layer.diff_id => LAYER_TYPE,
            None => PULLED_LAYER_TYPE,
        };
        json!({ "mediaType": media_type, "digest": layer.digest, "size": layer.size })
    });
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": CONFIG_TYPE,
            "digest": Digest::of(config).to_string(),
            "size": config.len(),
        },
        "layers": layers.collect::<Vec<_>>(),
    })
}

/// The base's history followed by ours. The number of history entries with a layer must equal the number of layers.
/// If the base's history does not match (layers hidden by a later one are dropped), it is replaced by one entry per
/// layer.
fn history(base: Option<Value>, parts: &Parts<'_>) -> Vec<Value> {
    let own = parts.made.iter().map(|made| {
        let mut entry = json!({ "created": made.at.to_string(), "created_by": made.by });
        if !made.layer {
            entry["empty_layer"] = json!(true);
        }
        entry
    });
    let below = parts.layers.len() - parts.made.iter().filter(|made| made.layer).count();
    let base = match base {
        Some(Value::Array(entries)) => entries,
        _ => Vec::new(),
    };
    let with_layer = base.iter().filter(|entry| entry["empty_layer"] != json!(true)).count();
    let base = match with_layer == below {
        true => base,
        false => vec![json!({ "created_by": "FROM" }); below],
    };
    base.into_iter().chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Document, ImageConfig};
    use super::*;

    fn layer(content: &str, digest: Option<&str>) -> ImageLayer {
        let diff_id = Digest::of(content.as_bytes()).to_string();
        let digest = digest.map_or(diff_id.clone(), |text| Digest::of(text.as_bytes()).to_string());
        ImageLayer {
            diff_id,
            digest,
            size: 3,
        }
    }

    fn run() -> ImageRunConfig {
        ImageRunConfig {
            env: vec!["A=1".into()],
            cmd: vec!["/bin/sh".into()],
            working_dir: "/app".into(),
            user: "7".into(),
            ..ImageRunConfig::default()
        }
    }

    fn made(layer: bool) -> Made {
        Made {
            by: "RUN x".into(),
            layer,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn our_own_readers_understand_them() {
        let layers = [layer("base", Some("blob")), layer("own", None)];
        let base = json!({ "container": "x", "config": { "User": "7", "Labels": { "l": "1" }, "Env": ["OLD=1"] },
            "history": [{ "created_by": "a" }, { "created_by": "b", "empty_layer": true }] });
        let parts = Parts {
            base: &base,
            config: with_run(&base, &run()),
            author: Some("somebody".into()),
            layers: &layers,
            made: &[made(true), made(false)],
            os: "linux",
            architecture: "amd64",
            now: Timestamp::UNIX_EPOCH,
        };
        let document = config(&parts);
        assert_eq!(
            document["config"]["Labels"]["l"], "1",
            "what a build does not touch stays"
        );
        assert_eq!(document["author"], "somebody");
        assert_eq!(document["history"].as_array().unwrap().len(), 4);
        assert!(document.get("container").is_none());
        let body = document.to_string();
        let read = ImageConfig::parse(body.as_bytes(), 2).unwrap();
        let expected = ImageRunConfig {
            labels: [("l".to_owned(), "1".to_owned())].into(),
            revision: ImageRunConfig::REVISION,
            ..run()
        };
        assert_eq!(read.run, expected);

        let base = json!({ "layers": [{ "digest": layers[0].digest, "mediaType": "a/b" }] });
        let manifest = manifest(&base, body.as_bytes(), &layers);
        assert_eq!(manifest["layers"][0]["mediaType"], "a/b");
        assert_eq!(manifest["layers"][1]["mediaType"], LAYER_TYPE);
        let Document::Manifest(read) = Document::parse(manifest.to_string().as_bytes(), "").unwrap() else {
            panic!("not a manifest")
        };
        assert_eq!(read.config.digest, Digest::of(body.as_bytes()));
        assert_eq!(read.layers[1].digest.to_string(), layers[1].diff_id);
    }

    #[test]
    fn a_history_that_does_not_fit_gives_way() {
        let layers = [layer("base", Some("blob"))];
        let parts = Parts {
            base: &json!({ "history": [{ "created_by": "a" }, { "created_by": "hidden" }] }),
            config: Map::new(),
            author: None,
            layers: &layers,
            made: &[],
            os: "linux",
            architecture: "amd64",
            now: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(config(&parts)["history"], json!([{ "created_by": "FROM" }]));
    }
}
