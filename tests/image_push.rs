//! Pushing to a registry: what arrives, what is not sent twice, and what becomes of a push that goes wrong. After every
//! fault: the right error, no tag, and a push that works when the fault is gone.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use condenser::image::{
    Credentials, ImageError, ImageRef, Patience, PushRequest, Pushed, Registries, RegistryEntries, RegistryEntry,
    RegistrySettings,
};
use condenser::ops::progress::{ProgressEvent, Reporter, TransferState};
use serde_json::{Value, json};
use support::Registry;
use support::images::Place;
use support::images::content::{INDEX, Layer, MANIFEST, TestImage, archive, digest};
use support::images::peer::{Fault, Peer};

const CHALLENGE: &str = r#"Bearer realm="http://{host}/token",service="peer""#;

async fn place(hosts: &[String]) -> Place {
    let entry = |host: &String| RegistryEntry {
        host: host.clone(),
        mirrors: Vec::new(),
        ca: None,
        insecure: true,
    };
    Place::with(RegistrySettings {
        registries: Registries::new(RegistryEntries(hosts.iter().map(entry).collect()), &[]).unwrap(),
        credential_files: Vec::new(),
        certs_dir: PathBuf::from("/nonexistent"),
        patience: Patience {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(5),
            pause: Duration::from_millis(1),
        },
    })
    .await
}

/// Bytes that do not shrink.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Larger than two chunks.
fn large() -> Layer {
    let text: String = noise(12 << 20)
        .into_iter()
        .map(|byte| char::from(byte % 64 + 32))
        .collect();
    Layer::zstd(archive(&[("large", &text)]))
}

async fn push_to(place: &Place, image: &str, destination: &str) -> Result<Pushed, ImageError> {
    push_as(place, image, destination, None).await
}

async fn push_as(
    place: &Place,
    image: &str,
    destination: &str,
    credentials: Option<Credentials>,
) -> Result<Pushed, ImageError> {
    let request = PushRequest {
        image: ImageRef::parse(image)?,
        destination: ImageRef::parse(destination)?,
        credentials,
        all_platforms: false,
    };
    place.images.push(request, Reporter::silent()).await
}

/// A peer with an image, and a store that has pulled it as `<source>`.
async fn pulled(layers: &[Layer]) -> (Peer, Place, String) {
    let source = Peer::start().await;
    let destination = Peer::start().await;
    let place = place(&[source.address.to_string(), destination.address.to_string()]).await;
    let name = source.offer("1", &TestImage::of(layers));
    place.pull(&name).await.unwrap();
    (destination, place, name)
}

/// What the OCI image specification requires of a manifest and its configuration: members and types.
fn check_manifest(peer: &Peer, tag: &str) -> Value {
    let (media_type, body) = peer.manifest_of(tag).expect("no such tag");
    let manifest: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["mediaType"], json!(media_type));
    let check = |descriptor: &Value| {
        let members = descriptor.as_object().unwrap();
        let known = ["mediaType", "digest", "size", "annotations"];
        assert!(members.keys().all(|key| known.contains(&&**key)), "{descriptor}");
        let media_type = descriptor["mediaType"].as_str().unwrap();
        assert!(media_type.starts_with("application/vnd."), "{descriptor}");
        let blob = peer
            .blob(descriptor["digest"].as_str().unwrap())
            .expect("a blob is missing");
        assert_eq!(descriptor["size"].as_u64().unwrap(), blob.len() as u64);
        assert_eq!(descriptor["digest"], json!(digest(&blob)));
        blob
    };
    let config: Value = serde_json::from_slice(&check(&manifest["config"])).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert!(config["architecture"].is_string() && config["os"].is_string());
    assert_eq!(config["rootfs"]["type"], "layers");
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids.len(), layers.len());
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let blob = check(layer);
        let plain = match layer["mediaType"].as_str().unwrap().rsplit_once('+') {
            Some((_, "gzip")) => {
                let mut plain = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&blob[..]), &mut plain).unwrap();
                plain
            }
            Some((_, "zstd")) => zstd::decode_all(&blob[..]).unwrap(),
            _ => blob.to_vec(),
        };
        assert_eq!(
            json!(digest(&plain)),
            *diff_id,
            "a layer does not have the diff id of the configuration"
        );
    }
    manifest
}

