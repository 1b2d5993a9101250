//! Registries behind a proxy of the environment, with CAs of their own.
//!
//! One test in a program of its own, because it sets variables for the whole process.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use condenser::image::{Registries, RegistryEntries, RegistryEntry, RegistrySettings};
use support::authority::authority;
use support::images::Place;
use support::images::content::{Layer, TestImage};
use support::images::peer::Peer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A CONNECT proxy that leads everybody to `target` and writes down what was asked for.
async fn proxy(listener: TcpListener, target: SocketAddr, asked: Arc<Mutex<Vec<String>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let asked = asked.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert!(stream.read_line(&mut head).await.unwrap() > 0);
            }
            asked.lock().unwrap().push(head.to_lowercase());
            let mut upstream = TcpStream::connect(target).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
        });
    }
}

#[test]
fn the_environment_s_proxy_leads_to_a_registry_with_its_own_ca() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = format!("http://user:hunter2@{}", listener.local_addr().unwrap());
    // SAFETY: this is the only test of the program, and its runtime has no threads of its own.
    unsafe {
        std::env::set_var("HTTPS_PROXY", address);
        std::env::set_var("NO_PROXY", "127.0.0.1");
    }
    runtime.block_on(async {
        let (ca, tls) = authority("registry.test");
        let (direct_ca, direct_tls) = authority("127.0.0.1");
        let (peer, direct) = (Peer::serve(Some(tls)).await, Peer::serve(Some(direct_tls)).await);
        let asked = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(proxy(listener, peer.address, asked.clone()));

        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("ca.pem");
        let own = scratch.path().join("certs.d").join(direct.address.to_string());
        let entry = RegistryEntry {
            host: "registry.test:5443".into(),
            mirrors: Vec::new(),
            ca: Some(file.clone()),
            insecure: false,
        };
        let place = Place::with(RegistrySettings {
            registries: Registries::new(RegistryEntries(vec![entry]), &[]).unwrap(),
            certs_dir: scratch.path().join("certs.d"),
            ..RegistrySettings::default()
        })
        .await;
        let image = TestImage::of(&[Layer::file("a", "1")]);
        peer.offer("1", &image);
        let proxied = "registry.test:5443/app:1";

        // The file comes later than the first pull, and is changed after the second.
        let error = place.pull(proxied).await.unwrap_err().to_string();
        assert!(error.contains("ca.pem: No such file"), "{error}");
        std::fs::write(&file, &direct_ca).unwrap();
        let error = place.pull(proxied).await.unwrap_err().to_string();
        assert!(error.contains("certificate") && !error.contains("hunter2"), "{error}");
        std::fs::write(&file, ca).unwrap();
        place.pull(proxied).await.unwrap();
        let heads = asked.lock().unwrap().clone();
        assert!(
            heads.iter().all(|head| head.starts_with("connect registry.test:5443 ")),
            "{heads:?}"
        );
        assert!(
            heads[0].contains("proxy-authorization: basic dxnlcjpodw50zxiy"),
            "{heads:?}"
        );

        // NO_PROXY, and a CA file where docker has them.
        let reference = direct.offer("1", &image);
        let error = place.pull(&reference).await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("ca.crt"), direct_ca).unwrap();
        place.pull(&reference).await.unwrap();
        assert_eq!(asked.lock().unwrap().len(), heads.len());

        // A proxy that is gone is told like a registry that is gone.
        let gone = place.pull("elsewhere.test/app:1").await.unwrap_err().to_string();
        assert!(
            gone.contains("registry elsewhere.test: ") && !gone.contains("hunter2"),
            "{gone}"
        );
    });
}
