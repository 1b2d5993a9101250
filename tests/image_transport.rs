//! Pulling from a registry that misbehaves: tokens, broken connections, wrong documents.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::sync::Arc;

use condenser::image::{ImageError, ImageRef, Platform, Progress};
use serde_json::json;
use support::images::Place;
use support::images::content::{INDEX, Layer, MANIFEST, TestImage, archive, digest, index};
use support::images::peer::{Fault, Peer};
use support::{SOON, wait_for_async, when};
use tokio::sync::Notify;

const CHALLENGE: &str = r#"Bearer realm="http://{host}/token",service="peer""#;

async fn lab() -> (Peer, Place) {
    let peer = Peer::start().await;
    let place = Place::new(&[&peer.address.to_string()]).await;
    (peer, place)
}

/// Random enough not to shrink, so that pieces of it are pieces of the blob.
fn large_layer() -> Layer {
    let mut state = 1_u32;
    let text: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + (state >> 24) as u8 % 26)
    })
    .take(300_000)
    .collect();
    Layer::plain(archive(&[("large", &text)]))
}

fn blob(layer: &Layer) -> String {
    format!("/blobs/{}", layer.digest())
}

#[rstest::rstest]
#[case("token")]
#[case("access_token")]
#[tokio::test]
async fn one_token_serves_a_pull(#[case] member: &str) {
    let (peer, place) = lab().await;
    let image = TestImage::of(&[Layer::file("a", "1"), Layer::file("b", "2")]);
    peer.with(|b| {
        b.challenges = vec![r#"Basic realm="x""#.into(), CHALLENGE.replace("realm", "Realm")];
        b.token_member = member.into();
    });
    let reference = peer.offer("1", &image);
    place.pull(&reference).await.unwrap();
    assert_eq!(peer.count("/token"), 1);
    let asked = peer
        .with(|b| b.requests.iter().find(|r| r.starts_with("/token")).cloned())
        .unwrap();
    assert!(
        asked.contains(r#"("service", "peer"), ("scope", "repository:app:pull")"#),
        "{asked}"
    );
    place.pull(&reference).await.unwrap();
    assert_eq!(
        peer.count("/token"),
        2,
        "the next pull introduces itself anew: who we are may have changed"
    );
}

#[tokio::test]
async fn a_token_that_expires_half_way_is_renewed_once() {
    let (peer, place) = lab().await;
    let layers = [Layer::file("a", "1"), Layer::file("b", "2"), Layer::file("c", "3")];
    peer.with(|b| {
        b.challenges = vec![CHALLENGE.into()];
        b.token_member = "token".into();
    });
    let reference = peer.offer("1", &TestImage::of(&layers));
    peer.fail(&blob(&layers[1]), &[Fault::ExpireToken]);
    place.pull(&reference).await.unwrap();
    assert_eq!(peer.count("/token"), 2);

    // A registry that takes no token at all is not asked for ever.
    peer.fail("/manifests/1", &[Fault::ExpireToken, Fault::ExpireToken]);
    let error = place.pull(&reference).await.unwrap_err();
    assert!(
        error.to_string().contains("manifest fetch failed: 401: who are you"),
        "{error}"
    );
    assert_eq!(peer.count("/token"), 3);
}

#[tokio::test]
async fn who_cannot_get_a_token_learns_why() {
    let (peer, place) = lab().await;
    let reference = peer.offer("1", &TestImage::of(&[]));
    let refused = async |challenge: &str, member: &str, reason: &str| {
        peer.with(|b| {
            b.challenges = vec![challenge.into()];
            b.token_member = member.into();
        });
        let error = place.pull(&reference).await.unwrap_err();
        assert!(matches!(error, ImageError::Registry { .. }));
        assert!(error.to_string().contains(reason), "{error}");
    };
    refused(r#"Basic realm="x""#, "token", "wants credentials (Basic)").await;
    refused(CHALLENGE, "id", "no token").await;
    refused("Bearer", "token", "does not say how").await;
    peer.fail("/token", &[Fault::Status(403)]);
    refused(CHALLENGE, "token", "gives no token for app: 403: go away").await;
}

#[tokio::test]
async fn a_silent_token_service_holds_up_only_its_own_users() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stuck, peer) = (Peer::start().await, Peer::start().await);
    let place = Place::new(&[&stuck.address.to_string(), &peer.address.to_string()]).await;
    let image = TestImage::of(&[Layer::file("a", "1")]);
    let realm = format!(r#"Bearer realm="http://{}/token""#, silent.local_addr().unwrap());
    for (peer, challenge) in [(&stuck, realm), (&peer, CHALLENGE.to_owned())] {
        peer.with(|b| {
            b.challenges = vec![challenge];
            b.token_member = "token".into();
        });
    }
    let reference = ImageRef::parse(&stuck.offer("1", &image)).unwrap();
    let images = place.images.clone();
    let waiting = tokio::spawn(async move { images.pull(&reference, &Platform::host()).await });
    let _connection = silent.accept().await.unwrap();
    place.pull(&peer.offer("1", &image)).await.unwrap();
    assert!(!waiting.is_finished());
}

#[rstest::rstest]
#[case::with_ranges(false)]
#[case::without_ranges(true)]
#[tokio::test]
async fn a_broken_download_is_resumed(#[case] no_ranges: bool) {
    let (peer, place) = lab().await;
    peer.with(|b| b.no_ranges = no_ranges);
    let layer = large_layer();
    let reference = peer.offer("1", &TestImage::of(std::slice::from_ref(&layer)));
    let second = if no_ranges { 150_000 } else { 50_000 };
    peer.fail(
        &blob(&layer),
        &[Fault::Cut(100_000), Fault::Status(503), Fault::Cut(second)],
    );
    let row = place.pull(&reference).await.unwrap();
    assert_eq!(
        std::fs::metadata(place.lower_dirs(&row)[0].join("large"))
            .unwrap()
            .len(),
        300_000
    );
    let ranges = peer.with(|b| {
        let blobs = b.requests.iter().filter(|r| r.starts_with(&blob(&layer)));
        blobs
            .map(|r| r.split(' ').nth(1).unwrap().to_owned())
            .collect::<Vec<_>>()
    });
    assert_eq!(ranges, ["", "bytes=100000-", "bytes=100000-", "bytes=150000-"]);
}

#[tokio::test]
async fn a_download_that_never_gets_on_is_given_up() {
    let (peer, place) = lab().await;
    let layers = [large_layer(), Layer::file("good", "good")];
    let reference = peer.offer("1", &TestImage::of(&layers));
    let mut faults = vec![Fault::Cut(100_000)];
    faults.extend(vec![Fault::Cut(0); 10]);
    peer.fail(&blob(&layers[0]), &faults);
    let error = place.pull(&reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Registry { .. }), "{error}");
    assert!(error.to_string().contains(&layers[0].digest()), "{error}");
    assert!(place.inventory().is_empty(), "{:?}", place.inventory());
    assert!(peer.count(&blob(&layers[0])) <= 6);
}

#[tokio::test]
async fn temporary_trouble_is_waited_out_and_lasting_trouble_told() {
    let (peer, place) = lab().await;
    let image = TestImage::of(&[Layer::file("a", "1")]);
    let reference = peer.offer("1", &image);
    peer.fail("/manifests/1", &[Fault::Status(503), Fault::Status(429)]);
    place.pull(&reference).await.unwrap();
    assert_eq!(peer.count("/manifests/1"), 3);

    peer.fail("/manifests/1", &vec![Fault::Status(502); 9]);
    let error = place.pull(&reference).await.unwrap_err();
    assert!(
        error.to_string().contains("manifest fetch failed: 502: not now"),
        "{error}"
    );
    assert_eq!(peer.count("/manifests/1"), 7, "four attempts");

    peer.with(|b| b.faults.clear());
    let other = peer.offer("2", &TestImage::of(&[Layer::file("a", "2")]));
    peer.fail(&blob(&Layer::file("a", "2")), &[Fault::Status(404)]);
    let error = place.pull(&other).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Registry { .. }) && error.to_string().contains(": 404: not now"),
        "{error}"
    );
}