#[tokio::test]
async fn an_image_arrives_with_the_diff_ids_of_its_configuration() {
    let (peer, place, name) = pulled(&[Layer::file("a", "1"), large(), Layer::plain(archive(&[("b", "2")]))]).await;
    let to = format!("{}/copy:2", peer.address);
    let pushed = push_to(&place, &name, &to).await.unwrap();
    assert_eq!(
        (pushed.new_layers, pushed.present_layers, pushed.is_rewritten),
        (3, 0, false)
    );
    let manifest = check_manifest(&peer, "2");
    assert_eq!(manifest["config"]["digest"], json!(pushed.config_digest));
    let row = place.images.get(&ImageRef::parse(&name).unwrap()).unwrap();
    assert_eq!(row.config_digest, pushed.config_digest, "the image keeps its id");
    assert!(peer.count("PATCH") >= 5, "in chunks");
    assert_eq!(peer.open_uploads(), 0);
    // Nothing is sent twice: what the layers became is remembered.
    let before = peer.with(|b| b.requests.len());
    let again = push_to(&place, &name, &to).await.unwrap();
    assert_eq!(
        (again.new_layers, again.uploaded, again.manifest_digest),
        (0, 0, pushed.manifest_digest)
    );
    let sent = peer.with(|b| b.requests[before..].to_vec());
    assert!(
        !sent.iter().any(|r| r.starts_with("PATCH") || r.starts_with("BEGIN")),
        "{sent:?}"
    );
    // And the result can be pulled.
    place.images.remove(&ImageRef::parse(&name).unwrap()).await.unwrap();
    let pulled = place.pull(&to).await.unwrap();
    assert_eq!(pulled.config_digest, row.config_digest);
}

#[tokio::test]
async fn what_the_registry_has_keeps_its_digest() {
    let peer = Peer::start().await;
    peer.with(|b| b.mounts = true);
    let place = place(&[peer.address.to_string()]).await;
    let image = TestImage::of(&[Layer::file("a", "1"), large()]);
    let name = peer.offer("1", &image);
    place.pull(&name).await.unwrap();
    let pushed = push_to(&place, &name, &format!("{}/other:1", peer.address))
        .await
        .unwrap();
    assert_eq!((pushed.new_layers, pushed.uploaded), (0, 0));
    assert_eq!(
        pushed.manifest_digest,
        image.manifest_digest(),
        "the manifest is the one that was pulled"
    );
    assert_eq!(peer.count("PATCH"), 0);
}

