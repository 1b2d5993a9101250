//! A registry and mirrors that lie, stall, cut and point elsewhere; who we say we are, and to whom. After every fault:
//! the right error, nothing in the store, and a pull that works when the fault is gone.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use condenser::image::{ImageError, Patience, Registries, RegistryEntries, RegistryEntry, RegistrySettings};
use serde_json::{Value, json};
use support::images::Place;
use support::images::content::{INDEX, Layer, MANIFEST, TestImage, archive, digest, index};
use support::images::peer::{Fault, Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHALLENGE: &str = r#"Bearer realm="http://{host}/token",service="peer""#;
/// `user:hunter2`, as in `auth` and in `Authorization: Basic`.
const BASIC: &str = "dXNlcjpodW50ZXIy";
/// More often than anything is tried.
const ALWAYS: usize = 20;

fn quick() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        idle: Duration::from_secs(1),
        pause: Duration::from_millis(1),
    }
}

fn settings(entries: Vec<RegistryEntry>, credentials: Option<&Path>) -> RegistrySettings {
    RegistrySettings {
        registries: Registries::new(RegistryEntries(entries), &[]).unwrap(),
        credential_files: credentials.map(Path::to_owned).into_iter().collect(),
        certs_dir: PathBuf::from("/nonexistent"),
        patience: quick(),
    }
}

fn plain(peer: &Peer, mirrors: &[&Peer]) -> RegistryEntry {
    RegistryEntry {
        host: peer.address.to_string(),
        mirrors: mirrors.iter().map(|m| format!("http://{}", m.address)).collect(),
        ca: None,
        insecure: true,
    }
}

/// Random enough not to shrink.
fn large_layer() -> Layer {
    let mut state = 1_u32;
    let letter = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + (state >> 24) as u8 % 26)
    };
    let text: String = std::iter::repeat_with(letter).take(300_000).collect();
    Layer::plain(archive(&[("large", &text)]))
}

fn blob(layer: &Layer) -> String {
    format!("/blobs/{}", layer.digest())
}

/// What kind of error: the status is decided by it.
fn kind(error: &ImageError) -> &'static str {
    match error {
        ImageError::Registry { .. } => "registry",
        ImageError::BadImage { .. } => "bad image",
        ImageError::BadLayer { .. } => "bad layer",
        ImageError::ManifestNotFound(_) => "not found",
        ImageError::NoPlatform { .. } => "no platform",
        ImageError::DiskFull { .. } => "disk full",
        _ => "another",
    }
}