#[tokio::test]
async fn documents_are_bounded_and_verified() {
    let (peer, place) = lab().await;
    let host = format!("linux/{}", Platform::host().architecture);
    let image = TestImage::of(&[Layer::file("a", "1")]);
    let other = TestImage::of(&[Layer::file("a", "2")]);
    let refused = async |reference: String, reason: &str| {
        let error = place.pull(&reference).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(place.inventory().is_empty());
    };
    refused(
        peer.offer_document("huge", MANIFEST, vec![b' '; (4 << 20) + 1]),
        "longer than 4194304 bytes",
    )
    .await;
    refused(
        peer.offer_document("html", "text/html", b"<html>".to_vec()),
        "not understood",
    )
    .await;
    let mut both = image.manifest.clone();
    both["manifests"] = json!([]);
    refused(
        peer.offer_document("both", MANIFEST, both.to_string().into()),
        "both a manifest and an index",
    )
    .await;
    let old = json!({"schemaVersion": 1, "fsLayers": []});
    refused(
        peer.offer_document("old", "application/json", old.to_string().into()),
        "schema version 1",
    )
    .await;

    // An index whose manifest is not what its digest says, also behind another index.
    let list = index(&[(&host, &image)]);
    let reference = peer.offer_index("swapped", &list);
    let wrong = other.manifest.to_string();
    peer.offer_document(&image.manifest_digest(), MANIFEST, wrong.into());
    refused(reference, "has the digest").await;
    let inner = list.to_string();
    let nested = json!({"manifests": [{"digest": digest(inner.as_bytes()), "size": 1,
        "platform": {"os": "linux", "architecture": Platform::host().architecture}}]});
    peer.offer_document(&digest(inner.as_bytes()), INDEX, inner.into());
    refused(peer.offer_index("nested", &nested), "has the digest").await;

    let mut bent = other.clone();
    bent.manifest["config"]["size"] = json!(7);
    refused(peer.offer("config-size", &bent), "of 7 bytes came as").await;
    bent.manifest["config"]["size"] = json!(1_u64 << 40);
    refused(peer.offer("config-huge", &bent), "the configuration").await;
    let config = json!({"os": "linux", "rootfs": {"diff_ids": []}});
    let few = TestImage::with_config(&[Layer::file("a", "1")], config);
    refused(peer.offer("few-diff-ids", &few), "0 diff ids, the manifest 1 layers").await;
}