#[tokio::test]
async fn a_layer_of_another_repository_is_mounted() {
    let (peer, place, name) = pulled(&[large()]).await;
    push_to(&place, &name, &format!("{}/one:1", peer.address))
        .await
        .unwrap();
    // The peer keeps one set of blobs; a registry that hides them shows whether it was asked to mount.
    let blobs: Vec<String> = peer.with(|b| b.requests.iter().filter(|r| r.starts_with("FINISH")).cloned().collect());
    assert_eq!(blobs.len(), 2, "a layer and a configuration");
    let layer = check_manifest(&peer, "1")["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    peer.with(|b| b.mounts = true);
    peer.fail(&format!("/blobs/{layer}"), &[Fault::Status(404)]);
    let pushed = push_to(&place, &name, &format!("{}/two:2", peer.address))
        .await
        .unwrap();
    assert_eq!((pushed.new_layers, pushed.present_layers), (0, 1));
    assert!(peer.with(|b| b.requests.iter().any(|r| r == "BEGIN one")));
}

#[rstest::rstest]
#[case::nothing_arrives("PATCH", &[Fault::Cut(0)])]
#[case::a_part_arrives("PATCH", &[Fault::Cut(1_000_000), Fault::Cut(100_000)])]
#[case::one_byte_arrives("PATCH", &[Fault::Cut(1)])]
#[case::busy("PATCH", &[Fault::Status(503), Fault::Status(500)])]
#[case::forgotten("PATCH", &[Fault::Forget])]
#[case::forgotten_at_the_end("FINISH", &[Fault::Forget])]
#[case::the_last_answer_is_lost("FINISH", &[Fault::Cut(0)])]
#[case::busy_at_the_end("FINISH", &[Fault::Status(503)])]
#[case::busy_at_the_beginning("BEGIN", &[Fault::Status(503)])]
#[case::manifest_later("MANIFEST", &[Fault::Status(502)])]
#[tokio::test]
async fn a_fault_that_passes_is_overcome(#[case] step: &str, #[case] faults: &[Fault]) {
    let (peer, place, name) = pulled(&[large()]).await;
    peer.fail(step, faults);
    push_to(&place, &name, &format!("{}/copy:2", peer.address))
        .await
        .unwrap();
    check_manifest(&peer, "2");
    assert!(peer.with(|b| b.faults[step].is_empty()), "the fault was not met");
}

#[tokio::test]
async fn a_token_that_expires_is_renewed() {
    let (peer, place, name) = pulled(&[large()]).await;
    peer.with(|b| {
        b.challenges = vec![CHALLENGE.into()];
        b.token_member = "token".into();
    });
    peer.fail("PATCH", &[Fault::ExpireToken]);
    peer.fail("FINISH", &[Fault::ExpireToken]);
    peer.fail("MANIFEST", &[Fault::ExpireToken]);
    push_to(&place, &name, &format!("{}/copy:2", peer.address))
        .await
        .unwrap();
    check_manifest(&peer, "2");
    let asked = peer.with(|b| b.requests.iter().find(|r| r.starts_with("/token")).cloned().unwrap());
    assert!(asked.contains("repository:copy:pull,push"), "{asked}");
}

#[rstest::rstest]
#[case("GREET", Fault::Refuse(403, "the house is closed"), "the house is closed")]
#[case("BEGIN", Fault::Refuse(403, "denied: no write access"), "denied: no write access")]
#[case("PATCH", Fault::Refuse(413, "too much of it"), "413: too much of it")]
#[case("FINISH", Fault::Refuse(507, "quota exceeded"), "quota exceeded")]
#[case(
    "MANIFEST",
    Fault::Refuse(400, "TAG_INVALID: tags are immutable"),
    "tags are immutable"
)]
#[tokio::test]
async fn a_refusal_has_the_words_of_the_registry(#[case] step: &str, #[case] fault: Fault, #[case] words: &str) {
    let (peer, place, name) = pulled(&[Layer::file("a", "1"), large()]).await;
    peer.fail(step, &vec![fault; 20]);
    let to = format!("{}/copy:2", peer.address);
    let error = push_to(&place, &name, &to).await.unwrap_err();
    assert!(matches!(error, ImageError::Registry { .. }), "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(peer.manifest_of("2").is_none(), "a tag was left behind");
    peer.with(|b| b.faults.clear());
    push_to(&place, &name, &to).await.unwrap();
    check_manifest(&peer, "2");
}

#[tokio::test]
async fn credentials_of_a_request_are_used_and_not_told() {
    let (peer, place, name) = pulled(&[Layer::file("a", "1")]).await;
    peer.with(|b| {
        b.challenges = vec!["Basic realm=\"peer\"".into()];
        b.basic = Some("Basic dXNlcjpodW50ZXIy".into());
    });
    let to = format!("{}/copy:2", peer.address);
    let wrong = Credentials::password("user".into(), "hunter3".into());
    let error = push_as(&place, &name, &to, Some(wrong)).await.unwrap_err().to_string();
    assert!(
        error.contains("who are you") && error.contains("the credentials of the request"),
        "{error}"
    );
    assert!(!error.contains("hunter3"), "{error}");
    push_to(&place, &name, &to).await.unwrap_err();
    let right = Credentials::password("user".into(), "hunter2".into());
    push_as(&place, &name, &to, Some(right)).await.unwrap();
    // The next one does not have them.
    push_to(&place, &name, &to).await.unwrap_err();
    check_manifest(&peer, "2");
}

#[tokio::test]
async fn progress_is_told() {
    let (peer, place, name) = pulled(&[Layer::file("a", "1"), large()]).await;
    let (reporter, mut events) = Reporter::channel();
    let request = PushRequest {
        image: ImageRef::parse(&name).unwrap(),
        destination: ImageRef::parse(&format!("{}/copy:2", peer.address)).unwrap(),
        credentials: None,
        all_platforms: false,
    };
    let (pushed, told) = tokio::join!(place.images.push(request, reporter), async {
        let mut told = Vec::new();
        while let Some(event) = events.recv().await {
            told.push(event);
        }
        told
    });
    pushed.unwrap();
    let phases = told.iter().filter_map(|event| match event {
        ProgressEvent::Phase(phase) => Some(*phase),
        _ => None,
    });
    assert_eq!(phases.collect::<Vec<_>>(), ["resolving", "layers", "committing"]);
    let count = |state| {
        let of = |event: &&ProgressEvent| matches!(event, ProgressEvent::Transfer(t) if t.state == state);
        told.iter().filter(of).count()
    };
    assert_eq!((count(TransferState::Waiting), count(TransferState::Done)), (2, 2));
    assert!(count(TransferState::Uploading) >= 2);
}

/// An index of two platforms and an attestation about one of them.
fn offer_everything(source: &Peer) -> (String, Value) {
    let ours = TestImage::new("amd64", &[Layer::file("which", "amd64"), large()]);
    let other = TestImage::new("s390x", &[Layer::zstd(archive(&[("which", "s390x")]))]);
    let mut attestation = TestImage::new("unknown", &[Layer::plain(b"{\"statement\": true}".to_vec())]);
    attestation.manifest["layers"][0]["mediaType"] = json!("application/vnd.in-toto+json");
    source.offer("one", &ours);
    source.offer("two", &other);
    source.offer("three", &attestation);
    let mut index = support::images::content::index(&[("linux/amd64", &ours), ("linux/s390x", &other)]);
    let about = json!({ "mediaType": MANIFEST, "digest": attestation.manifest_digest(),
        "size": attestation.manifest.to_string().len(), "platform": { "os": "unknown", "architecture": "unknown" },
        "annotations": { "vnd.docker.reference.type": "attestation-manifest" } });
    index["manifests"].as_array_mut().unwrap().push(about);
    (source.offer_index("all", &index), index)
}

#[tokio::test]
async fn all_platforms_and_attestations_are_copied_as_they_are() {
    let (source, peer) = (Peer::start().await, Peer::start().await);
    let place = place(&[source.address.to_string(), peer.address.to_string()]).await;
    let (name, index) = offer_everything(&source);
    let push = |to: &str| PushRequest {
        image: ImageRef::parse(&name).unwrap(),
        destination: ImageRef::parse(to).unwrap(),
        credentials: None,
        all_platforms: true,
    };
    let to = format!("{}/copy:2", peer.address);
    // Whatever breaks, there is no tag before everything is there.
    peer.fail("MANIFEST", &[Fault::Refuse(403, "no more manifests")]);
    let error = place.images.push(push(&to), Reporter::silent()).await.unwrap_err();
    assert!(error.to_string().contains("no more manifests"), "{error}");
    peer.fail("PATCH", &[Fault::Cut(1000), Fault::Forget]);
    let pushed = place.images.push(push(&to), Reporter::silent()).await.unwrap();
    assert_eq!(pushed.manifest_digest, digest(index.to_string().as_bytes()));
    let (media_type, body) = peer.manifest_of("2").unwrap();
    assert_eq!((&media_type[..], &body[..]), (INDEX, index.to_string().as_bytes()));
    for entry in index["manifests"].as_array().unwrap() {
        check_blobs(&peer, entry["digest"].as_str().unwrap());
    }
    assert_eq!(place.layers(), 0, "nothing was unpacked");
    let again = place.images.push(push(&to), Reporter::silent()).await.unwrap();
    assert_eq!((again.new_layers, again.uploaded), (0, 0));
}

/// Every blob of a manifest is there, as it is.
fn check_blobs(peer: &Peer, reference: &str) {
    let (_, body) = peer.manifest_of(reference).expect("a manifest is missing");
    let manifest: Value = serde_json::from_slice(&body).unwrap();
    for blob in manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&manifest["config"]])
    {
        let id = blob["digest"].as_str().unwrap();
        assert_eq!(digest(&peer.blob(id).expect("a blob is missing")), id);
    }
}

