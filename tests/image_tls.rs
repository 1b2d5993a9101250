//! Trust in registries: the system's CA store, and nothing in plain text that was not asked for.
//!
//! One test in a program of its own, because it sets `SSL_CERT_FILE` for the whole process.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use condenser::image::ImageError;
use support::authority::authority;
use support::images::Place;
use support::images::content::{Layer, TestImage};
use support::images::peer::{Fault, Peer};

#[test]
fn only_who_the_system_trusts_is_spoken_to() {
    let (trusted_ca, trusted) = authority("127.0.0.1");
    let (stranger_ca, stranger) = authority("127.0.0.1");
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("ca.pem");
    std::fs::write(&store, trusted_ca).unwrap();
    // SAFETY: this is the only test of the program and no thread of the runtime has been started yet.
    unsafe { std::env::set_var("SSL_CERT_FILE", &store) };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let place = Place::new(&[]).await;
        let layer = Layer::file("a", "1");
        let image = TestImage::of(std::slice::from_ref(&layer));
        let refused = async |reference: &str, reason: &str| {
            let error = place.pull(reference).await.unwrap_err();
            assert!(matches!(error, ImageError::Registry { .. }), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
            assert!(place.inventory().is_empty());
        };
        let peer = Peer::serve(Some(trusted)).await;
        let reference = peer.offer("1", &image);
        peer.with(|b| {
            b.challenges = vec![r#"Bearer realm="http://{host}/token",service="peer""#.into()];
            b.token_member = "token".into();
        });
        refused(&reference, "is not https").await;
        peer.with(|b| b.challenges = vec![r#"Bearer realm="https://{host}/token",service="peer""#.into()]);
        let plain = Peer::start().await;
        plain.offer("1", &image);
        let blob = format!("/blobs/{}", layer.digest());
        peer.fail(
            &blob,
            &[Fault::Redirect(format!("http://{}/v2/app{blob}", plain.address))],
        );
        refused(&reference, "from https to plain http").await;
        place.pull(&reference).await.unwrap();
        assert!(plain.with(|b| b.requests.is_empty()));
        place
            .images
            .remove(&condenser::image::ImageRef::parse(&reference).unwrap())
            .await
            .unwrap();

        let stranger = Peer::serve(Some(stranger)).await;
        refused(&stranger.offer("1", &image), "certificate").await;
        // Whoever adds a CA to the system's store need not restart anything.
        std::fs::write(&store, stranger_ca).unwrap();
        let reference = stranger.offer("1", &image);
        place.pull(&reference).await.unwrap();
        let parsed = condenser::image::ImageRef::parse(&reference).unwrap();
        place.images.remove(&parsed).await.unwrap();
        // In plain HTTP only what is named in the settings is spoken to.
        refused(&plain.offer("1", &image), "to insecure_registries in the configuration").await;
        assert!(plain.with(|b| b.requests.is_empty()));
    });
}
