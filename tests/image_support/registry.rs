//! A real `docker-registry` on a free port of loopback, with its storage and access log in a scratch directory.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use reqwest::Client;
use serde_json::Value;

use super::content::{INDEX, MANIFEST, TestImage, digest};

pub struct Registry {
    child: Child,
    scratch: tempfile::TempDir,
    /// `127.0.0.1:<port>`
    pub address: String,
    client: Client,
}

impl Registry {
    pub async fn start() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}/data}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
            scratch.path().display()
        );
        std::fs::write(scratch.path().join("config.yml"), config).unwrap();
        let log = std::fs::File::create(scratch.path().join("log")).unwrap();
        // It dies with the test, however the test ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(scratch.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut registry = Self {
            child,
            address: String::new(),
            client: client(),
            scratch,
        };
        let mut address = None;
        super::eventually("the registry listens", || {
            let log = registry.log();
            let rest = log.split("listening on ").nth(1);
            address = rest.and_then(|rest| rest.split(['"', ' ']).next()).map(str::to_owned);
            address.is_some()
        })
        .await;
        registry.address = address.unwrap();
        registry
    }

    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap()
    }

    /// How often something was successfully got, by the access log.
    pub fn requests(&self, path: &str) -> usize {
        let wanted = format!("\"GET {path} HTTP/1.1\" 200");
        self.log().lines().filter(|line| line.contains(&wanted)).count()
    }

    fn url(&self, repository: &str, tail: &str) -> String {
        format!("http://{}/v2/{repository}/{tail}", self.address)
    }

    pub async fn push_blob(&self, repository: &str, blob: Vec<u8>) {
        let started = self
            .client
            .post(self.url(repository, "blobs/uploads/"))
            .send()
            .await
            .unwrap();
        let mut location: reqwest::Url = started.headers()["location"].to_str().unwrap().parse().unwrap();
        location.query_pairs_mut().append_pair("digest", &digest(&blob));
        let done = self.client.put(location).body(blob).send().await.unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
    }

    pub async fn push_manifest(&self, repository: &str, reference: &str, manifest: &Value) {
        let media_type = if manifest.get("manifests").is_some() {
            INDEX
        } else {
            MANIFEST
        };
        let request = self.client.put(self.url(repository, &format!("manifests/{reference}")));
        let done = request
            .header("content-type", media_type)
            .body(manifest.to_string())
            .send()
            .await
            .unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
    }

    /// Pushes an image as `<name>:<tag>` and tells the reference to pull it by.
    pub async fn push(&self, name_and_tag: &str, image: &TestImage) -> String {
        let (repository, tag) = name_and_tag.split_once(':').unwrap();
        for blob in image.blobs() {
            self.push_blob(repository, blob).await;
        }
        self.push_manifest(repository, tag, &image.manifest).await;
        self.name(name_and_tag)
    }

    /// Where the registry keeps a blob.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.scratch.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client for plain HTTP.
pub fn client() -> Client {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Client::builder().tls_backend_preconfigured(tls).build().unwrap()
}