#[tokio::test]
async fn a_layer_comes_from_the_registry_and_nowhere_else() {
    let (peer, place) = lab().await;
    let elsewhere = Peer::start().await;
    let layer = Layer::file("a", "1");
    let mut image = TestImage::of(std::slice::from_ref(&layer));
    image.manifest["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    image.manifest["layers"][0]["urls"] = json!([format!("http://{}/v2/app{}", elsewhere.address, blob(&layer))]);
    let reference = peer.offer("1", &image);
    place.pull(&reference).await.unwrap();
    assert_eq!(elsewhere.with(|b| b.requests.len()), 0);
    assert_eq!(peer.count(&blob(&layer)), 1);
}

#[tokio::test]
async fn a_redirect_is_followed_without_the_token() {
    let (peer, place) = lab().await;
    let storage = Peer::start().await;
    let layer = Layer::file("a", "1");
    let image = TestImage::of(std::slice::from_ref(&layer));
    storage.offer("1", &image);
    peer.with(|b| {
        b.challenges = vec![CHALLENGE.into()];
        b.token_member = "token".into();
    });
    let reference = peer.offer("1", &image);
    let there = format!("http://localhost:{}/v2/app{}", storage.address.port(), blob(&layer));
    peer.fail(&blob(&layer), &[Fault::Redirect(there)]);
    place.pull(&reference).await.unwrap();
    let asked = storage.with(|b| b.requests.clone());
    assert_eq!(
        asked.iter().map(|r| r.trim_end()).collect::<Vec<_>>(),
        [blob(&layer)],
        "no Authorization"
    );

    let looping = peer.offer("2", &TestImage::of(&[Layer::file("a", "2")]));
    let back = format!("http://{}/v2/app/manifests/2", peer.address);
    peer.fail("/manifests/2", &vec![Fault::Redirect(back); 20]);
    let error = place.pull(&looping).await.unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
}

#[tokio::test]
async fn a_sweep_spares_what_a_running_pull_has_brought() {
    let (peer, place) = lab().await;
    let layers = [Layer::file("early", "early"), large_layer()];
    let gate = Arc::new(Notify::new());
    let reference = peer.offer("1", &TestImage::of(&layers));
    peer.fail(&blob(&layers[1]), &[Fault::Hold(gate.clone())]);
    let parsed = ImageRef::parse(&reference).unwrap();
    let host = Platform::host();
    let running = tokio::spawn({
        let (images, parsed, host) = (place.images.clone(), parsed.clone(), host.clone());
        async move { images.pull(&parsed, &host).await }
    });
    wait_for_async("the first layer", SOON, || when(place.layers(), |n| *n == 1)).await;
    wait_for_async("progress", SOON, || {
        let progress = place.images.progress(&parsed, &host).map(|p| *p.borrow());
        when(progress, |p| {
            p.is_some_and(|p| (p.ready_layers, p.total_layers) == (1, 2))
        })
    })
    .await;
    place.images.sweep().await.unwrap();
    assert_eq!(place.layers(), 1);

    // Who gives up waiting does not stop it for the others.
    let progress = place.images.progress(&parsed, &host).unwrap();
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    gate.notify_one();
    wait_for_async("the end of the pull", SOON, || place.images.get(&parsed)).await;
    assert_eq!(place.layers(), 2);
    let total_bytes = layers.iter().map(|l| l.blob.len() as u64).sum();
    let expected = Progress {
        total_bytes,
        received_bytes: total_bytes,
        total_layers: 2,
        ready_layers: 2,
    };
    assert_eq!(*progress.borrow(), expected);
    wait_for_async("a pull that is gone", SOON, || {
        when(place.images.progress(&parsed, &host), Option::is_none)
    })
    .await;
}

/// What registries keep beside images: an index within an index leads on, everything else is said to be what it is.
#[tokio::test]
async fn what_is_no_image_is_called_by_its_name() {
    let peer = Peer::start().await;
    let place = Place::new(&[&peer.address.to_string()]).await;
    let host = format!("linux/{}", Platform::host().architecture);
    let image = TestImage::of(&[Layer::file("a", "1")]);
    let typed = |config: &str, layer: &str| {
        let mut bent = image.clone();
        bent.manifest["config"]["mediaType"] = json!(config);
        bent.manifest["layers"][0]["mediaType"] = json!(layer);
        bent
    };
    let oci = "application/vnd.oci.image.config.v1+json";
    let chart = typed(
        "application/vnd.cncf.helm.config.v1+json",
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
    );
    let attestation = typed(oci, "application/vnd.in-toto+json");
    let mut artifact = typed("application/vnd.oci.empty.v1+json", "text/plain");
    artifact.manifest["artifactType"] = json!("application/spdx+json");
    let empty = TestImage::with_config(&[Layer::file("a", "1")], json!({}));
    for (tag, offered, what) in [
        (
            "chart",
            &chart,
            "but a Helm chart (media type application/vnd.cncf.helm.config.v1+json)",
        ),
        (
            "attestation",
            &attestation,
            "but an attestation (media type application/vnd.in-toto+json)",
        ),
        (
            "artifact",
            &artifact,
            "but a bill of materials (media type application/spdx+json)",
        ),
        ("empty", &empty, ": its configuration is empty"),
    ] {
        let error = place.pull(&peer.offer(tag, offered)).await.unwrap_err();
        assert!(matches!(error, ImageError::NotAnImage { .. }), "{error:?}");
        let wanted = format!(
            "app:{tag} is not a container image{}{what}",
            if what.starts_with(':') { "" } else { " " }
        );
        assert!(error.to_string().ends_with(&wanted), "{error}");
    }
    assert!(place.inventory().is_empty());

    peer.offer("plain", &image);
    // As builders push them: an attestation beside each image, and an index of indexes whose entries say no platform.
    let entry = |kind: &str, digest: String, size: usize| json!({"mediaType": kind, "digest": digest, "size": size});
    let mut inner = index(&[(&host, &image)]);
    let about = json!({"mediaType": MANIFEST, "digest": attestation.manifest_digest(), "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
    inner["manifests"].as_array_mut().unwrap().insert(0, about);
    let inner = inner.to_string();
    peer.offer_document(&digest(inner.as_bytes()), INDEX, inner.clone().into());
    let mut bare = entry(MANIFEST, attestation.manifest_digest(), 1);
    bare["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        bare,
        entry(MANIFEST, chart.manifest_digest(), chart.manifest.to_string().len()),
        entry(INDEX, digest(inner.as_bytes()), inner.len()),
    ]});
    let row = place.pull(&peer.offer_index("nested", &outer)).await.unwrap();
    assert_eq!(row.manifest_digest, image.manifest_digest());
    let only = json!({"schemaVersion": 2, "manifests": [entry(MANIFEST, chart.manifest_digest(), 1)]});
    let error = place.pull(&peer.offer_index("charts", &only)).await.unwrap_err();
    assert!(error.to_string().contains("but a Helm chart"), "{error}");
}
