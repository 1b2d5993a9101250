//! Debian's docker-registry: in the outside of a lab, in plain HTTP at 192.0.2.1:5000 and over TLS as Docker Hub, or on
//! loopback for tests that need no lab.

use std::fs::File;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, LOCATION};
use serde_json::{Value, json};

use super::api::{Call, Reply, get, plain, plain_over, send};
use super::authority::Authority;
use super::image::{ImageSpec, Layer, digest};
use super::images::content::{INDEX, MANIFEST, TestImage};
use super::machine::{Machine, Place};
use super::{OUTSIDE, REGISTRY, wait_for};

/// Where all registries of a lab keep their content.
const STORAGE: &str = "/run/registry";
/// Names of well-known registries that the TLS one answers to: Docker Hub's, and one more.
const KNOWN: [&str; 2] = ["registry-1.docker.io", "registry.k8s.io"];

/// The registry that wants a password.
pub const GUARDED: &str = "192.0.2.1:5001";
/// bcrypt of [`Registry::PASSWORD`]; nothing in Debian's base system makes it.
const HASH: &str = "$2a$04$abcdefghijklmnopqrstuupOWRSKKNe562z1DsLEArFuJDHVyRIMa";

/// A running registry.
pub struct Registry {
    home: Home,
    process: Child,
    /// Where uploads go, and where those of loopback are pulled from.
    pub address: String,
}

/// Where it runs and has its files.
enum Home {
    /// It ends with the lab.
    Lab(Arc<Machine>),
    Loopback(tempfile::TempDir),
}

/// What an upload made.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Digest of the manifest.
    pub manifest: String,
    /// Digest of the configuration.
    pub config: String,
    /// Digests of the layers as uploaded, bottom first.
    pub layers: Vec<String>,
    /// Sum of the sizes of configuration and layers.
    pub size: u64,
}

impl Registry {
    pub(super) fn plain(machine: &Arc<Machine>) -> Self {
        Self::in_lab(machine, REGISTRY, &json!({}), &Value::Null)
    }

    pub(super) fn hub(machine: &Arc<Machine>, authority: &Authority) -> Self {
        let (certificate, key) = authority.issue(&KNOWN);
        machine.write("/run/hub.crt", certificate.pem());
        machine.write("/run/hub.key", key.serialize_pem());
        let tls = json!({ "certificate": "/run/hub.crt", "key": "/run/hub.key" });
        Self::in_lab(machine, &format!("{OUTSIDE}:443"), &tls, &Value::Null)
    }

    /// The same images at [`GUARDED`], in plain HTTP, for whoever says [`Registry::USER`] and [`Registry::PASSWORD`].
    pub fn guarded(machine: &Arc<Machine>) -> Self {
        machine.write("/run/htpasswd", format!("{}:{HASH}\n", Self::USER));
        let auth = json!({ "htpasswd": { "realm": "lab", "path": "/run/htpasswd" } });
        Self::in_lab(machine, GUARDED, &json!({}), &auth)
    }

    /// Who may read from [`Registry::guarded`].
    pub const USER: &str = "reader";
    /// Their password.
    pub const PASSWORD: &str = "correct-horse-battery";

    fn in_lab(machine: &Arc<Machine>, address: &str, tls: &Value, auth: &Value) -> Self {
        let file = format!("/run/registry-{address}.yml");
        machine.write(&file, config(address, STORAGE, tls, auth).to_string());
        let log = machine.path(&format!("/run/registry-{address}.log"));
        let mut command = machine.command(Place::Outside, "docker-registry");
        let process = serve(command.arg("serve").arg(file), log);
        wait_for("the registry", Duration::from_secs(20), || {
            machine.at(Place::Outside, || TcpStream::connect(address))
        })
        .set_nodelay(true)
        .unwrap();
        Self {
            home: Home::Lab(machine.clone()),
            process,
            // Everything is uploaded through the plain one; they share their storage.
            address: REGISTRY.into(),
        }
    }

