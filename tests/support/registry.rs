//! Debian's docker-registry in the outside: plain HTTP at 192.0.2.1:5000, and over TLS as Docker Hub.

use std::fs::File;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, LOCATION};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::api::{Call, Reply, get, plain, send};
use super::image::{ImageSpec, Layer, digest};
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

/// A running docker-registry. It ends with the lab.
pub struct Registry {
    machine: Arc<Machine>,
    _process: Child,
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

/// A certificate authority that the lab's CA store trusts.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Makes one and adds it to the CA store of the lab.
    pub fn trusted_by(machine: &Machine) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "lab authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let store = "/etc/ssl/certs/ca-certificates.crt";
        machine.write(store, machine.read(store) + &issuer.pem());
        Self(issuer)
    }
}

impl Registry {
    pub(super) fn plain(machine: &Arc<Machine>) -> Self {
        Self::start(machine, REGISTRY, &json!({}))
    }

    pub(super) fn hub(machine: &Arc<Machine>, authority: &Authority) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(KNOWN.map(str::to_owned)).unwrap();
        let certificate = params.signed_by(&key, &authority.0).unwrap();
        machine.write("/run/hub.crt", certificate.pem());
        machine.write("/run/hub.key", key.serialize_pem());
        let tls = json!({ "certificate": "/run/hub.crt", "key": "/run/hub.key" });
        Self::start(machine, &format!("{OUTSIDE}:443"), &tls)
    }

    /// The same images at [`GUARDED`], in plain HTTP, for whoever says [`Registry::USER`] and [`Registry::PASSWORD`].
    pub fn guarded(machine: &Arc<Machine>) -> Self {
        machine.write("/run/htpasswd", format!("{}:{HASH}\n", Self::USER));
        let auth = json!({ "htpasswd": { "realm": "lab", "path": "/run/htpasswd" } });
        Self::start_with(machine, GUARDED, &json!({}), &auth)
    }

    /// Who may read from [`Registry::guarded`].
    pub const USER: &str = "reader";
    /// Their password.
    pub const PASSWORD: &str = "correct-horse-battery";

    fn start(machine: &Arc<Machine>, address: &str, tls: &Value) -> Self {
        Self::start_with(machine, address, tls, &Value::Null)
    }

    fn start_with(machine: &Arc<Machine>, address: &str, tls: &Value, auth: &Value) -> Self {
        // JSON is YAML.
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "warn", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": STORAGE }, "delete": { "enabled": true } },
            "http": { "addr": address, "tls": tls },
        });
        if !auth.is_null() {
            config["auth"] = auth.clone();
        }
        let file = format!("/run/registry-{address}.yml");
        machine.write(&file, config.to_string());
        let log = File::create(machine.path(&format!("/run/registry-{address}.log"))).unwrap();
        let process = machine
            .command(Place::Outside, "docker-registry")
            .args(["serve", &file])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_for("the registry", Duration::from_secs(20), || {
            machine.at(Place::Outside, || std::net::TcpStream::connect(address))
        })
        .set_nodelay(true)
        .unwrap();
        Self {
            machine: machine.clone(),
            _process: process,
        }
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
        let hex = digest.trim_start_matches("sha256:");
        let path = format!("{STORAGE}/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        assert!(self.machine.path(&path).exists(), "no blob {digest}");
        self.machine.write(&path, content);
    }

    fn fetch(&self, repository: &str, reference: &str, media_type: &str) -> Reply {
        self.call(get(&format!("/v2/{repository}/manifests/{reference}")).header("accept", media_type))
    }

    /// Everything is uploaded through the plain one; they share their storage.
    fn call(&self, call: Call) -> Reply {
        plain(&self.machine, Place::Outside, REGISTRY, call).unwrap()
    }
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}
