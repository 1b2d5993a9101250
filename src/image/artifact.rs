//! Recognizes artifacts that registries store beside images, by the media types of the manifest (OCI image
//! specification 1.1, "Guidelines for Artifact Usage"). Pure.

/// Media types of an image's configuration.
const CONFIGURATIONS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// Media type of the placeholder for a missing configuration.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Media type prefixes and the kind of artifact they stand for.
const KINDS: [(&str, &str); 17] = [
    ("application/vnd.cncf.helm.", "a Helm chart"),
    ("application/vnd.in-toto", "an attestation"),
    ("application/vnd.dev.cosign.", "a signature"),
    ("application/vnd.dev.sigstore.", "a signature"),
    ("application/vnd.cncf.notary.", "a signature"),
    ("application/vnd.docker.plugin", "a plugin of Docker"),
    ("application/vnd.wasm.", "a WebAssembly module"),
    ("application/vnd.module.wasm.", "a WebAssembly module"),
    ("application/vnd.cncf.model.", "a model"),
    ("application/vnd.docker.ai.", "a model"),
    ("application/vnd.ollama.", "a model"),
    ("application/vnd.cncf.flux.", "a bundle of Flux"),
    ("application/vnd.cncf.openpolicyagent.", "a policy bundle"),
    ("application/vnd.cyclonedx", "a bill of materials"),
    ("application/spdx", "a bill of materials"),
    ("text/spdx", "a bill of materials"),
    ("application/vnd.devcontainers", "a feature of development containers"),
];

/// Describes a manifest that is not a container image, with the media type that says so. Missing types are empty.
/// Generic types (`application/json`) are treated as an image; the documents themselves decide later.
pub(super) fn artifact_kind(config: &str, artifact: &str, layers: &[String]) -> Option<String> {
    let layer = layers.first().map_or("", String::as_str);
    let media_type = match config {
        EMPTY => [artifact, layer, config].into_iter().find(|text| !text.is_empty()),
        // Attestations and signatures have an image configuration, but layers that are not image layers.
        config if CONFIGURATIONS.contains(&config) => Some(layer).filter(|layer| describe(layer).is_some()),
        config if config.starts_with("application/vnd.") || describe(config).is_some() => Some(config),
        _ => Some(artifact).filter(|artifact| !artifact.is_empty() && !CONFIGURATIONS.contains(artifact)),
    }?;
    let kind = describe(media_type).unwrap_or("an OCI artifact");
    Some(format!("{kind} (media type {media_type})"))
}

/// Whether an index entry with that artifact type may lead to an image.
pub(super) fn may_be_image(artifact: &str) -> bool {
    artifact.is_empty() || CONFIGURATIONS.contains(&artifact)
}

fn describe(media_type: &str) -> Option<&'static str> {
    let known = KINDS.iter().find(|(beginning, _)| media_type.starts_with(beginning));
    known.map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = CONFIGURATIONS[0];
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[rstest::rstest]
    #[case(IMAGE, "", &[TAR], None)]
    #[case(CONFIGURATIONS[1], "", &[], None)]
    #[case("", "", &[""], None)]
    #[case("application/octet-stream", "", &["text/plain"], None)]
    #[case("text/html", IMAGE, &[TAR], None)]
    #[case(IMAGE, "", &["application/vnd.in-toto+json"], Some("an attestation (media type application/vnd.in-toto+json)"))]
    #[case(IMAGE, "", &["application/vnd.dev.cosign.simplesigning.v1+json"],
        Some("a signature (media type application/vnd.dev.cosign.simplesigning.v1+json)"))]
    #[case("application/vnd.cncf.helm.config.v1+json", "", &["application/vnd.cncf.helm.chart.content.v1.tar+gzip"],
        Some("a Helm chart (media type application/vnd.cncf.helm.config.v1+json)"))]
    #[case(EMPTY, "application/spdx+json", &["x/y"], Some("a bill of materials (media type application/spdx+json)"))]
    #[case(EMPTY, "", &["x/y"], Some("an OCI artifact (media type x/y)"))]
    #[case(EMPTY, "", &[], Some("an OCI artifact (media type application/vnd.oci.empty.v1+json)"))]
    #[case("application/vnd.acme.rocket.config", "", &[TAR], Some("an OCI artifact (media type application/vnd.acme.rocket.config)"))]
    #[case("application/json", "application/vnd.example+type", &[],
        Some("an OCI artifact (media type application/vnd.example+type)"))]
    fn kinds(#[case] config: &str, #[case] artifact: &str, #[case] layers: &[&str], #[case] expected: Option<&str>) {
        let layers: Vec<String> = layers.iter().map(|layer| (*layer).to_owned()).collect();
        assert_eq!(artifact_kind(config, artifact, &layers).as_deref(), expected);
    }
}