#[tokio::test]
async fn a_real_registry_takes_it() {
    let registry = Registry::on_loopback();
    let place = place(std::slice::from_ref(&registry.address)).await;
    let name = registry.push_image("app:1", &TestImage::of(&[Layer::file("a", "1"), large()]));
    let before = place.pull(&name).await.unwrap();
    // Mounted: the registry takes its own blobs.
    let mounted = push_to(&place, &name, &registry.name("copies/app:2")).await.unwrap();
    assert_eq!(
        (mounted.new_layers, mounted.manifest_digest),
        (0, before.manifest_digest.clone())
    );
    // Another registry has nothing.
    let other = Registry::on_loopback();
    let place = self::place(&[registry.address.clone(), other.address.clone()]).await;
    place.pull(&name).await.unwrap();
    let to = other.name("copies/app:3");
    let pushed = push_to(&place, &name, &to).await.unwrap();
    assert_eq!(pushed.new_layers, 2);
    place.images.remove(&ImageRef::parse(&name).unwrap()).await.unwrap();
    let after = place.pull(&to).await.unwrap();
    assert_eq!(
        (&after.config_digest, after.diff_ids()),
        (&before.config_digest, before.diff_ids())
    );
    let again = push_to(&place, &to, &to).await.unwrap();
    assert_eq!((again.uploaded, again.new_layers), (0, 0));
}

#[tokio::test]
async fn what_cannot_be_pushed() {
    let (peer, place, name) = pulled(&[Layer::file("a", "1")]).await;
    let to = format!("{}/copy:2", peer.address);
    let error = push_to(&place, "nothing:1", &to).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound(_)), "{error}");
    let digest = format!("{}/copy@{}", peer.address, digest(b"x"));
    let error = push_to(&place, &name, &digest).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestName(_)), "{error}");
    // A layer whose files were changed on disk must not reach a tag.
    let row = place.images.get(&ImageRef::parse(&name).unwrap()).unwrap();
    std::fs::write(place.lower_dirs(&row)[0].join("a"), "2").unwrap();
    let error = push_to(&place, &name, &to).await.unwrap_err().to_string();
    assert!(error.contains("were changed on disk"), "{error}");
    assert!(peer.manifest_of("2").is_none());
}