#[tokio::test]
async fn every_fault_is_told_and_leaves_nothing() {
    let layer = large_layer();
    let image = TestImage::of(std::slice::from_ref(&layer));
    let config = format!("/blobs/{}", digest(image.config.to_string().as_bytes()));
    let (tag, large) = ("/manifests/1".to_owned(), blob(&layer));
    let mut flipped = layer.blob.clone();
    flipped[100_000] ^= 1;
    let longer = [&layer.blob[..], b"more"].concat();
    let shorter = layer.blob[..100_000].to_vec();
    let wrong_type = ("content-type", "text/html".to_owned());
    let faults: Vec<(&str, Fault, &str, &str)> = vec![
        (&tag, Fault::Body(b"<html>".to_vec()), "bad image", "not understood"),
        (
            &tag,
            Fault::Body(b"{\"schemaVersion\":2}".to_vec()),
            "bad image",
            "is not the manifest",
        ),
        (&tag, Fault::Endless, "registry", "longer than 4194304 bytes"),
        (&tag, Fault::Stall(10), "registry", "manifests/1"),
        (&tag, Fault::Cut(10), "registry", "manifests/1"),
        (
            &tag,
            Fault::Header("docker-content-digest", format!("sha256:{:064}", 0)),
            "bad image",
            "calls its manifest",
        ),
        (
            &tag,
            Fault::Status(403),
            "registry",
            "manifest fetch failed: 403: not now",
        ),
        (
            &tag,
            Fault::Status(404),
            "not found",
            "manifest fetch failed: 404: not now",
        ),
        (
            &tag,
            Fault::Status(418),
            "registry",
            "manifest fetch failed: 418: not now",
        ),
        (
            &tag,
            Fault::Status(429),
            "registry",
            "manifest fetch failed: 429: not now",
        ),
        (
            &tag,
            Fault::With(429, "retry-after", "3600".into()),
            "registry",
            "429: not now (it asks to wait 3600 s)",
        ),
        (
            &tag,
            Fault::Status(500),
            "registry",
            "manifest fetch failed: 500: not now",
        ),
        (
            &tag,
            Fault::Status(502),
            "registry",
            "manifest fetch failed: 502: not now",
        ),
        (
            &tag,
            Fault::Status(503),
            "registry",
            "manifest fetch failed: 503: not now",
        ),
        (
            &tag,
            Fault::With(302, wrong_type.0, wrong_type.1),
            "registry",
            "manifest fetch failed: 302",
        ),
        (
            &tag,
            Fault::Redirect("http://127.0.0.1:1/x".into()),
            "registry",
            "manifests/1: ",
        ),
        (&tag, Fault::Redirect("ftp://127.0.0.1/x".into()), "registry", ""),
        (&config, Fault::Body(b"{}".to_vec()), "bad image", "came as"),
        (&config, Fault::Endless, "registry", "longer than"),
        (&config, Fault::Stall(1), "registry", "blobs/"),
        (&config, Fault::Status(404), "registry", ": 404: not now"),
        (&large, Fault::Body(flipped), "bad layer", "digest mismatch"),
        (&large, Fault::Body(longer), "bad layer", "sends more than"),
        (&large, Fault::Body(shorter), "registry", "bytes came"),
        (&large, Fault::Body(Vec::new()), "registry", "0 of"),
        (&large, Fault::Endless, "bad layer", ""),
        (&large, Fault::Stall(0), "registry", "blob sha256:"),
        (&large, Fault::Cut(0), "registry", "blob sha256:"),
        (&large, Fault::Status(403), "registry", ": 403: not now"),
        (&large, Fault::Status(404), "registry", ": 404: not now"),
        (&large, Fault::Status(500), "registry", ": 500: not now"),
    ];
    let runs = faults.into_iter().map(|(path, fault, wanted, reason)| {
        let (image, path) = (&image, path.to_owned());
        async move {
            let peer = Peer::start().await;
            let place = Place::with(settings(vec![plain(&peer, &[])], None)).await;
            let reference = peer.offer("1", image);
            peer.fail(&path, &vec![fault.clone(); ALWAYS]);
            let error = place.pull(&reference).await.unwrap_err();
            let name = format!("{:.60}", format!("{fault:?} at {path}"));
            assert_eq!(kind(&error), wanted, "{name}: {error}");
            assert!(error.to_string().contains(reason), "{name}: {error}");
            assert!(place.inventory().is_empty(), "{name}: {:?}", place.inventory());
            peer.with(|b| b.faults.clear());
            place.pull(&reference).await.unwrap();
            assert_eq!(place.layers(), 1, "{name}");
        }
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn wrong_documents_are_told_and_leave_nothing() {
    let peer = Peer::start().await;
    let place = Place::with(settings(vec![plain(&peer, &[])], None)).await;
    let image = TestImage::of(&[Layer::file("a", "1")]);
    let platform = format!("linux/{}", condenser::image::Platform::host().architecture);
    let refused = async |reference: &str, wanted: &str, reason: &str| {
        let error = place.pull(reference).await.unwrap_err();
        assert_eq!(kind(&error), wanted, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(place.inventory().is_empty());
    };
    let other = index(&[("linux/s390x", &image), ("windows/amd64", &image)]);
    let reference = peer.offer_index("other", &other);
    refused(&reference, "no platform", "no manifest for platform linux/").await;

    // An index that names itself is not possible by digest; many in a row are not followed for ever.
    let mut inner = index(&[(&platform, &image)]).to_string();
    let mut nested = String::new();
    for _ in 0..5 {
        let entry = json!({"mediaType": INDEX, "digest": digest(inner.as_bytes()), "size": inner.len()});
        peer.offer_document(&digest(inner.as_bytes()), INDEX, inner.into());
        let outer = json!({"schemaVersion": 2, "manifests": [entry]});
        nested = peer.offer_index("nested", &outer);
        inner = outer.to_string();
    }
    refused(&nested, "bad image", "its index leads to too many others").await;

    // Together more than a number can hold.
    let mut huge = TestImage::of(&[Layer::file("a", "1"), Layer::file("b", "1")]);
    for layer in huge.manifest["layers"].as_array_mut().unwrap() {
        layer["size"] = u64::MAX.into();
    }
    refused(&peer.offer("huge", &huge), "disk full", "bytes have to be free").await;

    // The tag is moved between the index and its manifest: what the index named is what comes.
    peer.offer("1", &image);
    let reference = peer.offer_index("moving", &index(&[(&platform, &image)]));
    peer.fail(
        &format!("/manifests/{}", image.manifest_digest()),
        &[Fault::Status(503)],
    );
    let newer = TestImage::of(&[Layer::file("a", "2")]);
    let pulled = place.pull(&reference).await.unwrap();
    peer.offer("moving", &newer);
    assert_eq!(pulled.manifest_digest, image.manifest_digest());
    // The manifest behind the digest is another one.
    let moved = peer.offer_index("swapped", &index(&[(&platform, &newer)]));
    peer.offer_document(&newer.manifest_digest(), MANIFEST, image.manifest.to_string().into());
    let error = place.pull(&moved).await.unwrap_err();
    assert!(error.to_string().contains("has the digest"), "{error}");
}

/// Three of them would keep everybody from pulling, for ever.
#[tokio::test]
async fn a_layer_that_drips_is_given_up() {
    let peer = Peer::start().await;
    let layer = large_layer();
    let image = peer.offer("1", &TestImage::of(std::slice::from_ref(&layer)));
    let mut settings = settings(vec![plain(&peer, &[])], None);
    settings.patience.idle = Duration::from_millis(200);
    let place = Place::with(settings).await;
    peer.fail(&blob(&layer), &[Fault::Drip(Duration::from_millis(20))]);
    let before = place.inventory();
    let error = place.pull(&image).await.unwrap_err();
    assert_eq!(kind(&error), "registry", "{error}");
    assert!(
        error
            .to_string()
            .contains("less than 1024 bytes per second came for 2 s"),
        "{error}"
    );
    assert_eq!(place.inventory(), before);
    place.pull(&image).await.unwrap();
}

/// Answers every connection with `start` and then, for ever, `more`.
async fn raw(start: String, more: &'static str) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let start = start.clone();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let mut sent = stream.write_all(start.as_bytes()).await;
                while sent.is_ok() && !more.is_empty() {
                    sent = stream.write_all(more.as_bytes()).await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn what_is_no_http_is_told() {
    let good = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    for (start, more) in [
        (good.to_owned(), "x: endless headers\r\n"),
        (good.to_owned() + "x: ", "an endless header "),
        (good.to_owned() + "content-length: 100\r\n\r\n{}", ""),
        (good.to_owned() + "content-length: -1\r\n\r\n{}", ""),
        (good.to_owned() + "content-length: 1\r\ncontent-length: 2\r\n\r\n{}", ""),
        (good.to_owned() + "transfer-encoding: chunked\r\n\r\nno number\r\n", ""),
        ("SSH-2.0-OpenSSH\r\n".to_owned(), ""),
        (String::new(), ""),
    ] {
        let address = raw(start.clone(), more).await.to_string();
        let entry = RegistryEntry {
            host: address.clone(),
            mirrors: Vec::new(),
            ca: None,
            insecure: true,
        };
        let place = Place::with(settings(vec![entry], None)).await;
        let error = place.pull(&format!("{address}/app:1")).await.unwrap_err();
        assert_eq!(kind(&error), "registry", "{start:?}{more:?}: {error}");
        assert!(place.inventory().is_empty());
    }
}

#[tokio::test]
async fn a_server_that_sends_the_wrong_part_is_asked_for_all() {
    let peer = Peer::start().await;
    let place = Place::with(settings(vec![plain(&peer, &[])], None)).await;
    let layer = large_layer();
    let reference = peer.offer("1", &TestImage::of(std::slice::from_ref(&layer)));
    peer.fail(&blob(&layer), &[Fault::Cut(100_000), Fault::WrongPart]);
    place.pull(&reference).await.unwrap();
    let ranges = peer.with(|b| {
        let asked = b.requests.iter().filter(|r| r.starts_with(&blob(&layer)));
        asked
            .map(|r| r.split(' ').nth(1).unwrap().to_owned())
            .collect::<Vec<_>>()
    });
    assert_eq!(ranges, ["", "bytes=100000-", ""]);
}

#[tokio::test]
async fn retry_after_is_obeyed_as_seconds_and_as_a_date() {
    let peer = Peer::start().await;
    let place = Place::with(settings(vec![plain(&peer, &[])], None)).await;
    let reference = peer.offer("1", &TestImage::of(&[Layer::file("a", "1")]));
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&soon)
        .unwrap();
    for (value, at_least) in [
        ("1".to_owned(), Duration::from_secs(1)),
        (date, Duration::from_millis(500)),
    ] {
        peer.fail("/manifests/1", &[Fault::With(429, "retry-after", value)]);
        let start = Instant::now();
        place.pull(&reference).await.unwrap();
        assert!(start.elapsed() >= at_least);
    }
}

// ---- mirrors ----

#[tokio::test]
async fn a_good_mirror_spares_the_registry() {
    let (registry, mirror) = (Peer::start().await, Peer::start().await);
    let place = Place::with(settings(vec![plain(&registry, &[&mirror])], None)).await;
    let image = TestImage::of(&[Layer::file("a", "1"), Layer::file("b", "2")]);
    let reference = registry.offer("1", &image);
    mirror.offer("1", &image);
    let row = place.pull(&reference).await.unwrap();
    assert_eq!(row.id, reference, "the image has the registry's name");
    assert_eq!(registry.with(|b| b.requests.len()), 0);
}

#[tokio::test]
async fn a_bad_mirror_is_passed_over() {
    let layers = [Layer::file("a", "1"), large_layer()];
    let image = TestImage::of(&layers);
    let other = TestImage::of(&[Layer::file("a", "other")]);
    let config = format!("/blobs/{}", digest(image.config.to_string().as_bytes()));
    let large = blob(&layers[1]);
    let mut flipped = layers[1].blob.clone();
    flipped[100_000] ^= 1;
    let tag = "/manifests/1".to_owned();
    for (path, fault) in [
        (&tag, Fault::Status(404)),
        (&tag, Fault::Status(500)),
        (&tag, Fault::Status(401)),
        (&tag, Fault::Stall(3)),
        (&tag, Fault::Body(b"<html>".to_vec())),
        (&config, Fault::Status(404)),
        (&config, Fault::Body(b"{}".to_vec())),
        (&large, Fault::Status(404)),
        (&large, Fault::Cut(0)),
        (&large, Fault::Stall(0)),
        (&large, Fault::Body(flipped)),
        (&large, Fault::Body(layers[1].blob[..5000].to_vec())),
        (&large, Fault::Endless),
    ] {
        let (registry, mirror) = (Peer::start().await, Peer::start().await);
        let place = Place::with(settings(vec![plain(&registry, &[&mirror])], None)).await;
        let reference = registry.offer("1", &image);
        mirror.offer("1", &image);
        let name = format!("{:.60}", format!("{fault:?} at {path}"));
        // One that is down may be so before the other layer has asked it.
        let singly = *path == large && !matches!(fault, Fault::Cut(_));
        mirror.fail(path, &vec![fault; ALWAYS]);
        let row = place.pull(&reference).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(row.manifest_digest, image.manifest_digest(), "{name}");
        assert_eq!(place.layers(), 2, "{name}");
        assert!(registry.count(path) > 0, "{name}: the registry was not asked");
        if singly {
            assert_eq!(registry.count(&blob(&layers[0])), 0, "{name}: layers fall back singly");
        }
    }
    // By digest, a mirror that has something else under it.
    let (registry, mirror) = (Peer::start().await, Peer::start().await);
    let place = Place::with(settings(vec![plain(&registry, &[&mirror])], None)).await;
    registry.offer("1", &image);
    mirror.offer_document(&image.manifest_digest(), MANIFEST, other.manifest.to_string().into());
    let by_digest = format!("{}/app@{}", registry.address, image.manifest_digest());
    place.pull(&by_digest).await.unwrap();
}

#[tokio::test]
async fn a_mirror_that_is_not_there_is_asked_once() {
    let registry = Peer::start().await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut entry = plain(&registry, &[]);
    entry.mirrors = vec![format!("http://{}/hub", gone.local_addr().unwrap())];
    let second = Peer::start().await;
    entry.mirrors.push(format!("http://{}", second.address));
    drop(gone);
    let place = Place::with(settings(vec![entry], None)).await;
    let image = TestImage::of(&[Layer::file("a", "1")]);
    let reference = registry.offer("1", &image);
    second.offer("1", &image);
    place.pull(&reference).await.unwrap();
    assert_eq!(registry.with(|b| b.requests.len()), 0, "the second mirror had it");
    second.with(|b| b.requests.clear());
    second.fail("/manifests/1", &[Fault::Status(404)]);
    registry.fail("/manifests/1", &vec![Fault::Status(404); ALWAYS]);
    let error = place.pull(&reference).await.unwrap_err();
    assert_eq!(kind(&error), "not found", "the registry has the last word: {error}");
}

// ---- credentials ----

struct Login {
    file: tempfile::NamedTempFile,
}

impl Login {
    fn new() -> Self {
        Self {
            file: tempfile::NamedTempFile::new().unwrap(),
        }
    }

    fn write(&self, peer: &Peer, entry: Value) {
        let text = json!({"auths": {peer.address.to_string(): entry}}).to_string();
        std::fs::write(self.file.path(), text).unwrap();
    }

    async fn place(&self, peer: &Peer) -> Place {
        Place::with(settings(vec![plain(peer, &[])], Some(self.file.path()))).await
    }
}

#[tokio::test]
async fn a_login_in_between_counts() {
    let (peer, login) = (Peer::start().await, Login::new());
    let place = login.place(&peer).await;
    let reference = peer.offer("1", &TestImage::of(&[Layer::file("a", "1")]));
    peer.with(|b| {
        b.challenges = vec![r#"Basic realm="x""#.into()];
        b.basic = Some(format!("Basic {BASIC}"));
    });
    let refused = async |reason: &str| {
        let error = place.pull(&reference).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        for secret in ["hunter2", BASIC, "dXNlcjp3cm9uZw"] {
            assert!(!error.contains(secret), "{error}");
        }
    };
    login.write(&peer, json!({}));
    let file = login.file.path().display().to_string();
    refused(&format!(
        "there are none for it in {file}; docker login {}",
        peer.address
    ))
    .await;
    login.write(&peer, json!({"auth": "dXNlcjp3cm9uZw=="}));
    refused(&format!(
        "manifest fetch failed: 401: who are you (with the credentials of {file})"
    ))
    .await;
    std::fs::write(login.file.path(), "{\"auths\": hunter2").unwrap();
    refused(&format!("the credentials file {file} is not JSON at line 1")).await;
    login.write(&peer, json!({"auth": BASIC}));
    place.pull(&reference).await.unwrap();
    // Only whoever asks gets them.
    peer.with(|b| {
        b.challenges.clear();
        b.requests.clear();
    });
    place.pull(&reference).await.unwrap();
    assert!(peer.with(|b| b.requests.iter().all(|r| !r.contains("Basic"))));
}

#[tokio::test]
async fn tokens_are_asked_for_with_a_password_and_with_a_refresh_token() {
    let (peer, login) = (Peer::start().await, Login::new());
    let place = login.place(&peer).await;
    let layer = Layer::file("a", "1");
    let reference = peer.offer("1", &TestImage::of(std::slice::from_ref(&layer)));
    peer.with(|b| {
        b.challenges = vec![CHALLENGE.into()];
        b.token_member = "access_token".into();
        b.token_for = Some(format!("Basic {BASIC}"));
    });
    login.write(&peer, json!({"auth": "dXNlcjp3cm9uZw=="}));
    let error = place.pull(&reference).await.unwrap_err().to_string();
    assert!(
        error.contains("it gives no token for app: 401: not for Some(\"Basic (hidden)\")"),
        "{error}"
    );
    login.write(&peer, json!({"auth": BASIC}));
    // A token that expires on the way is renewed with the same credentials.
    peer.fail(&blob(&layer), &[Fault::ExpireToken]);
    place.pull(&reference).await.unwrap();

    peer.with(|b| {
        b.token_for = None;
        b.refresh_token = Some("refresh-hunter2".into());
        b.requests.clear();
    });
    login.write(&peer, json!({"identitytoken": "wrong-hunter2"}));
    let error = place.pull(&reference).await.unwrap_err().to_string();
    assert!(
        error.contains("it gives no token") && !error.contains("hunter2"),
        "{error}"
    );
    login.write(&peer, json!({"identitytoken": "refresh-hunter2"}));
    place.pull(&reference).await.unwrap();
    let asked = peer
        .with(|b| b.requests.iter().rfind(|r| r.starts_with("/token")).cloned())
        .unwrap();
    for part in [
        "grant_type=refresh_token",
        "service=peer",
        "scope=repository%3Aapp%3Apull",
    ] {
        assert!(asked.contains(part), "{asked}");
    }
}

#[tokio::test]
async fn secrets_go_to_nobody_else_and_come_back_in_no_error() {
    let (peer, other, login) = (Peer::start().await, Peer::start().await, Login::new());
    let place = login.place(&peer).await;
    let layer = Layer::file("a", "1");
    let image = TestImage::of(std::slice::from_ref(&layer));
    let reference = peer.offer("1", &image);
    other.offer("1", &image);
    let elsewhere = format!("http://localhost:{}", other.address.port());
    login.write(&peer, json!({"auth": BASIC}));
    peer.with(|b| {
        b.challenges = vec![r#"Basic realm="x""#.into()];
        b.basic = Some(format!("Basic {BASIC}"));
    });
    peer.fail("/manifests/1", &[Fault::Echo, Fault::Echo]);
    let error = place.pull(&reference).await.unwrap_err().to_string();
    assert!(error.contains("400: what is Basic (hidden)?"), "{error}");
    assert!(!error.contains(BASIC), "{error}");
    peer.with(|b| b.faults.clear());
    peer.fail(
        &blob(&layer),
        &[Fault::Redirect(format!("{elsewhere}/v2/app{}", blob(&layer)))],
    );
    place.pull(&reference).await.unwrap();

    // A token service on another host, named over plain HTTP; and one that sends the refresh token elsewhere.
    peer.with(|b| {
        b.basic = None;
        b.token_member = "token".into();
        b.challenges = vec![format!(r#"Bearer realm="{elsewhere}/token""#)];
    });
    let error = place.pull(&reference).await.unwrap_err().to_string();
    assert!(error.contains("credentials are not sent there"), "{error}");
    login.write(&peer, json!({"identitytoken": "refresh-hunter2"}));
    peer.with(|b| {
        b.challenges = vec![CHALLENGE.into()];
        b.refresh_token = Some("refresh-hunter2".into());
    });
    peer.fail("/token", &[Fault::Redirect(format!("{elsewhere}/token"))]);
    let error = place.pull(&reference).await.unwrap_err().to_string();
    assert!(error.contains("it gives no token for app: 307"), "{error}");
    let seen = other.with(|b| b.requests.join("\n"));
    assert!(seen.contains(&blob(&layer)), "{seen}");
    assert!(
        !seen.contains("Basic") && !seen.contains("hunter2") && !seen.contains("token"),
        "{seen}"
    );
}

#[tokio::test]
async fn a_token_service_that_fails_is_told() {
    let layer = Layer::file("a", "1");
    let image = TestImage::of(std::slice::from_ref(&layer));
    for (fault, reason) in [
        (Fault::Stall(0), ""),
        (Fault::Endless, "longer than 65536 bytes"),
        (
            Fault::Body(b"\"hunter2\"".to_vec()),
            "the token reply is not understood",
        ),
        (
            Fault::Body(b"{\"token\":\"a\\nb\"}".to_vec()),
            "characters that a header cannot have",
        ),
        (Fault::Status(403), "403: go away"),
        (Fault::Status(500), "500: go away"),
    ] {
        let peer = Peer::start().await;
        let place = Place::with(settings(vec![plain(&peer, &[])], None)).await;
        let reference = peer.offer("1", &image);
        peer.with(|b| {
            b.challenges = vec![CHALLENGE.into()];
            b.token_member = "token".into();
        });
        peer.fail("/token", &vec![fault.clone(); ALWAYS]);
        let error = place.pull(&reference).await.unwrap_err();
        assert_eq!(kind(&error), "registry", "{error}");
        assert!(
            error.to_string().contains(reason) && !error.to_string().contains("hunter2"),
            "{error}"
        );
        peer.with(|b| b.faults.clear());
        place.pull(&reference).await.unwrap();
    }
}