    /// One on a free port of loopback, with its storage and its access log in a scratch directory.
    pub fn on_loopback() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("config.yml");
        let storage = scratch.path().join("data").display().to_string();
        let config = config("127.0.0.1:0", &storage, &json!({}), &Value::Null);
        std::fs::write(&file, config.to_string()).unwrap();
        // It dies with the test, however the test ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]);
        let process = serve(command.arg(file).stdin(Stdio::null()), scratch.path().join("log"));
        let mut registry = Self {
            home: Home::Loopback(scratch),
            process,
            address: String::new(),
        };
        registry.address = wait_for("a registry that listens", Duration::from_secs(20), || {
            let log = registry.log();
            let rest = log.split("listening on ").nth(1);
            let address = rest.and_then(|rest| rest.split(['"', ' ']).next()).map(str::to_owned);
            address.ok_or(log)
        });
        registry
    }

    /// The reference to pull from it by.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    fn log(&self) -> String {
        let path = match &self.home {
            Home::Lab(machine) => machine.path(&format!("/run/registry-{}.log", self.address)),
            Home::Loopback(scratch) => scratch.path().join("log"),
        };
        std::fs::read_to_string(path).unwrap()
    }

    /// How often something was successfully got, by the access log.
    pub fn requests(&self, path: &str) -> usize {
        let wanted = format!("\"GET {path} HTTP/1.1\" 200");
        self.log().lines().filter(|line| line.contains(&wanted)).count()
    }

    /// Uploads an image that was made in memory, as `<name>:<tag>`; the reference to pull it by.
    pub fn push_image(&self, name_and_tag: &str, image: &TestImage) -> String {
        let (repository, tag) = name_and_tag.rsplit_once(':').expect("a name with a tag");
        for blob in image.blobs() {
            self.blob(repository, &blob);
        }
        self.push_manifest(repository, tag, &image.manifest);
        self.name(name_and_tag)
    }

    /// Uploads a manifest or an index.
    pub fn push_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> String {
        let is_index = manifest.get("manifests").is_some();
        self.manifest(repository, reference, if is_index { INDEX } else { MANIFEST }, manifest)
    }

    /// Where it keeps a blob.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let storage = match &self.home {
            Home::Lab(machine) => machine.path(STORAGE),
            Home::Loopback(scratch) => scratch.path().join("data"),
        };
        let hex = digest.trim_start_matches("sha256:");
        let blobs = storage.join("docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Uploads an image under `name` (`path:tag`).
    pub fn push(&self, image: &ImageSpec, name: &str) -> Pushed {
        let layers: Vec<_> = image.layers.iter().map(Layer::blob).collect();
        let config = image.config_document();
        let (repository, reference) = name.rsplit_once(':').expect("a name with a tag");
        let described = layers.iter().zip(&image.layers).map(|(blob, layer)| {
            self.blob(repository, blob);
            descriptor(image.layer_type(layer), blob)
        });
        let described: Vec<_> = described.collect();
        self.blob(repository, &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": image.manifest_type(),
            "config": descriptor(image.config_type(), &config),
            "layers": described,
        });
        let size = layers.iter().chain([&config]).map(|blob| blob.len() as u64).sum();
        Pushed {
            manifest: self.manifest(repository, reference, image.manifest_type(), &manifest),
            config: digest(&config),
            layers: layers.iter().map(|blob| digest(blob)).collect(),
            size,
        }
    }

    /// Uploads images of several platforms and an index of them under `name`; returns the index's digest.
    pub fn push_index(&self, images: &[ImageSpec], name: &str) -> String {
        let (repository, reference) = name.rsplit_once(':').expect("a name with a tag");
        let entries = images.iter().map(|image| {
            let pushed = self.push(image, &format!("{repository}:{reference}-{}", image.platform()));
            let size = self
                .fetch(repository, &pushed.manifest, image.manifest_type())
                .body
                .len();
            json!({
                "mediaType": image.manifest_type(), "digest": pushed.manifest, "size": size,
                "platform": { "os": "linux", "architecture": image.platform() },
            })
        });
        let entries: Vec<_> = entries.collect();
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries });
        self.manifest(repository, reference, kind, &index)
    }

    /// Uploads a manifest as it is; returns its digest.
    pub fn manifest(&self, repository: &str, reference: &str, media_type: &str, manifest: &Value) -> String {
        let body = manifest.to_string();
        let id = digest(body.as_bytes());
        let call = send("PUT", &format!("/v2/{repository}/manifests/{reference}"), body);
        let reply = self.call(call.header(CONTENT_TYPE.as_str(), media_type));
        assert_eq!(reply.status, 201, "{}", reply.text());
        id
    }

    /// Uploads a blob; returns its digest.
    pub fn blob(&self, repository: &str, content: &[u8]) -> String {
        let id = digest(content);
        let begun = self.call(send("POST", &format!("/v2/{repository}/blobs/uploads/"), Vec::new()));
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.headers[LOCATION].to_str().unwrap();
        let path = &location[location.find("/v2/").unwrap()..];
        let call = send("PUT", &format!("{path}&digest={id}"), content);
        let reply = self.call(call.header(CONTENT_TYPE.as_str(), "application/octet-stream"));
        assert_eq!(reply.status, 201, "{}", reply.text());
        id
    }

    /// Replaces the content of a stored blob behind the registry's back, so that its digest is wrong.
    pub fn spoil(&self, digest: &str, content: &[u8]) {
        let path = self.blob_file(digest);
        assert!(path.exists(), "no blob {digest}");
        std::fs::write(path, content).unwrap();
    }

    fn fetch(&self, repository: &str, reference: &str, media_type: &str) -> Reply {
        self.call(get(&format!("/v2/{repository}/manifests/{reference}")).header("accept", media_type))
    }

    fn call(&self, call: Call) -> Reply {
        match &self.home {
            Home::Lab(machine) => plain(machine, Place::Outside, &self.address, call).unwrap(),
            // On a thread of its own: the test may be one of a runtime's tasks.
            Home::Loopback(_) => std::thread::scope(|scope| {
                let answer =
                    scope.spawn(|| plain_over(TcpStream::connect(&self.address).unwrap(), &self.address, call));
                answer.join().unwrap().unwrap()
            }),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Home::Loopback(_) = self.home {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// JSON is YAML.
fn config(address: &str, storage: &str, tls: &Value, auth: &Value) -> Value {
    let mut config = json!({
        "version": "0.1",
        "log": { "level": "info", "accesslog": { "disabled": false } },
        "storage": { "filesystem": { "rootdirectory": storage }, "delete": { "enabled": true } },
        "http": { "addr": address, "tls": tls },
    });
    if !auth.is_null() {
        config["auth"] = auth.clone();
    }
    config
}

fn serve(command: &mut Command, log: PathBuf) -> Child {
    let log = File::create(log).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}
